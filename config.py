"""Switch for small cards, read by `share` and by published scripts: `import config`."""

save_memory = False
