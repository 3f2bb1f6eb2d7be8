"""The door for old scripts: `MyDataset` is the published tutorial's data, training/fill50k at 512 pixels."""

from trainer.data.dataset import ControlDataset as MyDataset

__all__ = ["MyDataset"]
