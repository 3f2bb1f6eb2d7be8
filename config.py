"""Switch for small GPUs, read by `share` and by published scripts: `import config`."""

save_memory = False  # True as in the published scripts: attention in slices, parts leave the GPU
