"""The autoencoder, and diffusion."""
