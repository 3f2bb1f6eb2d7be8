"""The drawing canvas as a Gradio component: `static/canvas.js` in a `gr.HTML`.

A function and no subclass of `gr.HTML`: Gradio writes a `.pyi` file beside the source of every subclass.
"""

from __future__ import annotations

import json
from typing import Literal

import gradio as gr
import numpy as np

from app.data_url import decode_data_url
from app.words import LABELS, STATIC, t

SIDE = 512  # pixels of the longer side
# The label is shown in the page's language; which one that is tells in what language the tools are named.
MOUNT = """
const words = () => (props.label === props.name ? {} : props.korean);
const onchange = (canvas) => { props.value = canvas.png(); };
const { width, height, mode, label, mount } = props;
const canvas = SketchCanvas.mount(element, mount, { width, height, mode, label, words: words(), onchange });
if ((props.value || "") !== canvas.png()) canvas.show(props.value || "");
watch("value", () => canvas.show(props.value || ""));
watch("label", () => canvas.translate(props.label, words()));
"""


def drawing_canvas(
    label: str,
    *,
    elem_id: str,
    mode: Literal["draw", "mask"] = "draw",
    size: tuple[int, int] = (SIDE, SIDE),
    visible: bool = True,
) -> gr.HTML:
    """A canvas to draw on, or in mode "mask" to paint white on black. `elem_id` is its own on the page.

    A handler gets what is drawn as the data URL of a PNG, "" or None for nothing (`decode_drawing` reads it);
    given as an output, such a URL is shown and None clears. `change` fires after each stroke. size: (width,
    height); a photograph beneath changes the aspect and keeps the longer side.
    """
    script = (STATIC / "canvas.js").read_text("utf-8")
    shape = {"mode": mode, "width": size[0], "height": size[1]}
    known = {"name": label, "korean": LABELS["canvas"], "mount": elem_id}
    return gr.HTML(
        "",
        label=t(label),
        html_template="",  # the canvas builds its own elements, and Gradio leaves alone what never changes
        css_template=(STATIC / "canvas.css").read_text("utf-8"),
        js_on_load=MOUNT,
        head=f"<script>{script}</script>",  # once a page, however many canvases there are
        apply_default_css=False,
        elem_id=elem_id,
        visible=visible,
        **shape,
        **known,
    )


def decode_drawing(value: object, name: str = "the drawing") -> np.ndarray | None:
    """What a canvas handed over: uint8 [H W 3], None where nothing is drawn.

    ValueError in one sentence for anything that no canvas sends: the value may come from any client.
    """
    if value is None or value == "":
        return None
    return decode_data_url(value, name)[:, :, :3]


def show_photo_js(elem_id: str) -> str:
    """JavaScript for `image.change(None, image, js=...)`: its picture beneath the canvas of that id."""
    canvas = f"SketchCanvas.mounted.get({json.dumps(elem_id)})"
    return f"(picture) => {{ {canvas}?.setPhoto(picture ? picture.url : ''); }}"
