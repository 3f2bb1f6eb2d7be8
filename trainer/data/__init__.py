"""Training pairs: rows of published forms, samples, cached latents."""
