"""What serving costs: bytes and floating-point operations of a step, and the time that a machine needs for them."""
