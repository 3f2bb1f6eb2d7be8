"""int8 and float work on the CPU around the matrix products."""
