"""Latent diffusion: networks, text encoders, samplers. It knows no weights files and nothing of control."""
