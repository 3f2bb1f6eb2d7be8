"""What a ControlNet model is asked to find out which of its layers matter
(`quantize.calibration.sensitivity`).

Control branch and U-Net are asked together: what the branch does counts by what the U-Net makes of it. The
hint is encoded anew each time, so that the branch's first layers play a part. Autoencoder and text encoder
answer for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cldm.cldm import ControlLDM, scale_residuals
from quantize.calibration.calls import RecordedCall, record, tensors_of
from quantize.calibration.sensitivity import EvalProbe
from quantize.timesteps import current_group

CONTROLLED, DECODER, ENCODER, TEXT = "U-Net under control", "decoder", "encoder", "text encoder"
AUTOENCODER = {DECODER: "first_stage_model.decoder", ENCODER: "first_stage_model.encoder"}


@dataclass
class ModelCalls:
    """Recorded calls: of branch and U-Net with their hint, a pair for each group of timesteps; of others."""

    pairs: dict[int | None, tuple[Tensor, RecordedCall, RecordedCall]] = field(default_factory=dict)
    others: dict[str, list[RecordedCall]] = field(default_factory=dict)


@contextmanager
def record_calls(model: ControlLDM) -> Iterator[ModelCalls]:
    """Record what `model` is asked while the caller runs it, one picture and one control of strength 1."""
    found, last = ModelCalls(), {}
    branch, unet = model.control_model, model.model.diffusion_model
    encode_hint = branch.encode_hint

    def encode(hint: Tensor) -> Any:
        last["hint"] = hint
        return encode_hint(hint)

    def steer(_: Any, args: tuple, kwargs: dict, answer: Any) -> None:
        last["control"] = RecordedCall(args, kwargs, answer)

    def predict(_: Any, args: tuple, kwargs: dict, answer: Any) -> None:
        if kwargs.get("control") is not None:
            found.pairs[current_group()] = (last["hint"], last["control"], RecordedCall(args, kwargs, answer))

    hooks = ((branch, steer), (unet, predict))
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    branch.encode_hint = encode
    try:
        with record(model, list(AUTOENCODER.values())) as calls:
            yield found
    finally:
        del branch.encode_hint  # the method of the class is seen again
        for handle in handles:
            handle.remove()
        found.others |= calls


def probes_of(model: ControlLDM, found: ModelCalls, prompts: Sequence[str], *, pool: bool) -> list[EvalProbe]:
    """The questions to `model`; pool: whether residuals were averaged over positions."""

    def controlled() -> Tensor:
        return _flat([_steered(model, *pair, pool=pool) for pair in found.pairs.values()])

    def network(name: str) -> Callable[[], Tensor]:
        module, calls = model.get_submodule(name), found.others[name][:1]  # they differ by their picture only
        return lambda: _flat([module(*call.args, **call.kwargs) for call in calls])

    def text() -> Tensor:
        return _flat([model.get_learned_conditioning(list(prompts))])

    return [
        EvalProbe(CONTROLLED, ("control_model.", "model."), controlled),
        *(EvalProbe(label, (f"{name}.",), network(name)) for label, name in AUTOENCODER.items()),
        EvalProbe(TEXT, ("cond_stage_model.",), text),
    ]


def _steered(
    model: ControlLDM, hint: Tensor, control: RecordedCall, unet: RecordedCall, *, pool: bool
) -> Tensor:
    x, _, *rest = control.args
    branch = model.control_model
    residuals = branch(x, branch.encode_hint(hint), *rest, **control.kwargs)
    residuals = scale_residuals(residuals, model.control_scales, pool=pool)
    return model.model.diffusion_model(*unet.args, **unet.kwargs | {"control": residuals})


def _flat(answers: Sequence[Any]) -> Tensor:
    return torch.cat([tensor.float().flatten().cpu() for answer in answers for tensor in tensors_of(answer)])
