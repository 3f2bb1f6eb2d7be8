"""The model of a run: base and branch in memory, ready to learn, in the types that the run computes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from checkpoints.checkpoint import open_checkpoint
from checkpoints.load import assign_weights, read_state_dict
from checkpoints.surgery import add_control, extract_control
from cldm.cldm import ControlLDM
from cldm.model import CONTROL_PREFIX, assign_parts, fresh_branch
from ldm.config import create_meta_model

OFFLOADED = ("first_stage_model", "cond_stage_model")  # what a run with cached latents does without


def load_for_training(
    config: Path | DictConfig, weights: Sequence[Path], *, seed: int = 0, use_ema: bool = False
) -> tuple[ControlLDM, bool]:
    """The model of a yaml with `weights` overlaid, and whether a new branch was begun for want of one.

    A new branch copies from the U-Net's encoder what it can and draws the rest by `seed`. Errors as
    `cldm.model.assign_parts`.
    """
    model = create_meta_model(config)
    opened = [open_checkpoint(path) for path in weights]
    if any(CONTROL_PREFIX in one.parts for one in opened):
        assign_parts(model, *opened, use_ema=use_ema)
        return model, False  # a branch came with the weights
    base: dict[str, Tensor] = {}
    for one in opened:
        base |= read_state_dict(one, use_ema=use_ema)
    try:
        branch = extract_control(add_control(base, fresh_branch(config, seed))[0])
    except ValueError as error:
        raise ValueError(f"{' + '.join(one.label for one in opened)}: {error}") from None
    assign_parts(model, *opened, branch, use_ema=use_ema)
    return model, True


def prepare(model: ControlLDM, *, frozen: torch.dtype, checkpointing: bool | None = None) -> None:
    """What learns in float32, in memory of its own; what does not in `frozen`.

    checkpointing: compute activations twice, None for what the yaml says.
    """
    learns = {id(parameter) for parameter in model.trainable_parameters()}
    for module in model.modules():
        if checkpointing is not None and hasattr(module, "use_checkpoint"):
            module.use_checkpoint = checkpointing
    for name, parameter in model.named_parameters():
        if id(parameter) in learns:
            parameter.data = parameter.data.to(torch.float32, copy=True)  # not the pages of a file
        elif frozen != torch.float32 and not name.startswith(CONTROL_PREFIX):
            parameter.data = parameter.data.to(frozen)


class OffloadedModules:
    """Autoencoder and text encoder of `model`, out of memory but for as long as somebody needs them."""

    def __init__(self, model: ControlLDM, weights: Sequence[Path]) -> None:
        self.model, self.weights = model, weights
        self.dtype = next(model.first_stage_model.parameters()).dtype
        self.parts = nn.ModuleDict({name: getattr(model, name) for name in OFFLOADED})
        self._leave()

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Inside, both are there, read from their files again."""
        stored: dict[str, Tensor] = {}
        for path in self.weights:
            stored |= {name: one for name, one in read_state_dict(path).items() if name.startswith(OFFLOADED)}
        assign_weights(self.parts, stored, dtype=self.dtype)  # a file read twice is cheaper than memory held
        for name, part in self.parts.to(self.model.device).items():
            setattr(self.model, name, part)
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        for name in OFFLOADED:
            setattr(self.model, name, nn.Module())  # what moves or lists the model's parts finds nothing here
        for module in self.parts.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(parameter.to("meta"), requires_grad=False)
