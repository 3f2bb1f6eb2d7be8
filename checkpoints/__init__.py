"""Weights files: opened safely and lazily, named alike, loaded, inspected, merged and written."""
