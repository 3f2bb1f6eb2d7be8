"""Which layers become what: rules by name, type and size, and the plan that they make for one model.

A plan is data, {layer: scheme}, with a fingerprint of the model's names and shapes: made once, by these rules
or by a measurement, it is written as JSON, read again and refused by any other model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from quantize.arithmetic import check_finite
from quantize.layers import QuantLayer
from quantize.schemes import WEIGHTS_ONLY, WITHOUT_CALIBRATION, get_scheme, why_not

PLAN_VERSION = 1
MIN_WEIGHTS = 1024  # below, the bytes saved are lost among scales and calls

# Pattern of layer names -> what it is. Names are those of published Stable Diffusion files; a pattern that
# fits nothing does nothing.
SKIPPED = {
    "*zero_convs.*": "zero convolutions: all of the control passes through them",
    "*middle_block_out.*": "the zero convolution of the middle",
    "*input_hint_block.0": "the first to see the control picture",
    "*control_model.stem": "the same of a lite branch",
    "*input_blocks.0.0": "the first of the U-Net and of its copy: four channels, of noise",
    "*diffusion_model.out.*": "the last of the U-Net: its errors are the answer's",
    "out.*": "the same of a U-Net by itself",
    "*time_embed.*": "one row a step decides about every block",
    "*time_gain.*": "the same of a lite branch",
    "*conv_in": "the autoencoder's first",
    "*conv_out": "the autoencoder's last",
    "*quant_conv": "between the autoencoder and the latents",
}
POSITIONS = "*position_embedding"  # of text encoders: small, and their libraries ask for its weight's shape
# These run once a picture or see nothing but the text, so that a look at their inputs costs next to nothing;
# and their ranges follow the picture's colours and the prompt, of which calibration shows few.
ONCE = ("*first_stage_model.*", "*input_hint_block.*", "*.attn2.to_k", "*.attn2.to_v")
DECODER = "*first_stage_model.decoder.*"
# Text encoders have a few inputs a hundred times as large as the rest (Dettmers et al. 2022, "LLM.int8()"):
# one step for all of a layer's inputs would lose the rest. They run once a picture, so nothing is won by it.
TEXT = "*cond_stage_model.*"
COMPACT = "int8_weight"  # 40 dB or so: what stays float otherwise can bear it where bytes are wanted


@dataclass(frozen=True)
class Rule:
    """Layers whose name fits `pattern` get `scheme`."""

    pattern: str  # as in a shell: * for any text
    scheme: str | None  # None to stay float

    def __post_init__(self) -> None:
        if self.scheme is not None:
            get_scheme(self.scheme)


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Rules from texts such as "*.skip_connection=int8_weight"; `float` leaves layers alone.

    Raises ValueError for a text without "=", and for an unknown scheme.
    """
    pairs = [(text, *text.rpartition("=")) for text in texts]
    for text, pattern, _, _ in pairs:
        if not pattern:
            raise ValueError(f"--rule {text}: give PATTERN=SCHEME, such as 'control_model.*=int8_weight'")
    return tuple(Rule(pattern, None if scheme == "float" else scheme) for _, pattern, _, scheme in pairs)


@dataclass(frozen=True)
class Selection:
    """Rules for a model, the first that fits wins."""

    rules: tuple[Rule, ...]
    min_weights: int = MIN_WEIGHTS  # layers with fewer stay float
    narrow: bool = False  # as of the plan

    def scheme_of(self, name: str, layer: nn.Module) -> str | None:
        """The scheme of one layer, None where it stays as it is."""
        if why_not(layer) or layer.weight.numel() < self.min_weights:
            return None
        scheme = next((rule.scheme for rule in self.rules if fnmatchcase(name, rule.pattern)), None)
        return WEIGHTS_ONLY.get(scheme, scheme) if isinstance(layer, nn.Embedding) else scheme


