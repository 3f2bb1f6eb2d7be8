"""ControlNet: networks, controls, and the way from a request to its images."""
