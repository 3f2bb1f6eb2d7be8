"""LoRA files: their names, their alphas, their merge into a model."""
