"""The autoencoder, whole or in tiles, and diffusion."""
