"""Skipping by router weight: how weights are distributed, thresholds for a budget, factors on what is kept."""
