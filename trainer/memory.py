"""How much memory a training run will need, known before anything is loaded.

One step is run on tensors without contents, at full size; what lives at the same time is counted. On a card
its libraries take a little more: `OVERHEAD`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cldm.cldm import ControlLDM
from ldm.config import read_config
from ldm.modules.encoders.tokenizer import MAX_TOKENS
from ldm.util import instantiate_from_config
from trainer.live_memory import LiveMemory
from trainer.losses import Noise, control_loss

GB = 1e9
OVERHEAD = int(1.0 * GB)  # a card's context, kernels and workspaces; a first guess until it is measured
FP32 = 4  # bytes a number
STATES = {"adamw": 2.0 * FP32, "adamw8bit": 2 * (1 + FP32 / 256), "host": 0.0}  # bytes a weight that learns
HOST_STATES = 3 * FP32 + FP32  # DeepSpeed keeps weights, two moments and gradients in float32 on the host
FROZEN = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """What of a run decides its memory.

    precision: no, fp16 or bf16; optimizer: adamw, adamw8bit, or host for DeepSpeed's offloading; cached:
    latents and texts come from a cache.
    """

    batch: int = 4
    resolution: int = 512
    precision: str = "no"
    checkpointing: bool | None = None
    optimizer: str = "adamw"
    accumulate: int = 1
    grads_to_none: bool = True
    averaged: bool = False
    cached: bool = False
    sd_locked: bool = True


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a run. activations: all that a step makes for itself; host: in ordinary memory."""

    weights: int
    gradients: int
    states: int
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """On the card, without its libraries' share."""
        return self.weights + self.gradients + self.states + self.activations

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.states,
            "activations": self.activations,
        }
        listed = " + ".join(f"{size / GB:.2f} {name}" for name, size in parts.items())
        host = f", and {self.host / GB:.1f} GB of ordinary memory" if self.host else ""
        return f"peak memory about {self.total / GB:.1f} GB ({listed}){host}"


def estimate(config: str | Path | DictConfig, plan: Plan) -> Estimate:
    """The peak memory of a run of `plan` with the model of a yaml. Errors as `cldm.model.create_model`."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    params = OmegaConf.to_container(read_config(config).model, resolve=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model: ControlLDM = instantiate_from_config(params)
        model.sd_locked = plan.sd_locked
        learning = _as_planned(model, plan)
        count = sum(parameter.numel() for parameter in learning)
        gradients, held = _bytes(learning), _bytes(model.parameters())
        if plan.cached:
            held -= _bytes(model.first_stage_model.parameters()) + _bytes(model.cond_stage_model.parameters())
        step = _peak_of_a_step(model, plan)
    offloaded = plan.optimizer == "host"
    states = int(count * STATES[plan.optimizer])
    weights = held + (count * FP32 if plan.averaged else 0)
    # torch's AdamW makes one more list as large as its weights while it steps; activations are gone by then.
    at_step = gradients + (count * FP32 if plan.optimizer == "adamw" else 0)
    activations = max(step, at_step) - gradients
    return Estimate(
        weights, gradients, states, max(0, activations), int(count * HOST_STATES) if offloaded else 0
    )


def _as_planned(model: ControlLDM, plan: Plan) -> list[nn.Parameter]:
    """Bring the weights into the types of the plan; returns those that learn."""
    learns, frozen = {id(parameter) for parameter in model.trainable_parameters()}, FROZEN[plan.precision]
    own = frozen if plan.optimizer == "host" else torch.float32  # DeepSpeed's full weights are on the host
    for module in model.modules():
        if plan.checkpointing is not None and hasattr(module, "use_checkpoint"):
            module.use_checkpoint = plan.checkpointing
        for name, old in module._parameters.items():
            if old is not None:
                learning = id(old) in learns
                new = torch.empty(old.shape, dtype=own if learning else frozen)
                module._parameters[name] = nn.Parameter(new, requires_grad=learning)
    return model.trainable_parameters()


def _peak_of_a_step(model: ControlLDM, plan: Plan) -> int:
    """Bytes that one batch makes beyond weights and states, gradients among them."""
    lower = torch.autocast("cpu", FROZEN[plan.precision]) if plan.precision != "no" else nullcontext()
    keeps = plan.accumulate > 1 or not plan.grads_to_none
    with LiveMemory(chain(model.parameters(), model.buffers())) as live:
        for _ in range(2 if keeps else 1):  # the second time on top of the first one's gradients
            with lower:
                loss = _loss(model, plan)
            loss.backward()
            del loss
    return live.peak


def _loss(model: ControlLDM, plan: Plan) -> Tensor:
    b, side, latent = plan.batch, plan.resolution, plan.resolution // 8
    config = model.model.diffusion_model.config
    hint, x0 = torch.zeros(b, 3, side, side), torch.zeros(b, config.in_channels, latent, latent)
    text = torch.zeros(b, MAX_TOKENS, config.context_dim or 1)
    if not plan.cached:
        vae = model.first_stage_model
        with torch.no_grad():
            vae.quant_conv(vae.encoder(hint.to(vae.quant_conv.weight.dtype)))  # as large as the picture
            text = model.get_learned_conditioning(["a picture"] * b)
    noise = Noise(torch.zeros(b, dtype=torch.long), torch.zeros_like(x0), torch.zeros_like(x0))
    return control_loss(model, x0, {"c_crossattn": [text], "c_concat": [hint]}, noise)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free for a run on `device`; None where it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        except OSError:  # not Linux
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    return None


def advice(found: Estimate, plan: Plan, device: torch.device) -> str | None:
    """None where the run fits into what is free on `device`, else a sentence with what would help."""
    free = free_memory(device)
    needed = found.total + (OVERHEAD if device.type == "cuda" else 0)
    if free is None or needed <= free:
        return None
    levers = {
        "--train-batch-size 1 --gradient-accumulation-steps 4": plan.batch > 1,
        "--gradient-checkpointing": plan.checkpointing is not True,
        "--cache-latents": not plan.cached,
        "--use-8bit-adam": plan.optimizer == "adamw",
        "--mixed-precision bf16": plan.precision == "no",
        "--preset 8gb": plan.optimizer != "host",
        "a lower --resolution": True,
    }
    left = ", ".join(name for name, helps in levers.items() if helps)
    return (
        f"this run needs about {needed / GB:.1f} GB of {device.type} memory and {free / GB:.1f} GB are free: "
        f"try {left}; --ignore-memory-estimate starts it all the same"
    )
