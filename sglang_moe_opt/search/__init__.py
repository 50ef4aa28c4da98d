"""Which schedule to serve: measured, modelled, allocated, and verified."""
