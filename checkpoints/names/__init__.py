"""The names inside weights files, published, diffusers' and foreign ones, brought to those of our models."""
