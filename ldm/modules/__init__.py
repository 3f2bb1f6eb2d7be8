"""The networks: U-Net, VAE, attention, text encoders."""
