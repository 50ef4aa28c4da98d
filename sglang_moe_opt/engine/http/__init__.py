"""The HTTP process: hints in, applied profile out."""
