"""Quantized and pruned models at work: loaded, and their blocks fused for the CPU and for GPUs."""
