"""Published weights, fetched and checked."""
