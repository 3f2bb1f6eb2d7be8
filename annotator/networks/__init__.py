"""The detectors that are networks with weights, one module a kind; `table` lists them for the registry."""
