"""Which experts a model keeps: calibration statistics, criteria, budgets, plans, merging and export."""
