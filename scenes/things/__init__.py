"""Everyday things in flat colours, and the sketches that people would make of them."""
