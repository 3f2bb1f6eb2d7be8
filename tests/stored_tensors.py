"""What weights files hold, whatever their form."""

from checkpoints.checkpoint import open_checkpoint
from checkpoints.files.lazy import read


def stored_tensors(path):
    """All tensors of a file under its own names, read."""
    return {name: read(tensor) for name, tensor in open_checkpoint(path).tensors().items()}
