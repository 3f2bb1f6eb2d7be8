"""What a run hands out: the trained branch under the original names and as a folder of diffusers.

On request it goes to the model hub, with a model card that shows the run's last images.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from checkpoints.diffusers.write import write_part
from checkpoints.files.write import write_weights
from checkpoints.names.diffusers import COMPONENTS
from cldm.cldm import ControlNet

FILE = "control"  # its suffix says the format
METADATA = {"made_by": "tutorial_train.py"}  # what safetensors files say of themselves
BRANCH = "control_model."
LAYOUT_PART = "controlnet"  # entry of diffusers' parts
CARD, CARD_IMAGES = "README.md", "images"  # where the hub looks for them
TEMPLATE = Path(__file__).with_name("card.md")  # of the model card
SHOWN = 4  # images on the card
NOT_UPLOADED = ["checkpoint-*", "*.partial", "*.partial/*", "logs/*", "image_log/*", "*.lock"]


def export_branch(
    branch: nn.Module, learned: Mapping[str, Tensor], params: Mapping[str, Any], out: Path, suffix: str
) -> list[Path]:
    """Write what was learned into `out`; returns the files, the original form first.

    learned: by the names of a whole model; params: its yaml parameters. The layout of diffusers is only for a
    full branch, and holds nothing else that was trained beside it. Errors as `write_weights`.
    """
    state = {f"{BRANCH}{name}": value for name, value in branch.state_dict().items()}
    state = {name: value.detach().cpu().contiguous() for name, value in {**state, **learned}.items()}
    written = [write_weights(out / f"{FILE}.{suffix}", state, metadata=METADATA)]
    if isinstance(branch, ControlNet):  # diffusers has no other kind
        own = {name.removeprefix(BRANCH): value for name, value in state.items() if name.startswith(BRANCH)}
        write_part(out, LAYOUT_PART, COMPONENTS["controlnet"].to_diffusers(own), params)
        written += [out / "config.json", out / "diffusion_pytorch_model.safetensors"]
    return written


def write_card(out: Path, about: Mapping[str, Any], images: Sequence[Path]) -> Path:
    """Write the model card with the last of `images` into `out`; returns its path.

    about: lines of the card's table; `base` is named above it too.
    """
    shown = []
    for path in list(images)[-SHOWN:]:
        (out / CARD_IMAGES).mkdir(exist_ok=True)
        shown.append(shutil.copyfile(path, out / CARD_IMAGES / path.name).relative_to(out))
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in about.items())
    linked = "\n".join(f"![{path.stem}]({path.as_posix()})" for path in shown)
    base = about.get("base", "Stable Diffusion")
    text = TEMPLATE.read_text("utf-8")
    text = text.format(name=out.resolve().name, base=base, rows=rows, images=linked)
    (out / CARD).write_text(text, encoding="utf-8")
    return out / CARD


def push(out: Path, repository: str | None, token: str | None) -> str:
    """Upload the result in `out` to the hub; returns the repository's address.

    repository: name or owner/name, None for the folder's own. Raises ConnectionError in one sentence when
    the hub refuses or cannot be reached; the files in `out` stay.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(token=token)
    name = repository or out.resolve().name  # diffusers' default
    try:
        made = api.create_repo(name, exist_ok=True)  # a second run uploads over the first
        told = {"ignore_patterns": NOT_UPLOADED, "commit_message": "Trained control branch"}
        api.upload_folder(repo_id=made.repo_id, folder_path=out, **told)
    except (HfHubHTTPError, LocalTokenNotFoundError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]  # the hub adds request ids and links
        words = f"check --hub-token and --hub-model-id: {reason}; the result stays in {out}"
        raise ConnectionError(f"{name} was not uploaded, {words}") from error
    return str(made)
