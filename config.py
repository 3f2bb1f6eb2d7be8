"""Switch for small GPUs, read by `share` and by published scripts: `import config`."""

save_memory = False
