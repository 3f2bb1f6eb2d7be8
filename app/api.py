"""What programs call: `/models`, `/generate`, `/annotate` and `/compare`, through `gradio_client`.

Each takes and gives plain JSON and files; what a page's fields go through is gone through here too. The types
of the signatures are what Gradio publishes, so they must be types and no texts.
"""

import asyncio
import math
from pathlib import Path
from typing import Any

import gradio as gr

from app.comparing import Compared, check_models, compare
from app.detecting import Annotated, annotate_all, check_detectors
from app.drawing import Drawn, draw
from app.inputs import Given, Inputs, drawn, mask_of, uploaded
from app.jobs import Job
from app.outputs import Album, files_of_maps, write_compared
from app.page import Served
from app.request_data import MAX_CONTROLS, check_size, number, request_of, typed
from app.tabs.reading import Asked
from app.tabs.status import notes
from app.waiting import result_of


class Calls:
    """The calls as methods; an answer is a JSON object, whose files `gradio_client` fetches."""

    def __init__(self, served: Served) -> None:
        self._served, self._worker = served, served.worker

    def models(self) -> dict:
        """The models by name, the one that draws by default first, and whether each is loaded."""
        return {name: {"loaded": self._worker.models.is_loaded(name)} for name in self._worker.models.names}

    async def generate(  # noqa: PLR0913 - names of a public call
        self, client: gr.Request, request: dict, images: list, init: dict = None, mask: dict = None,
        model: str = "",
    ) -> dict:  # fmt: skip
        """Draw `request`, the fields of cldm.request.Request.

        images: one for each control or one for all; init, mask: what to start from, and where it is changed.
        """
        pictures = {"images": images, "init": init, "mask": mask}
        asked = await asyncio.to_thread(read_call, self._served, request, pictures, model)

        def act(job: Job) -> Drawn:
            return draw(self._worker.models.get(asked.model), asked.request, asked.inputs.pictures, job)

        made = await result_of(Job(act, owner=client.session_hash, shows_previews=False), self._worker)
        album = Album(self._served.folder, asked.inputs)
        files = [_file(path) for path, _ in await asyncio.to_thread(album.update, made)]
        count = len(made.maps)
        seeds = [one.seed for one in made.requests]
        answer = {"images": files[count:], "maps": files[:count], "seeds": seeds, "seconds": made.seconds}
        return answer | {"model": made.model, "notes": notes(asked, made)}

    async def annotate(
        self, client: gr.Request, image: dict, detectors: list = None, resolution: int = 512
    ) -> dict:
        """The maps that `detectors` (null: all) see in `image`, and what those that are not ready need."""
        given = await asyncio.to_thread(_needed, image, self._served.folder)
        names, side = check_detectors(detectors), check_side(given, resolution)

        def act(job: Job) -> Annotated:
            return annotate_all(given.image, names, side, self._served.annotators, job)

        found = await result_of(Job(act, owner=client.session_hash), self._worker)
        paths = await asyncio.to_thread(files_of_maps, self._served.folder, found)
        maps = [
            {"detector": one.detector, "seconds": one.seconds, "map": _file(path)}
            for one, path in zip(found.maps, paths, strict=True)
        ]
        return {"maps": maps, "missing": found.missing}

    async def compare(  # noqa: PLR0913 - names of a public call
        self, client: gr.Request, request: dict, images: list, models: list, init: dict = None,
        mask: dict = None,
    ) -> dict:  # fmt: skip
        """The first picture of `request` by each of 2 to 4 `models`, what it costs and how it differs."""
        pictures = {"images": images, "init": init, "mask": mask}
        asked = await asyncio.to_thread(read_call, self._served, request, pictures, "")
        names = check_models(models, self._worker.models)

        def act(job: Job) -> list[Compared]:
            return compare(self._worker.models, names, asked.request, asked.inputs.pictures, job)

        made = await result_of(Job(act, owner=client.session_hash), self._worker)
        paths = await asyncio.to_thread(write_compared, self._served.folder, asked.inputs, made)
        pairs = zip(made, paths, strict=True)
        return {"models": [_costs(one) | {"image": _file(path)} for one, path in pairs]}


def add_api(served: Served) -> None:
    """Offer the calls; inside of a page that is being built."""
    calls, options = Calls(served), {"concurrency_id": "gpu", "concurrency_limit": None}
    gr.api(calls.models, api_name="models", queue=False)
    for name in ("generate", "annotate", "compare"):
        gr.api(getattr(calls, name), api_name=name, **options)


def read_call(served: Served, request: Any, pictures: dict[str, Any], model: Any) -> Asked:
    """What a call asks for; ValueError in one sentence for whatever is wrong with it.

    pictures: `images`, `init` and `mask`, each an uploaded file or the data URL of a picture.
    """
    wanted, images = request_of(request), pictures["images"]
    if not isinstance(images, list | tuple) or not 0 < len(images) <= MAX_CONTROLS:
        raise ValueError(f"images must be a list of 1 to {MAX_CONTROLS} pictures")
    given = [_needed(one, served.folder) for one in images]
    if len(given) == 1:
        given *= max(1, len(wanted.controls))
    if len(given) != len(wanted.controls):
        words = "give one picture for all, or one for each"
        raise ValueError(f"{len(given)} pictures for {len(wanted.controls)} controls: {words}")
    init = _picture(pictures["init"], served.folder)
    mask = _picture(pictures["mask"], served.folder)
    if init is None and (mask is not None or wanted.denoise < 1):
        raise ValueError("a mask or denoise below 1 needs an initial picture (init)")
    for one in given:
        check_size(wanted, one.image.shape, served.facts.resolution)
    name = served.worker.models.check(typed("model", model, str) or served.worker.models.first)
    return Asked(wanted, Inputs(tuple(given), init, mask and mask_of(mask)), name)


def check_side(given: Given, resolution: Any) -> int:
    """The resolution of maps that a client asks for; ValueError in one sentence."""
    side = number("resolution", resolution, whole=True)
    check_size(request_of({"prompt": "a map", "resolution": side}), given.image.shape, side)
    return side


def _picture(value: Any, folder: Path) -> Given | None:
    if isinstance(value, str) and value.startswith("data:"):
        return drawn(value, "picture")
    return uploaded(value, folder)


def _needed(value: Any, folder: Path) -> Given:
    if (given := _picture(value, folder)) is None:
        raise ValueError("a picture is missing: upload one (gradio_client: handle_file)")
    return given


def _file(path: str) -> dict[str, Any]:
    return gr.FileData(path=path, orig_name=Path(path).name).model_dump()


def _costs(one: Compared) -> dict[str, Any]:
    """JSON has no infinity: psnr is None for the same picture too, whose ssim is 1."""
    facts = {name: getattr(one, name) for name in ("model", "seconds", "peak_bytes", "file_bytes", "ssim")}
    return facts | {"psnr": one.psnr if one.psnr != math.inf else None}
