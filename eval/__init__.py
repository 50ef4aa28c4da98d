"""Accuracy evaluation of expert-skipping schedules."""
