"""Kernels for NVIDIA GPUs, written in Triton. Nothing here is imported before a GPU asks for it.

`activations` and `products` are their faces in torch; the rest is Triton's language. With TRITON_INTERPRET=1
in the environment before Triton is imported they run on the CPU, slowly, which is how they are tested.
"""
