"""A command line from a frozen dataclass: a field is a flag of its name, type and default, help beside it.

    @dataclass(frozen=True)
    class Steps:
        batch: int = flag(4, "pairs a step", "--train-batch-size", "--batch-size")
        seed: int = flag(0, "of everything random")

    add_flags(parser, Steps, "how long")
    steps = read_flags(Steps, parser.parse_args())

A bool becomes a switch (with a `--no-` twin where its default is not False), a tuple takes one or more words,
a Literal has choices. Fields without `flag` stay out of the command line.
"""

from __future__ import annotations

import argparse
from dataclasses import MISSING, Field, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
NOT_SHOWN = ("None", "False", "()", "[]")  # as "(default: …)": the help says it better
KEY = "flag"
METAVARS = {int: "N", float: "X"}


def flag(default: Any, help: str, *names: str, **options: Any) -> Any:
    """A dataclass field that is a flag too.

    default: `MISSING` where it must be given. names: of the flag, else the field's name with dashes; without
    dashes in front it is positional. options: of `ArgumentParser.add_argument`, such as metavar.
    """
    return field(default=default, metadata={KEY: (names, {"help": help, **options})})


def add_flags(
    parser: argparse.ArgumentParser, settings: type, title: str | None = None, about: str = ""
) -> None:
    """Give `parser` a flag for each field of `settings` that is one, in a group called `title`."""
    group = parser.add_argument_group(title, about or None) if title else parser
    hints = get_type_hints(settings)
    for one in fields(settings):
        if KEY in one.metadata:
            group.add_argument(*_names(one), **_options(one, hints[one.name]))


def read_flags(settings: type[T], args: argparse.Namespace, **others: Any) -> T:
    """The `settings` that the command line says; others: its fields that are no flags."""
    values = {one.name: getattr(args, one.name) for one in fields(settings) if KEY in one.metadata}
    return settings(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()},
        **others,
    )


def _names(one: Field) -> tuple[str, ...]:
    return one.metadata[KEY][0] or (f"--{one.name.replace('_', '-')}",)


def _options(one: Field, hint: Any) -> dict[str, Any]:
    """What `add_argument` is told of a field of type `hint`."""
    options = dict(one.metadata[KEY][1])
    if _names(one)[0].startswith("-"):
        options |= {"dest": one.name, "required": one.default is MISSING}
    if one.default is not MISSING:
        # argparse appends to a list only
        options["default"] = list(one.default) if isinstance(one.default, tuple) else one.default
        if str(one.default) not in NOT_SHOWN and "default" not in options["help"]:
            options["help"] = f"{options['help']} (default: %(default)s)".strip()
    return _kind(one, hint, "action" in options) | options


def _kind(one: Field, hint: Any, has_action: bool) -> dict[str, Any]:
    if get_origin(hint) in (Union, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if hint is bool:
        return {"action": "store_true" if one.default is False else argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    word = get_args(hint)[0] if get_origin(hint) is tuple else hint
    many = word is not hint and not has_action
    return {"type": word, "metavar": METAVARS.get(word)} | ({"nargs": "+"} if many else {})
