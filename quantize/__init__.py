"""Smaller weights that are computed with as they are: int8, int4 and fp8 layers for any `nn.Module`."""
