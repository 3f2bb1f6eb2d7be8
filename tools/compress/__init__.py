"""Quantizing and pruning a model: flags, calibration runs, sensitivity, reports."""
