"""The tab where pictures are made: its fields, in two columns that become one on a phone.

What happens when they are used is in `app.tabs.drawing`, `app.tabs.maps` and `app.tabs.restoring`.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.canvas import drawing_canvas
from app.form import BALANCED, CONTROL, PROMPT
from app.page import Served
from app.request_data import MAX_CONTROLS, typed
from app.tabs.unit import Unit
from app.words import t
from cldm.request import MAX_STEPS, Request
from ldm.models.diffusion.samplers import SAMPLERS
from ldm.modules.feature_cache import CACHE_POINTS

USUAL = Request("usual")  # the defaults of what is asked for
MOST_IMAGES = 12
MOST_SCALE = 30.0
SIDE_STEP, LEAST_SIDE, MOST_SIDE = 64, 64, 1024
MOST_CLIP_SKIP = 4
MOST_EVERY = 5
EXAMPLE_PROMPT = "cyan circle with brown background"
IMPORTANCE_WORDS = {
    BALANCED: "Balanced",
    PROMPT: "The prompt matters more",
    CONTROL: "The control matters more",
}
SHOW_RESULTS = """() => {
  if (innerWidth < 900) document.getElementById("results").scrollIntoView({ behavior: "smooth" });
}"""  # on a phone they are far below
LEFT, RIGHT = 380, 340  # pixels below which a column goes under the other


class GenerateTab:
    """The components of the tab. `fields`: by name, all whose values say what is drawn."""

    def __init__(self, served: Served) -> None:
        self.served, self.fields = served, dict[str, gr.components.Component]()
        with gr.Row():
            with gr.Column(scale=5, min_width=LEFT):
                self._words()
                self._units()
                self._settings()
                self._more_settings()
                self._savers()
                self._start_picture()
            with gr.Column(scale=4, min_width=RIGHT, elem_id="results"):
                self._results()

    @property
    def inputs(self) -> dict[str, gr.components.Component]:
        """All fields, those of units under names such as `unit1_control`."""
        units = {f"{unit.name}_{name}": one for unit in self.units for name, one in unit.fields.items()}
        return self.fields | units

    def _words(self) -> None:
        self._add(
            "prompt",
            gr.Textbox(
                label=t("Prompt"), lines=2, placeholder=EXAMPLE_PROMPT, elem_id="prompt", autofocus=True
            ),
        )
        self._add("negative_prompt", gr.Textbox(label=t("Negative prompt"), elem_id="negative"))
        with gr.Row():
            self.generate = gr.Button(t("Generate"), variant="primary", elem_id="generate")
            self.generate.click(None, js=SHOW_RESULTS)
            self.cancel = gr.Button(t("Cancel"), variant="stop", elem_id="cancel")

    def _units(self) -> None:
        self.units, self.unit_open, facts = [], {}, self.served.facts
        for number in range(1, MAX_CONTROLS + 1):
            with gr.Accordion(
                t(f"Control {number}"), open=number == 1, elem_id=f"unit{number}-open"
            ) as self.unit_open[number]:
                if number > 1:
                    switch = gr.Checkbox(label=t("Use this control too"), elem_id=f"unit{number}-on")
                    self._add(f"unit{number}_on", switch)
                self.units.append(Unit(number, facts.branches, self.served.annotators.folder))

    def _settings(self) -> None:
        facts = self.served.facts
        with gr.Accordion(t("Settings"), open=True):
            with gr.Row():
                self._slider("num_samples", "Pictures", (1, MOST_IMAGES, 1), 1, "images")
                self._slider("resolution", "Resolution", (LEAST_SIDE, MOST_SIDE, SIDE_STEP), facts.resolution)
            with gr.Row():
                self._slider("steps", "Steps", (1, MAX_STEPS, 1), USUAL.steps)
                seed = gr.Number(value=0, precision=0, minimum=0, label=t("Seed"), elem_id="seed")
                self._add("seed", seed)
                self._add("randomise", gr.Checkbox(label=t("New seed each time"), elem_id="seed-random"))
            choices = [(t(word), one) for one, word in IMPORTANCE_WORDS.items()]
            importance = gr.Radio(choices, value=BALANCED, label=t("What matters"), elem_id="importance")
            self._add("importance", importance)

    def _more_settings(self) -> None:
        facts, names = self.served.facts, self.served.worker.models.names
        with gr.Accordion(t("More settings"), open=False, elem_id="more-open"):
            with gr.Row():
                self._slider("scale", "Guidance scale", (1.0, MOST_SCALE, 0.25), facts.scale)
                sampler = gr.Dropdown(
                    list(SAMPLERS), value=USUAL.sampler, label=t("Sampler"), elem_id="sampler"
                )
                self._add("sampler", sampler)
                self._slider("eta", "Eta", (0.0, 1.0, 0.05), USUAL.eta)
            with gr.Row():
                guess = gr.Checkbox(label=t("Guess mode (no prompt needed)"), elem_id="guess")
                self._add("guess_mode", guess)
                self._slider(
                    "clip_skip", "Clip skip (0: the model's)", (0, MOST_CLIP_SKIP, 1), 0, "clip-skip"
                )
            self._add("model", gr.Dropdown(names, value=names[0], label=t("Model"), elem_id="model"))
        shown = [self.fields["resolution"], self.fields["scale"]]
        self.fields["model"].input(
            self._usual, self.fields["model"], shown, preprocess=False, api_visibility="private"
        )

    def _usual(self, model: Any) -> tuple[Any, Any]:
        """What the chosen model takes where nothing is asked for."""
        usual = self.served.worker.models.defaults(typed("model", model, str))
        return usual["resolution"], usual["scale"]

    def _savers(self) -> None:
        with gr.Accordion(t("Save time (changes the picture a little)"), open=False):
            with gr.Row():
                self._slider("guidance_start", "Guidance from", (0.0, 0.95, 0.05), USUAL.guidance_start)
                self._slider("guidance_end", "Guidance to", (0.05, 1.0, 0.05), USUAL.guidance_end)
            with gr.Row():
                self._slider("reuse_every", "Whole U-Net once in", (1, MOST_EVERY, 1), USUAL.reuse_every)
                cut = gr.Dropdown(
                    list(CACHE_POINTS),
                    value=USUAL.reuse_cut,
                    label=t("Between: compute"),
                    elem_id="reuse-cut",
                )
                self._add("reuse_cut", cut)
                self._slider("control_every", "Control once in", (1, MOST_EVERY, 1), USUAL.control_every)

    def _start_picture(self) -> None:
        with gr.Accordion(t("Start from a picture"), open=False, elem_id="start-open") as self.start_open:
            self._add(
                "init",
                gr.Image(
                    type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"],
                    height=320, buttons=["fullscreen"], label=t("Start picture"), elem_id="init",
                ),
            )  # fmt: skip
            self._slider("denoise", "Made anew", (0.05, 1.0, 0.05), USUAL.denoise)
            self._add("mask", drawing_canvas("Mask", elem_id="mask-canvas", mode="mask"))

    def _results(self) -> None:
        self.status = gr.HTML("", elem_id="status", elem_classes="status")
        self.preview = gr.Image(
            label=t("Preview"),
            interactive=False,
            buttons=["fullscreen"],
            visible=False,
            format="jpeg",
            elem_id="preview",
        )
        self.gallery = gr.Gallery(
            label=t("Control maps, then pictures"), columns=2, object_fit="contain", height="auto",
            format="png", interactive=False, elem_id="gallery", buttons=["download", "fullscreen"],
        )  # fmt: skip
        self.used_seed = gr.Textbox(label=t("Seed used"), interactive=False, elem_id="used-seed")
        with gr.Row():
            self.as_input = gr.Button(t("Use as input"), size="sm", elem_id="use-as-input")
            self.as_start = gr.Button(t("Use as start picture"), size="sm", elem_id="use-as-start")
            self.to_compare = gr.Button(t("Compare models"), size="sm", elem_id="send-to-compare")
        self.restore = gr.File(
            label=t("Drop a picture made here: everything is set as it was"), file_types=[".png"], height=160,
            elem_id="restore",
        )  # fmt: skip

    def _slider(
        self, name: str, label: str, span: tuple[float, float, float], value: float, elem: str = ""
    ) -> None:
        low, high, step = span
        elem_id = elem or name.replace("_", "-")
        self._add(name, gr.Slider(low, high, value=value, step=step, label=t(label), elem_id=elem_id))

    def _add(self, name: str, component: Any) -> None:
        self.fields[name] = component
