"""Hands a trained branch to the model hub: a model card with pictures, and the upload."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"
PICTURES = "images"
SHOWN = 4  # pictures on the card
NOT_UPLOADED = ["checkpoint-*", "*.partial", "logs/*", "image_log/*", "*.lock"]


def write_card(out: Path, about: Mapping[str, Any], pictures: Sequence[Path]) -> Path:
    """Write the model card with the last of `pictures` into `out`; returns its path.

    about: lines of the card's table; `base` and `prompts` are used apart.
    """
    shown = []
    for path in list(pictures)[-SHOWN:]:
        (out / PICTURES).mkdir(exist_ok=True)
        shown.append(shutil.copyfile(path, out / PICTURES / path.name).relative_to(out))
    tags = ["controlnet", "stable-diffusion", "diffusers", "image-to-image"]
    rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in about.items()]
    lines = [
        "---", "library_name: diffusers", "pipeline_tag: image-to-image", "tags:",
        *(f"- {tag}" for tag in tags), "---", "",
        f"# {out.resolve().name}", "",
        f"A ControlNet branch for `{about.get('base', 'Stable Diffusion')}`.", "",
        "| setting | value |", "|---|---|", *rows, "",
        "Load the folder with `ControlNetModel.from_pretrained`;",
        "`control.safetensors` has the original names.", "",
        *(f"![{path.stem}]({path.as_posix()})" for path in shown), "",
    ]  # fmt: skip
    card = out / CARD
    card.write_text("\n".join(lines), encoding="utf-8")
    return card


def push(out: Path, repository: str | None, token: str | None) -> str:
    """Upload the result in `out` to the hub; returns the repository's address.

    repository: name or owner/name, None for the folder's own. Raises ConnectionError in one sentence when
    the hub refuses or cannot be reached; the files in `out` stay.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(token=token)
    name = repository or out.resolve().name
    try:
        made = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=out, ignore_patterns=NOT_UPLOADED,
            commit_message="Trained control branch",
        )  # fmt: skip
    except (HfHubHTTPError, LocalTokenNotFoundError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(
            f"{name} was not uploaded, check --hub-token and --hub-model-id: {reason}; "
            f"the result stays in {out}"
        ) from error
    return str(made)
