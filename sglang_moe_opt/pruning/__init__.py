"""Which experts a model can do without: statistics of their use, criteria, plans, merging, checkpoints."""
