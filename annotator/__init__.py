"""Image to control map: one module a detector, one registry."""
