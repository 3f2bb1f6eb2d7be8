"""The live map of a control unit: made anew whenever its picture, its detector or a slider changes.

Classical detectors take milliseconds and run beside the worker; networks belong to the worker, which does
them when no picture waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import gradio as gr
import numpy as np

from annotator.registry import get_detector
from app.form import control_input
from app.inputs import unit_picture
from app.jobs import PREPARATION, Job
from app.page import Served
from app.request_data import check_size, number
from app.tabs.generate import GenerateTab
from app.tabs.unit import Unit
from app.waiting import result_of
from cldm.conditioning import control_maps
from cldm.controls import pick_detector
from cldm.request import Request


def wire_maps(tab: GenerateTab, served: Served) -> None:
    """Have each unit of `tab` show its map."""
    for unit in tab.units:
        _wire_unit(unit, tab.fields["resolution"], served)


def _wire_unit(unit: Unit, resolution: Any, served: Served) -> None:
    async def show(request: gr.Request, **values: Any) -> np.ndarray | None:
        return await live_map({**values, "number": unit.number}, served, request.session_hash)

    changed = [
        unit.upload.change,
        unit.canvas.change,
        unit.source.change,
        unit.example.change,
        unit.ready.change,
    ]
    changed += [unit.control.change, unit.detector.change, *(slot.change for slot in unit.slots.values())]
    gr.on(
        [*changed, resolution.release], show, inputs_kwargs={**unit.fields, "resolution": resolution},
        outputs=unit.map, preprocess=False, trigger_mode="always_last", concurrency_id="maps",
        concurrency_limit=2, show_progress="hidden", api_visibility="private",
    )  # fmt: skip


async def live_map(values: Mapping[str, Any], served: Served, owner: str) -> np.ndarray | None:
    """The map of a unit's picture, uint8 [H W 3], None while it has none. ValueError in one sentence."""
    given = await asyncio.to_thread(unit_picture, values["number"], values, served.folder)
    if given is None:
        return None
    control = control_input(values)
    side = number("resolution", values["resolution"], whole=True)
    request = Request("map", controls=(control,), resolution=side)
    check_size(request, given.image.shape, side)

    def detect(job: Job | None = None) -> np.ndarray:
        return control_maps(given.image, request, served.annotators)[0]

    if not control.preprocess or get_detector(pick_detector(control.control, control.detector)).load is None:
        return await asyncio.to_thread(detect)
    return await result_of(Job(detect, PREPARATION, owner=owner), served.worker)
