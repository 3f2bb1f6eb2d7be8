"""Files of tensors: their kinds, headers and tensors, read lazily and safely, and written piece by piece."""
