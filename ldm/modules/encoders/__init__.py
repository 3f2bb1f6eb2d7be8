"""Prompts to context: tokenizer, CLIP and OpenCLIP, weighted prompts."""
