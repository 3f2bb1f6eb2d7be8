"""The detectors that are networks, as data. Their modules are imported when they are used.

Files and folders lie in models/annotators under the names their repositories give them. "NC" in a licence: no
commercial use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotator.class_colors import ADE20K, COCO
from annotator.detector import Annotate, Detector, Param

if TYPE_CHECKING:
    import torch

AUXILIARY, SCIPY = ("controlnet_aux",), ("scipy",)  # transformers works joints out with scipy
OPENPOSE = (*AUXILIARY, *SCIPY)
NO_PARAMS: Mapping[str, Param] = {}
APACHE, MIT, NC = "Apache-2.0", "MIT", "no commercial use (NC)"
CMU, NVIDIA, UNSTATED = f"CMU, {NC}", f"NVIDIA, {NC}", "not stated"

LINES, STRAIGHT, EDGES = (
    "white lines on black",
    "thin straight white lines on black",
    "soft grey edges on black",
)
STROKES = "white lines on black, as of a pen"
DEPTH, NORMALS = "grey, near is white", "surface normals as (n + 1) / 2 in red, green, blue"
ADE_COLOURS, COCO_COLOURS = "the class colours of ADE20K", "the class colours of COCO"
SKELETONS = "coloured skeletons on black"

DEPTH_ANYTHING, DPT = "Depth-Anything-V2-Small-hf", "dpt-large"
BODY, HANDS, FACES = "body_pose_model.pth", "hand_pose_model.pth", "facenet.pth"

SEGMENTS = {
    "score": Param(0.1, 0.01, 1.0, 0.01, "how sure a line must be; lower draws more"),
    "length": Param(0.1, 0.0, 20.0, 0.1, "lines that are shorter are left out, in pixels of half the map"),
}
RELIEF = {
    "background": Param(
        0.4, 0.0, 1.0, 0.05, "what is farther away than this part of all depth faces the front"
    ),
    "swapped": Param(False, help="red and blue change places, as the ControlNet 1.0 model wants them"),
}
PEOPLE = {
    "people": Param(0.3, 0.05, 0.95, 0.05, "how sure a person must be to be drawn"),
    "joints": Param(0.3, 0.0, 1.0, 0.05, "how sure a joint must be to be drawn"),
}


def load_network(  # noqa: PLR0913 - bound in the table but for the last two
    place: str, weights: tuple[str, ...], instead: tuple[str, ...], params: Mapping[str, Param],
    options: Mapping[str, Any], folder: Path, device: torch.device,
) -> Annotate:  # fmt: skip
    """The detector that the function at `place` (module.function) makes of its weights in `folder`.

    Parameters that are not given have their defaults. WrongWeights in one sentence where a file is not what
    its name says.
    """
    whole = all((folder / one).exists() for one in weights)
    files = [folder / one for one in (weights if whole else instead)]
    module, function = place.split(".")
    make = getattr(import_module(f"annotator.networks.{module}"), function)
    return partial(make(files, device, **options), **{name: one.default for name, one in params.items()})


def _network(  # noqa: PLR0913 - a row of the table
    shows: str, licence: str, place: str, *weights: str, instead: tuple[str, ...] = (),
    params: Mapping[str, Param] = NO_PARAMS, modules: tuple[str, ...] = (), **options: Any,
) -> Detector:  # fmt: skip
    load = partial(load_network, place, weights, instead, params, options)
    return Detector(
        shows, load=load, params=params, weights=weights, instead=instead, modules=modules, licence=licence
    )


def _styled(detector: Detector, style: str, shows: str | None = None) -> Detector:
    return replace(detector, shows=shows or detector.shows, preset={"style": style})


_PIDINET = _network(EDGES, NC, "pidinet.load", "table5_pidinet.pth", modules=AUXILIARY)
ONEFORMER = "segmentation.load_oneformer"
_openpose = partial(_network, SKELETONS, CMU, "openpose.load", modules=OPENPOSE)
_ADE = {"dataset": ADE20K, "side": 512}

NETWORKS: dict[str, Detector] = {
    "mlsd": _network(
        STRAIGHT, APACHE, "mlsd.load", "mlsd_large_512_fp32.pth", params=SEGMENTS, modules=AUXILIARY
    ),
    "pidinet": _styled(_PIDINET, "soft"),
    "pidinet_safe": _styled(_PIDINET, "safe"),
    "scribble_pidinet": _styled(_PIDINET, "scribble", STROKES),
    "lineart": _network(LINES, MIT, "lineart.load", "sk_model.pth", modules=AUXILIARY),
    "lineart_coarse": _network(LINES, MIT, "lineart.load", "sk_model2.pth", modules=AUXILIARY),
    "lineart_anime": _network(LINES, UNSTATED, "lineart.load_anime", "netG.pth", modules=AUXILIARY),
    "depth_anything_v2": _network(DEPTH, APACHE, "depth.load", DEPTH_ANYTHING),
    "dpt": _network(DEPTH, APACHE, "depth.load", DPT),
    "zoe": _network(DEPTH, MIT, "depth.load_zoe", "ZoeD_M12_N.pt", modules=(*AUXILIARY, "timm")),
    "bae": _network(NORMALS, MIT, "normalbae.load", "scannet.pt", modules=AUXILIARY),
    "from_depth": _network(
        NORMALS, APACHE, "depth.load_normals", DEPTH_ANYTHING, instead=(DPT,), params=RELIEF
    ),
    "oneformer_ade20k": _network(
        ADE_COLOURS, MIT, ONEFORMER, "oneformer_ade20k_swin_tiny", dataset=ADE20K, side=640
    ),
    "oneformer_coco": _network(
        COCO_COLOURS, MIT, ONEFORMER, "oneformer_coco_swin_large", dataset=COCO, side=800
    ),
    "upernet_ade20k": _network(ADE_COLOURS, MIT, "segmentation.load", "upernet-convnext-small", **_ADE),
    "segformer": _network(
        ADE_COLOURS, NVIDIA, "segmentation.load", "segformer-b0-finetuned-ade-512-512", **_ADE
    ),
    "vitpose": _network(
        SKELETONS, APACHE, "vitpose.load", "rtdetr_r18vd", "vitpose-base-simple", params=PEOPLE, modules=SCIPY
    ),
    "openpose": _openpose(BODY),
    "openpose_hand": _openpose(BODY, HANDS, parts=("hand",)),
    "openpose_face": _openpose(BODY, FACES, parts=("face",)),
    "openpose_full": _openpose(BODY, HANDS, FACES, parts=("hand", "face")),
}
