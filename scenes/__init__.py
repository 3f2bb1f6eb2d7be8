"""Generated images whose truth is known."""
