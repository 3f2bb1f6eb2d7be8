"""One control unit of the page: which control, which detector, from which picture, how strong; its live map.

The sliders of detectors are slots, made once: a parameter of the chosen detector takes the next slot of its
kind. So all of a unit's values travel with a click, and no second round is needed to find them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from annotator.detector import CHOICE, REAL, WHOLE, Param, word_of
from annotator.registry import DETECTORS
from app.canvas import drawing_canvas
from app.form import ALL_SLOTS, DRAWING, EXAMPLE, OWN_BRANCH, UPLOAD, shown_value, slots_of
from app.inputs import EXAMPLES
from app.stored import Found
from app.words import shown, t
from cldm.controls import CONTROLS, ready_detectors

USUAL_STRENGTH = 2.0  # the slider's end; a request may have more
MAP_HEIGHT = 220
FIRST_CONTROL, FIRST_DETECTOR = "scribble", "drawing"  # of a new page, where the canvas is open
SOURCE_WORDS = {UPLOAD: "Upload", DRAWING: "Draw", EXAMPLE: "Example"}
OWN_FIELDS = (
    "control", "detector", "source", "upload", "canvas", "example", "ready", "strength", "start", "end",
    "branch",
)  # fmt: skip
STORED_FIELDS = ("control", "start", "end", "branch", "ready")  # those that need no more than their value


class Unit:
    """The components of control `number`, counted from 1. `fields`: those whose values make a `UnitForm`."""

    def __init__(self, number: int, branches: Sequence[str], folder: Any) -> None:
        self.number, self._folder = number, folder
        self.name = f"unit{number}"
        with gr.Row():
            self.control = self._dropdown("control", t("Control"), list(CONTROLS), FIRST_CONTROL)
            self.detector = self._dropdown(
                "detector", t("Detector"), self.detectors(FIRST_CONTROL), FIRST_DETECTOR
            )
        self.source = gr.Radio(
            [(t(word), one) for one, word in SOURCE_WORDS.items()],
            value=DRAWING,
            label=t("Picture"),
            elem_id=f"{self.name}-source",
        )
        self.upload = gr.Image(
            type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"], height=320,

            buttons=["fullscreen"], label=t("Drawing or photograph"), visible=False,
            elem_id=f"{self.name}-upload",
        )  # fmt: skip
        self.canvas = drawing_canvas("Drawing", elem_id=f"{self.name}-canvas")
        self.example = gr.Radio(
            list(EXAMPLES),
            value=EXAMPLES[0],
            label=t("Example"),
            visible=False,
            elem_id=f"{self.name}-example",
        )
        self.ready = gr.Checkbox(label=t("Ready-made map"), elem_id=f"{self.name}-ready")
        self.slots = {slot: self._slot(slot) for slot in ALL_SLOTS}
        with gr.Row():
            self.strength = self._slider("strength", t("Strength"), 1.0, USUAL_STRENGTH)
            self.start = self._slider("start", t("Start"), 0.0, 1.0)
            self.end = self._slider("end", t("End"), 1.0, 1.0)
        self.branch = self._dropdown("branch", t("Branch"), [OWN_BRANCH, *branches], OWN_BRANCH)
        self.branch.visible = bool(branches)
        self.map = gr.Image(
            buttons=["download", "fullscreen"],
            label=t("Control map"),
            interactive=False,
            format="png",
            height=MAP_HEIGHT,
            elem_id=f"{self.name}-map",
        )
        self._behave()

    @property
    def fields(self) -> dict[str, gr.components.Component]:
        """By the names under which `app.form.unit_of` reads them."""
        return {name: getattr(self, name) for name in OWN_FIELDS} | self.slots

    def detectors(self, control: str) -> list[str]:
        """The detectors of `control` that are ready."""
        return ready_detectors(control, self._folder)

    def _behave(self) -> None:
        quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        self.source.change(self._show_source, self.source, [self.upload, self.canvas, self.example], **quiet)
        changed = [self.detector, *self.slots.values()]
        self.control.input(self._show_control, [self.control, self.source], changed, **quiet)
        self.detector.input(self._show_detector, self.detector, list(self.slots.values()), **quiet)

    @staticmethod
    def _show_source(source: str) -> list[dict[str, Any]]:
        return [gr.update(visible=source == one) for one in (UPLOAD, DRAWING, EXAMPLE)]

    def _show_control(self, control: str, source: str) -> list[dict[str, Any]]:
        names = self.detectors(control)
        chosen = "drawing" if source == DRAWING and "drawing" in names else next(iter(names), None)
        return [gr.update(choices=names, value=chosen), *self._show_detector(chosen)]

    @staticmethod
    def _show_detector(name: str | None) -> list[dict[str, Any]]:
        detector = DETECTORS.get(str(name))
        used = {slot: param for param, slot in slots_of(detector).items()}
        return [
            gr.update(**_looks(used[slot], detector.params[used[slot]]))
            if slot in used
            else gr.update(visible=False)
            for slot in ALL_SLOTS
        ]

    def restored(self, values: Mapping[str, Any] | None, found: Found) -> dict[Any, Any]:
        """What its components show for a stored request's values; None where that has no such control."""
        if values is None:
            return {self.upload: None, self.canvas: None}
        updates = {getattr(self, name): gr.update(value=values[name]) for name in STORED_FIELDS}
        names = self.detectors(values["control"])
        updates[self.detector] = gr.update(choices=names, value=values["detector"])
        looks = zip(self.slots.items(), self._show_detector(values["detector"]), strict=True)
        for (slot, component), look in looks:
            updates[component] = look | ({"value": values[slot]} if slot in values else {})
        updates[self.strength] = gr.update(
            value=values["strength"], maximum=max(USUAL_STRENGTH, values["strength"])
        )
        updates |= {self.source: found.source, self.canvas: None, self.upload: None}
        if found.kept:
            del updates[self.upload]
        if found.value is not None:
            updates[self.canvas if found.source == DRAWING else self.example] = found.value
        return updates

    def _slot(self, slot: str) -> gr.components.Component:
        used = {taken: name for name, taken in slots_of(DETECTORS[FIRST_DETECTOR]).items()}
        looks = {"visible": False}
        if slot in used:
            looks = _looks(used[slot], DETECTORS[FIRST_DETECTOR].params[used[slot]])
        kinds = {"number": gr.Slider, "choice": gr.Dropdown, "switch": gr.Checkbox, "text": gr.Textbox}
        return kinds[slot.rstrip("0123456789")](elem_id=f"{self.name}-{slot}", **looks)

    def _dropdown(self, name: str, label: Any, choices: list[str], value: str | None) -> gr.Dropdown:
        return gr.Dropdown(choices, value=value, label=label, elem_id=f"{self.name}-{name}")

    def _slider(self, name: str, label: Any, value: float, most: float) -> gr.Slider:
        return gr.Slider(0, most, value=value, step=0.05, label=label, elem_id=f"{self.name}-{name}")


def _looks(name: str, param: Param) -> dict[str, Any]:
    """What a slot shows for `param`."""
    words = {"label": shown(name), "info": shown(param.help)}
    looks = words | {"value": shown_value(param, param.default), "visible": True}
    if param.kind in (WHOLE, REAL):
        looks |= {"minimum": param.low, "maximum": param.high, "step": param.step}
    if param.kind == CHOICE:
        looks["choices"] = [word_of(one) for one in param.choices]
    return looks
