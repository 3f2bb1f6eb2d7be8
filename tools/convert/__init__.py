"""One form of weights into another, and a new control branch for a base."""
