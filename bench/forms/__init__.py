"""Forms of one model (plain, quantized, pruned, another branch) beside each other: what they cost."""