def default_selection(
    scheme: str, *, decoder: bool = False, compact: bool = False, extra: tuple[Rule, ...] = ()
) -> Selection:
    """Everything gets `scheme`, except what `SKIPPED` names; text encoders keep their inputs in float.

    What runs once a picture, or on the text, gets dynamic inputs in place of static ones.
    decoder: the autoencoder's decoder too, which is what loses first. compact: what would stay float gets
    int8 weights, and the rest is stored narrow. extra: rules that come before all these. Raises ValueError
    for an unknown scheme.
    """
    skipped = [*SKIPPED, *([] if decoder else [DECODER])]
    rest = COMPACT if compact else None
    text = Rule(TEXT, WEIGHTS_ONLY.get(scheme, scheme))
    positions, skips = Rule(POSITIONS, None), [Rule(pattern, rest) for pattern in skipped]
    once = [Rule(pattern, WITHOUT_CALIBRATION.get(scheme, scheme)) for pattern in ONCE]
    return Selection((*extra, positions, *skips, text, *once, Rule("*", scheme)), narrow=compact)


@dataclass(frozen=True)
class Plan:
    """Which layers of one model become what."""

    layers: Mapping[str, str]  # name -> scheme
    fingerprint: str  # of the model that it is for
    about: Mapping[str, str] = field(default_factory=dict)  # for people: how the plan was chosen
    narrow: bool = False  # whether scales and what stays float take two bytes in the file

    def to_json(self) -> str:
        """The plan as a text that people can read and change."""
        fields = ("fingerprint", "about", "narrow", "layers")  # the longest last
        content = {"version": PLAN_VERSION, **{name: getattr(self, name) for name in fields}}
        return json.dumps(content, indent=1, ensure_ascii=False, default=dict)

    @classmethod
    def from_json(cls, text: str, label: str = "the plan") -> Plan:
        """What `to_json` wrote; ValueError in one sentence, which begins with `label`, for any other text."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{label} is no JSON: {error}") from None
        if not isinstance(found, dict) or not {"version", "fingerprint", "layers"} <= found.keys():
            raise ValueError(f"{label} is no plan: it needs version, fingerprint and layers")
        if found["version"] != PLAN_VERSION:
            raise ValueError(f"{label} has version {found['version']}, this program reads {PLAN_VERSION}")
        if not isinstance(found["layers"], dict):
            raise ValueError(f"{label}: its layers must be an object of layer names and schemes")
        for name, scheme in found["layers"].items():
            if not isinstance(scheme, str):
                raise ValueError(f"{label}: the scheme of {name} must be a name, not {scheme}")
            get_scheme(scheme)
        if not isinstance(narrow := found.get("narrow", False), bool):
            raise ValueError(f"{label}: narrow is true or false, not {narrow}")
        return cls(found["layers"], found["fingerprint"], found.get("about", {}), narrow)

    def check(self, model: nn.Module, label: str = "the plan") -> None:
        """ValueError where the plan is for another model, or names what it has not or cannot quantize."""
        if self.fingerprint != (own := fingerprint(model)):
            raise ValueError(
                f"{label} is for another model: its fingerprint is {self.fingerprint}, this model's {own}"
            )
        modules = dict(model.named_modules())
        for name in self.layers:
            if name not in modules:
                raise ValueError(f"{label} names {name}, which the model does not have")
            if reason := why_not(modules[name]):
                raise ValueError(f"{label} names {name}, which cannot be quantized: {reason}")


def make_plan(model: nn.Module, selection: Selection, about: Mapping[str, str] | None = None) -> Plan:
    """The plan of `selection` for `model`, whose weights are not read: they may be on the meta device.

    Raises ValueError for a model that is quantized already, or of which nothing would be.
    """
    if quantized := [name for name, layer in model.named_modules() if isinstance(layer, QuantLayer)]:
        raise ValueError(f"the model is quantized already ({quantized[0]}): start from the float weights")
    schemes = {name: selection.scheme_of(name, layer) for name, layer in model.named_modules()}
    layers = {name: scheme for name, scheme in schemes.items() if scheme}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer that the rules select: nothing to quantize")
    return Plan(layers, fingerprint(model), about or {}, selection.narrow)


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of the names and shapes of a model's weights; its numbers play no part."""
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def check_weights(model: nn.Module, plan: Plan) -> None:
    """ValueError where a weight of the plan's layers holds NaN or infinity, with the layer's name."""
    for name in plan.layers:
        check_finite(model.get_submodule(name).weight, f"{name}: a weight")


def read_plan(path: str | Path, model: nn.Module) -> Plan:
    """The plan in a file, checked against `model`. FileNotFoundError, or ValueError in one sentence."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no plan {path}: write one with --plan-out, or leave out --plan")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no JSON: it is not UTF-8 text") from None
    plan = Plan.from_json(text, str(path))
    plan.check(model, str(path))
    return plan
