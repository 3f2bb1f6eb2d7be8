"""What the lite branch saves beside the full one: weights, training memory, time to train and to denoise.

    python -m bench.speed.lite
    python -m bench.speed.lite --config models/tiny.yaml --resolution 128 --rounds 20

Weights are random: time and memory do not depend on them. Every round measures each kind once, one after the
other, so that whatever else the machine does meets all of them; the medians and their ratios are printed as a
table. A training step is loss, gradients and AdamW on ready latents and texts. Training memory is the bytes
of the branch's weights, gradients and optimizer states after such a step.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from cldm.cldm import ControlLDM

ROOT = Path(__file__).parents[2]
PLAIN, FULL, LITE, WITHIN = "U-Net alone", "full", "lite", "lite, into the encoder"
FLOOR = "next to nothing"  # a branch of a hundredth of the width: what the U-Net alone costs in training
MB, GIGA = 1e6, 1e9
LATENT_FACTOR = 8
TOKENS = 77
TIMESTEP = 500


class Bench:
    """One U-Net whose branch is exchanged, and what it is fed with.

    configs: by the kind of branch; they differ in that alone.
    """

    def __init__(self, configs: "Mapping[str, DictConfig]", resolution: int, batch: int, device: str) -> None:
        import torch

        from cldm.model import create_model
        from ldm.util import pick_device

        self.device = pick_device(device)
        self.model: ControlLDM = create_model(next(iter(configs.values())))
        del self.model.first_stage_model, self.model.cond_stage_model
        self.model.to(self.device).requires_grad_(False)
        for module in self.model.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = False  # of both kinds: recomputing is another trade
        self.branches = {name: _branch(config).to(self.device) for name, config in configs.items()}
        self.optimizers = {
            name: torch.optim.AdamW(one.parameters(), lr=1e-5) for name, one in self.branches.items()
        }
        unet, side = self.model.model.diffusion_model.config, resolution // LATENT_FACTOR
        self.x0 = torch.randn(batch, unet.in_channels, side, side, device=self.device)
        self.text = torch.randn(batch, TOKENS, unet.context_dim, device=self.device)
        self.hint = torch.rand(batch, 3, resolution, resolution, device=self.device)
        self.t = torch.tensor([TIMESTEP] * batch, device=self.device)

    def training_step(self, name: str) -> None:
        """One step of AdamW on the branch called `name`."""
        from trainer.losses import Noise, control_loss

        self.model.control_model = self.branches[name].requires_grad_(True)
        cond = {"c_crossattn": [self.text], "c_concat": [self.hint]}
        noise = Noise(self.t, self.x0.flip(2), self.x0)
        control_loss(self.model, self.x0, cond, noise).backward()
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=False)  # they stay, to be counted

    def denoising_step(self, name: str) -> Callable[[], Any]:
        """A step of sampling with the branch called `name`, its hint encoded beforehand, once a picture."""
        import torch

        residuals: Callable[[], list[Tensor] | None] = lambda: None  # noqa: E731
        into_encoder = False
        if name != PLAIN:
            branch = self.branches[name].requires_grad_(False)
            into_encoder = getattr(branch, "into_encoder", False)
            with torch.inference_mode():
                features = branch.encode_hint(self.hint)
            residuals = lambda: branch(self.x0, features, self.t, self.text, encoded=True)  # noqa: E731

        def step() -> None:
            with torch.inference_mode():
                unet = self.model.model.diffusion_model
                unet(self.x0, self.t, self.text, control=residuals(), into_encoder=into_encoder)

        return step

    def training_bytes(self, name: str) -> int:
        """Of weights, gradients and optimizer states, after a training step."""
        branch, optimizer = self.branches[name], self.optimizers[name]
        states = [value for state in optimizer.state.values() for value in state.values()]
        gradients = [value.grad for value in branch.parameters()]
        return sum(tensor.nbytes for tensor in (*branch.parameters(), *gradients, *states))

    def seconds(self, run: Callable[[], Any]) -> float:
        """How long `run` takes."""
        self._wait()
        start = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


def _branch(config: "DictConfig") -> "nn.Module":
    from omegaconf import OmegaConf

    from ldm.util import instantiate_from_config

    stage = config.model.params.control_stage_config
    return instantiate_from_config(OmegaConf.to_container(stage, resolve=True))


def kinds(config: Path) -> "dict[str, DictConfig]":
    """The yaml's settings with each kind of branch that is compared."""
    from omegaconf import OmegaConf

    from cldm.model import with_branch

    found = {FULL: with_branch(config, "full"), LITE: with_branch(config, "lite")}
    place = "model.params.control_stage_config.params.lite"
    for name, settings in ((WITHIN, {"into_encoder": True}), (FLOOR, {"width": 0.01, "kernel": 0})):
        found[name] = with_branch(config, "lite")
        OmegaConf.update(found[name], place, settings, merge=False, force_add=True)
    return found


