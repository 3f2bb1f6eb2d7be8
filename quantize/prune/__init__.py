"""Pruning: weights that matter least become zeros, or leave with the whole unit that they belong to."""
