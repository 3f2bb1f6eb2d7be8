"""Pictures of numbers: rows as bars and points, folders as grids, a training run as curves."""
