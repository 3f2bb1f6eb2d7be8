"""What a training run of a tiny model is told, beside how many steps each stage makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.flags import flag
from trainer.tiny.worlds import ShapesWorld, World


@dataclass(frozen=True)
class TinySettings:
    """out: folder of checkpoints, from which the same command goes on. world: what is drawn."""

    out: Path = flag(Path("runs/tiny"), "checkpoints, logs, weights")
    from_shipped: bool = flag(False, "begin with the weights the yaml names, not at random")
    vae_from: Path | None = flag(
        None, "weights whose autoencoder, of fewer latent channels, the new one begins with", metavar="FILE"
    )
    learning_rate: float | None = flag(None, "the highest of every stage asked for (default: its own)",
                                       metavar="X")  # fmt: skip
    keep: tuple[int, ...] = flag((), "of the control branch: also keep the average of these steps, in "
                                 "control-STEP.safetensors", nargs="*", metavar="STEP")  # fmt: skip
    cache: int = flag(8_000, "scenes whose latents are computed once")
    seed: int = flag(0, "of everything random")  # generators add the step, the sample, the stream
    workers: int = flag(1, "processes that draw pictures")  # drawing takes a core while the other trains
    world: World = ShapesWorld()


def claim(folder: Path, note: str, text: str, others: str) -> None:
    """Make `folder` and note in it what its checkpoints belong to; ValueError if they belong to `others`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / note
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise ValueError(f"{folder} holds checkpoints of {others}: name another folder, or delete it")
    file.write_text(text, encoding="utf-8")
