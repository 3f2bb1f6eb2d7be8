"""Folders in diffusers' layout, read and written."""
