"""Whether named shapes from files fit a model, said in one sentence that names both sides.

Pure functions on shapes: nothing is read or changed here, so that a model is never half loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from checkpoints.names.original import part_of
from common.shell import quote

Shapes = Mapping[str, tuple[int, ...]]  # name -> shape

CONTEXT_MARKER = "attn2.to_k.weight"  # [c, d]: it reads the text, so its width d tells the family
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the refiner of SDXL", 2048: "SDXL"}


def check_fit(model: Shapes, optional: set[str], sources: Mapping[str, Shapes]) -> None:
    """Raise ValueError unless `sources` hold what `model` needs, in its shapes, and nothing else.

    sources: label -> what that source contributes, no name twice. optional: what the model has without them.
    """
    for label, shapes in sources.items():
        if shapes and not shapes.keys() & model.keys():
            raise ValueError(
                f"{label} is no checkpoint for this model, which has none of its {len(shapes)} names "
                f"({quote(list(shapes))})"
            )
    _check_family(model, sources)
    _check_shapes(model, sources)
    _check_names(model, optional, sources)


def _check_family(model: Shapes, sources: Mapping[str, Shapes]) -> None:
    widths = {label: width for label in sources if (width := context_width(sources[label]))}
    wanted = context_width(model)
    others = [label for label, width in widths.items() if width != wanted]
    if wanted and others:
        fitting = [label for label, width in widths.items() if width == wanted]
        raise ValueError(
            f"{' and '.join(others)}: made for {family(widths[others[0]])}, but the model"
            f"{''.join(' and ' + label for label in fitting)} for {family(wanted)}; "
            "take a yaml, a base and a control branch of one family"
        )


def context_width(shapes: Shapes) -> int | None:
    """Width of the text that a model of these shapes reads, in either naming; None where it reads none."""
    return next((shape[-1] for name, shape in shapes.items() if name.endswith(CONTEXT_MARKER)), None)


def family(width: int) -> str:
    """Whose text is `width` wide, for a message."""
    return f"text of width {width}" + (f" ({FAMILIES[width]})" if width in FAMILIES else "")


def _check_shapes(model: Shapes, sources: Mapping[str, Shapes]) -> None:
    for label, shapes in sources.items():
        wrong = [name for name in shapes if name in model and shapes[name] != model[name]]
        if wrong:
            name = wrong[0]
            raise ValueError(
                f"{label} does not fit the model: {len(wrong)} tensors differ in shape, first {name} with "
                f"{list(shapes[name])} where the model has {list(model[name])}; check that the yaml is theirs"
            )


def _check_names(model: Shapes, optional: set[str], sources: Mapping[str, Shapes]) -> None:
    found = {name for shapes in sources.values() for name in shapes}
    missing = [name for name in model if name not in found and name not in optional]
    complaints, hint = [], "check that the yaml is theirs"
    if missing:
        parts = Counter(part_of(name) for name in missing)
        counts = ", ".join(f"{count} of the {part}" for part, count in parts.items())
        complaints.append(f"lacks {len(missing)} tensors of the model ({counts}; {quote(missing)})")
        hint = "name a file for every part: the base model, then the control branch"
    for label, shapes in sources.items():
        if unknown := [name for name in shapes if name not in model]:
            where = f"{label} " if len(sources) > 1 else ""
            complaints.append(f"{where}has {len(unknown)} unknown to the model ({quote(unknown)})")
    if complaints:
        raise ValueError(f"{' + '.join(sources)} {' and '.join(complaints)}; {hint}")
