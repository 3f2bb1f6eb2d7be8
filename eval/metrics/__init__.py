"""One module a family of metrics, one dict of all of them."""
