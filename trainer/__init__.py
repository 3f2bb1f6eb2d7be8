"""Training a control branch: settings, data, loop, callbacks, checkpoints."""
