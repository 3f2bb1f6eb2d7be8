"""What quantization, pruning and saved steps cost in images."""