def measure(bench: Bench, rounds: int) -> dict[str, dict[str, float]]:
    """By kind: weights, training bytes, arithmetic of a training step, median seconds of either step."""
    from torch.utils.flop_counter import FlopCounterMode
    from tqdm import tqdm

    training = {name: [] for name in bench.branches}
    denoising = {name: [] for name in (PLAIN, *bench.branches)}
    counters = {name: FlopCounterMode(display=False) for name in training}
    for name, counter in tqdm(counters.items(), desc="warming up", disable=None):
        with counter:
            bench.training_step(name)
    for _ in tqdm(range(rounds), desc="rounds", disable=None):
        for name, times in training.items():
            times.append(bench.seconds(lambda name=name: bench.training_step(name)))
        for name, times in denoising.items():
            times.append(bench.seconds(bench.denoising_step(name)))
    rows = {PLAIN: {"denoise": statistics.median(denoising[PLAIN])}}
    for name, branch in bench.branches.items():
        rows[name] = {
            "weights": sum(value.numel() for value in branch.parameters()),
            "bytes": bench.training_bytes(name),
            "flops": counters[name].get_total_flops(),
            "train": statistics.median(training[name]),
            "denoise": statistics.median(denoising[name]),
        }
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows with their ratios to the full branch, and of denoising to the U-Net alone."""
    full, plain = rows[FULL], rows[PLAIN]
    lines = [
        "| | weights | of full | training memory, MB | of full | training step, GFLOP | s | full takes "
        "| denoising step, s | of U-Net alone |",
        "|---" * 10 + "|",
        f"| {PLAIN} | | | | | | | | {plain['denoise']:.3f} | 1.00 x |",
    ]
    for name, row in rows.items():
        if name != PLAIN:
            lines.append(
                f"| {name} | {row['weights']:,} | {row['weights'] / full['weights']:.1%} "
                f"| {row['bytes'] / MB:,.1f} | {row['bytes'] / full['bytes']:.1%} "
                f"| {row['flops'] / GIGA:,.1f} | {row['train']:.3f} | {full['train'] / row['train']:.2f} x "
                f"| {row['denoise']:.3f} | {row['denoise'] / plain['denoise']:.3f} x |"
            )
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed.lite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, default=ROOT / "models/cldm_v15.yaml", help="yaml of the model")
    add("--resolution", type=int, default=512, help="side of the picture, pixels (default: %(default)s)")
    add("--batch", type=int, default=1, help="pictures a step (default: %(default)s)")
    add("--rounds", type=int, default=3, help="measurements of each kind (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 2 with a sentence about what is wrong."""
    args = parse_args(argv)
    try:
        if min(args.rounds, args.batch, args.resolution) < 1 or args.resolution % 64:
            raise ValueError(
                f"{args.rounds} rounds of {args.batch} at {args.resolution} pixels: give 1 or more, and "
                "pixels in steps of 64"
            )
        bench = Bench(kinds(args.config), args.resolution, args.batch, args.device)
        rows = measure(bench, args.rounds)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    import torch

    print(
        f"{args.config.name}, batch {args.batch}, {args.resolution} pixels, {bench.device}, "
        f"{torch.get_num_threads()} threads, medians of {args.rounds}"
    )
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
