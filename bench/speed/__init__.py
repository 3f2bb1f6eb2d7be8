"""How fast single parts are: kernels, attention, the lite branch, pruned steps."""
