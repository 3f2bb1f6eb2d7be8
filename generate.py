"""Pictures from the shell: drawings or photographs and a prompt in, PNG files out.

    python generate.py --image test_imgs/circle.png --prompt "cyan circle with brown background"
    python generate.py --batch-dir sketches --prompt "gold star with midnight blue background" --out outputs
    python generate.py --from outputs/circle_seed0.png --seed 7

Exit codes: 0; 2 with one sentence about what is wrong; 130 after Ctrl-C, finished pictures stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

# Flags are read before anything heavy is imported, so that --help answers at once.
from app.generate_flags import GenerateFlags, parse_flags
from common.memory import memory_sentence, peak_memory
from common.shell import DONE, USER_ERROR, run_command

if TYPE_CHECKING:
    from pathlib import Path

    from app.batch import BatchRunner, Generated, GenerationJob
    from ldm.models.diffusion.sampling_run import Step

MEMORY = "lower --resolution, or try --save-memory, and --dtype fp16 or bf16 on a GPU"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; what goes wrong is said in one sentence on stderr."""
    flags = parse_flags(argv, __doc__)
    finished: list[Generated] = []

    def stopped() -> str:
        kept = f"finished pictures stay ({len(finished)})" if finished else "no picture was finished"
        return f"stopped; {kept}"

    return run_command(lambda: _run(flags, finished), stopped=stopped, out_of_memory=MEMORY)


def _run(flags: GenerateFlags, finished: list[Generated]) -> int | str:
    """Make everything that is asked, noting each finished image in `finished` at once."""
    if flags.output.list:
        return _listing(flags.model.annotators)
    from app.batch import BadImage, BatchRunner
    from app.generate_request import plan_jobs

    output, keep = flags.output, flags.inputs.batch_dir is not None
    jobs, provenance = plan_jobs(flags)
    runner = BatchRunner(provenance, output.out, keep_finished=keep, save_maps=output.save_maps)
    failed: dict[str, str] = {}
    with _progress(jobs, quiet=output.json) as (on_step, show):
        for job in jobs:
            try:
                for one in runner.run(job, on_step):
                    finished.append(one)  # noted at once: Ctrl-C may come before the next
                    show(one.path)
            except BadImage as error:  # the others of a folder can still be made
                if len(jobs) == 1:
                    raise
                failed[job.images[0].as_posix()] = str(error)
                show(error)
    if output.json:
        sys.stdout.write(f"{_report(finished, failed, runner)}\n")
    else:
        sys.stderr.write(f"{_summary(finished, failed)}\n")
    return USER_ERROR if failed else DONE


@contextmanager
def _progress(
    jobs: Sequence[GenerationJob], *, quiet: bool
) -> Iterator[tuple[Callable[[Step], None], Callable[[object], None]]]:
    """What to call at each step, and with each path or error to show; no bars where nobody watches."""
    from tqdm import tqdm

    disable = True if quiet else None  # None: where stderr is no terminal
    total = sum(job.request.num_samples for job in jobs)
    images = tqdm(total=total, unit="picture", disable=True if total == 1 else disable)
    steps = tqdm(unit="step", leave=False, disable=disable)

    def on_step(step: Step) -> None:
        if step.index == 0:
            steps.reset(step.total)
        steps.update()

    def show(what: object) -> None:
        if isinstance(what, Exception):
            tqdm.write(str(what), file=sys.stderr)
            return
        images.update()
        if not quiet:
            tqdm.write(str(what), file=sys.stdout)

    with images, steps:
        yield on_step, show


def _report(finished: Sequence[Generated], failed: dict[str, str], runner: BatchRunner) -> str:
    """The result for programs."""
    pictures = [
        {
            "path": one.path.as_posix(),
            "seed": one.request.seed,
            "request": json.loads(one.request.to_json()),
            "seconds": one.seconds,
            "made": bool(one.seconds),
        }
        for one in finished
    ]
    report = {
        "pictures": pictures,
        "failed": failed,
        "source": json.loads(runner.provenance.to_json()),
        "load_seconds": runner.load_seconds,
        "peak_memory": peak_memory(),
    }
    return json.dumps(report, indent=1, ensure_ascii=False)


def _summary(finished: Sequence[Generated], failed: dict[str, str]) -> str:
    new = [sum(one.seconds.values()) for one in finished if one.seconds]
    counts = {"made": len(new), "there already": len(finished) - len(new), "failed": len(failed)}
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    if new:
        parts.append(f"{sum(new) / len(new):.1f} s a picture")
    return f"{', '.join(parts)}; {memory_sentence(peak_memory())}"


def _listing(folder: Path | None) -> str:
    from app.listing import control_lines
    from ldm.models.diffusion.samplers import SAMPLERS
    from ldm.modules.feature_cache import CACHE_POINTS

    lines = [*control_lines(folder), "samplers", *(f"  {name}" for name in SAMPLERS)]
    return "\n".join([*lines, "cuts for --reuse-every", *(f"  {name}" for name in CACHE_POINTS)])


if __name__ == "__main__":
    raise SystemExit(main())
