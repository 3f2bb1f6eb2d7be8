"""Pictures that come back: dropped to set everything again, or taken as the input of the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import gradio as gr

from app.canvas import show_photo_js
from app.form import UPLOAD, values_of
from app.page import Served
from app.stored import Stored, find_picture, read_stored
from app.tabs.generate import GenerateTab
from app.tabs.reading import facts_of
from app.tabs.status import status_line
from app.uploads import uploaded_file
from app.words import Language, language_of, say
from common.shell import printable

Updates = dict[Any, Any]


def wire_restoring(tab: GenerateTab, served: Served) -> None:
    """Have the file drop and the buttons under the gallery do something."""
    quiet = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
    uploads = [*(unit.upload for unit in tab.units), tab.fields["init"]]

    async def restore(request: gr.Request, file: Any, *current: Any) -> Updates:
        lang = language_of(request, served.lang)
        stored = await asyncio.to_thread(read_stored, file, served.folder)
        return await asyncio.to_thread(_restored, tab, served, stored, current, lang)

    shown = [tab.status, *tab.inputs.values(), *tab.unit_open.values(), tab.start_open]
    tab.restore.upload(restore, [tab.restore, *uploads], shown, **quiet)

    def pick(event: gr.SelectData) -> int:
        return event.index

    def chosen(gallery: Any, index: Any) -> str:
        if not isinstance(gallery, list) or not gallery:
            raise ValueError("there is no picture yet: generate one first")
        fits = isinstance(index, int) and 0 <= index < len(gallery)
        item = gallery[index if fits else -1]
        return str(uploaded_file(item.get("image") if isinstance(item, dict) else None, served.folder))

    def as_input(gallery: Any, index: Any) -> Updates:
        unit, path = tab.units[0], chosen(gallery, index)
        return {unit.source: UPLOAD, unit.upload: gr.update(value=path, visible=True)}

    def as_start(gallery: Any, index: Any) -> Updates:
        return {tab.fields["init"]: chosen(gallery, index), tab.start_open: gr.update(open=True)}

    picked = gr.State(None)
    tab.gallery.select(pick, None, picked, **quiet)
    first = tab.units[0]
    tab.as_input.click(as_input, [tab.gallery, picked], [first.source, first.upload], **quiet)
    tab.as_start.click(as_start, [tab.gallery, picked], [tab.fields["init"], tab.start_open], **quiet)
    tab.fields["init"].change(None, tab.fields["init"], js=show_photo_js("mask-canvas"))


def _restored(
    tab: GenerateTab, served: Served, stored: Stored, current: Sequence[Any], lang: Language
) -> Updates:
    """What the whole page shows for a stored request, and what it could not set."""
    models, source = served.worker.models, stored.source
    model = models.named(source)
    notes = [] if model else ["this server does not have the model that drew it"]
    facts = facts_of(model or models.first, served)
    values, units = values_of(stored.request.completed(asdict(facts)), facts)
    fields = {**values, "model": facts.name}
    updates: Updates = {tab.fields[name]: _set(tab.fields[name], value) for name, value in fields.items()}
    for unit, uploaded in zip(tab.units, current, strict=False):
        index = unit.number - 1
        its = units[index] if index < len(units) else None
        name = source.image[index] if index < len(source.image) else ""
        found = find_picture(stored, name, uploaded, served.folder)
        updates |= unit.restored(its, found)
        updates[tab.unit_open[unit.number]] = gr.update(open=its is not None)
        if unit.number > 1:
            updates[tab.fields[f"{unit.name}_on"]] = its is not None
        if its is not None and found.missing:
            notes.append(f"give {printable(found.missing)} again")
    updates |= _start_picture(tab, served, stored, current[-1], notes)
    words = [say(one, lang) for one in ("everything is set as it was", *notes)]
    return updates | {tab.status: status_line(" · ".join(words))}


def _start_picture(
    tab: GenerateTab, served: Served, stored: Stored, current: Any, notes: list[str]
) -> Updates:
    """The initial picture and the mask; what is missing is added to `notes`."""
    init, mask = stored.source.init, stored.source.mask
    updates: Updates = {tab.start_open: gr.update(open=bool(init)), tab.fields["mask"]: None}
    if mask and (drawing := find_picture(stored, mask, None, served.folder)).value:
        updates[tab.fields["mask"]] = drawing.value
    elif mask:
        notes.append(f"give {printable(mask)} again")
    found = find_picture(stored, init or "", current, served.folder)
    if not found.kept:
        updates[tab.fields["init"]] = None
        notes += [f"give {printable(init)} again"] if init else []
    return updates


def _set(component: Any, value: Any) -> Any:
    """The component with `value`, though a slider's span may be too short for it."""
    if isinstance(component, gr.Slider):
        low, high = min(component.minimum, value), max(component.maximum, value)
        return gr.update(value=value, minimum=low, maximum=high)
    return gr.update(value=value)
