"""How much each unit of a network matters, and which ones stay.

`magnitude` looks at the weights alone (Li et al. 2017, "Pruning filters for efficient convnets"). `taylor` is
the first-order estimate of Molchanov et al. 2019, "Importance estimation for neural network pruning": by how
much the answer would change without the unit, from one backward pass. Theirs is the change of a loss; here it
is that of the network's own answer, so that calls are enough and no ground truth is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantize.calibration.calls import RecordedCall
from quantize.prune.units import Group, Scope

PROJECTIONS = 2  # random directions of the answer a call: their mean is what counts, and calls add more
ROUNDING = 1e-9  # 0.3 of 10 units is 3

Scores = Mapping[str, Tensor]  # name of a group -> [units]; the larger, the more it matters


def magnitude(model: nn.Module, groups: Iterable[Group]) -> dict[str, Tensor]:
    """Sum of squares of each unit's weights; units of different groups are not to be compared.

    Raises ValueError where a weight is not finite.
    """
    scores = {}
    for group in groups:
        total = torch.zeros(group.count, dtype=torch.float64)  # float32 loses small squares among millions
        for cut in group.cuts:
            weight = model.get_parameter(cut.tensor).detach()
            total += group.per_unit(weight.float() ** 2, cut).double().cpu()
        if not total.isfinite().all():
            raise ValueError(f"{group.name}: a weight is not finite, so it has no magnitude to go by")
        scores[group.name] = total
    return scores


def taylor(
    network: Callable[..., Any],
    model: nn.Module,
    calls: Sequence[RecordedCall],
    groups: Sequence[Group],
    generator: torch.Generator,
    on_call: Callable[[], object] = lambda: None,
) -> dict[str, Tensor]:
    """Mean squared change of the answer, to first order, as each unit is turned off: by group [units].

    network: computes `model`'s answer with gradients; calls: what it is called with. The unit as a factor,
    now 1, changes the answer by its Jacobian; for a random direction r of signs, the square of r times the
    Jacobian has the Jacobian's squared length as its mean. Groups that no call passes through are left out.
    """
    readers = {cut.tensor: model.get_parameter(cut.tensor) for g in groups for cut in g.cuts if cut.reads}
    totals: dict[str, Tensor] = {}
    with _only(model, readers.values()):
        for call in calls:
            for _ in range(PROJECTIONS):
                _project(network(*_plain(call.args), **_plain(dict(call.kwargs))), generator).backward()
                for group in groups:
                    if (change := _change(group, readers)) is not None:
                        totals[group.name] = totals.get(group.name, 0) + change**2
                for weight in readers.values():
                    weight.grad = None  # each projection's by itself: squares are added up, not gradients
            on_call()
    return {name: total / (PROJECTIONS * len(calls)) for name, total in totals.items()}


def keep_best(
    scores: Scores, groups: Sequence[Group], share: float, scope: Scope = "layer"
) -> dict[str, list[int]]:
    """The units that stay when `share` of them goes: of every group, or of all by one order ("global").

    At least one stays, and so many that the group's `multiple` divides them. Raises ValueError for a share
    that is not in [0, 1), or scores that are not finite.
    """
    if not 0 <= share < 1:
        raise ValueError(f"a share of {share} cannot go: give 0 or more, and less than 1")
    known = [group for group in groups if group.name in scores]
    if bad := [group.name for group in known if not scores[group.name].isfinite().all()]:
        raise ValueError(f"{bad[0]}: its units have no finite importance, is a weight NaN?")
    counts = {group.name: group.count - math.floor(share * group.count + ROUNDING) for group in known}
    if scope == "global" and known:
        every = torch.cat([scores[group.name] for group in known]).sort().values
        border = every[math.floor(share * len(every) + ROUNDING)]  # what equals it stays
        counts = {group.name: int((scores[group.name] >= border).sum()) for group in known}
    return {group.name: _best(scores[group.name], counts[group.name], group) for group in known}


def _best(scores: Tensor, count: int, group: Group) -> list[int]:
    count = min(group.count, max(1, math.ceil(count / group.multiple) * group.multiple))
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def _change(group: Group, weights: Mapping[str, nn.Parameter]) -> Tensor | None:
    """How a projection of the answer follows each unit's factor: sum of weight times gradient, [units]."""
    parts = [
        group.per_unit((weights[cut.tensor].detach() * grad).double(), cut).cpu()
        for cut in group.cuts
        if cut.reads and (grad := weights[cut.tensor].grad) is not None
    ]
    return sum(parts) if parts else None


def _project(answer: Any, generator: torch.Generator) -> Tensor:
    """The answer's numbers, each times a random sign, added up."""
    tensors = [answer] if isinstance(answer, Tensor) else list(answer)
    draws = (torch.randint(0, 2, one.shape, generator=generator) * 2 - 1 for one in tensors)
    return sum((one.float() * sign.to(one.device)).sum() for one, sign in zip(tensors, draws, strict=True))


def _plain(value: Any) -> Any:
    """`value` with tensors that gradients may pass, which those of inference mode may not."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


@contextmanager
def _only(model: nn.Module, learning: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters alone, as long as it lasts."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None
