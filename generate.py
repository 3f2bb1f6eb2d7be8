"""Pictures from the shell: drawings or photographs and a prompt in, PNG files out.

    python generate.py --image test_imgs/circle.png --prompt "cyan circle with brown background"
    python generate.py --batch-dir sketches --prompt "gold star with midnight blue background" --out outputs
    python generate.py --from outputs/circle_seed0.png --seed 7

Flags are read before anything heavy is imported, so that --help answers at once. Exit codes: 0; 2 with one
sentence about what is wrong; 130 after Ctrl-C, finished pictures stay.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from app.generate_flags import parse_args
from common.shell import USER_ERROR

if TYPE_CHECKING:
    from app.batch import Job, Made, Maker
    from app.provenance import Source

INTERRUPTED = 130  # 128 + SIGINT, as shells count
# Torch says it in other words for each kind of memory; on the CPU it is a plain RuntimeError.
OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "insufficient memory",  # OpenCV
    "can't allocate memory",
    "cannot allocate memory",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; what goes wrong is said in one sentence on stderr."""
    args = parse_args(argv, __doc__)
    made: list[Made] = []
    try:
        if args.list:
            print(_listing())
            return 0
        return _run(args, made)
    except KeyboardInterrupt:
        kept = f"finished pictures stay ({len(made)})" if made else "no picture was finished"
        return _say(f"stopped; {kept}", INTERRUPTED)
    except (ValueError, OSError) as error:
        return _say(_sentence(error))
    except Exception as error:  # everything but memory is a fault of the program: its traceback is needed
        if not _is_out_of_memory(error):
            raise
        return _say(
            "out of memory: lower --resolution, or try --save-memory, and --dtype fp16 or bf16 on a card"
        )


def _run(args: argparse.Namespace, made: "list[Made]") -> int:
    """Make everything that is asked, noting each finished picture in `made` at once."""
    from app.batch import BadPicture, Maker

    jobs, source = _plan(args)
    maker = Maker(source, args.out, keep_finished=args.batch_dir is not None, save_maps=args.save_maps)
    failed: dict[str, str] = {}
    with _progress(jobs, quiet=args.json) as (steps, say):
        for job in jobs:
            try:
                for one in maker.make(job, steps):
                    made.append(one)
                    say(one.path)
            except BadPicture as error:  # the others of a folder can still be made
                if len(jobs) == 1:
                    raise
                failed[job.images[0].as_posix()] = str(error)
                say(error, file=sys.stderr)
    _report(args, made, failed, maker)
    return USER_ERROR if failed else 0


def _plan(args: argparse.Namespace) -> "tuple[list[Job], Source]":
    """What is to be made from what, checked as far as that goes without the model."""
    from app.batch import Job, folder_jobs
    from app.generate_request import images_from_flags, recall, request_from_flags, source_from_flags
    from app.provenance import check_out

    if args.image and args.batch_dir:
        raise ValueError("--image and --batch-dir are two ways to name the pictures: give one of them")
    if args.batch_dir and args.out.resolve() == args.batch_dir.resolve():
        raise ValueError(f"--out {args.out} is the folder of the input pictures: choose another folder")
    args, base = recall(args)
    if args.batch_dir:
        fallback = args.prompt if args.prompt is not None else base.prompt if base else None
        if fallback is None and args.guess_mode:
            fallback = ""
        jobs = folder_jobs(args.batch_dir, lambda prompt: request_from_flags(args, base, prompt), fallback)
    else:
        request = request_from_flags(args, base)
        images = images_from_flags(args, len(request.controls))
        jobs = [Job("+".join(dict.fromkeys(path.stem for path in images)), images, request)]
    if not args.init and (args.mask or any(job.request.denoise < 1 for job in jobs)):
        raise ValueError("--mask and --denoise below 1 change an existing picture: give it by --init FILE")
    source = source_from_flags(args)
    check_out(
        args.out, [path for job in jobs for path in job.images], sum(job.request.num_samples for job in jobs)
    )
    return jobs, source


@contextmanager
def _progress(
    jobs: "list[Job]", *, quiet: bool
) -> "Iterator[tuple[Callable[..., None], Callable[..., None]]]":
    """Two functions, one to call at each step and one to print past the bars; no bars if nobody watches."""
    from tqdm import tqdm

    disable = True if quiet else None  # None: where stderr is no terminal
    total = sum(job.request.num_samples for job in jobs)
    pictures = tqdm(total=total, unit="picture", disable=True if total == 1 else disable)
    steps = tqdm(unit="step", leave=False, disable=disable)

    def on_step(step: Any) -> None:
        if step.index == 0:
            steps.reset(step.total)
        steps.update()

    def say(what: object, file: Any = sys.stdout) -> None:
        if file is sys.stdout:
            pictures.update()
        if not quiet or file is sys.stderr:
            tqdm.write(str(what), file=file)

    with pictures, steps:
        yield on_step, say


def _report(args: argparse.Namespace, made: "list[Made]", failed: dict[str, str], maker: "Maker") -> None:
    from common.memory import memory_sentence, peak_memory

    peak, new = peak_memory(), [one for one in made if one.seconds]
    if args.json:
        pictures = [
            {
                "path": one.path.as_posix(),
                "seed": one.request.seed,
                "request": json.loads(one.request.to_json()),
                "seconds": one.seconds,
                "made": bool(one.seconds),
            }
            for one in made
        ]
        report = {
            "pictures": pictures,
            "failed": failed,
            "source": json.loads(maker.source.to_json()),
            "load_seconds": maker.load_seconds,
            "peak_memory": peak,
        }
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    counts = {"made": len(new), "there already": len(made) - len(new), "failed": len(failed)}
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    if new:
        parts.append(f"{sum(sum(one.seconds.values()) for one in new) / len(new):.1f} s a picture")
    sys.stderr.write(f"{', '.join(parts)}; {memory_sentence(peak)}\n")


def _listing() -> str:
    from cldm.controls import CONTROLS
    from ldm.models.diffusion.samplers import SAMPLERS
    from ldm.modules.feature_cache import CACHE_POINTS

    lines = ["controls, and what their maps show (* has no detector here: give a map with --no-preprocess)"]
    for name, control in CONTROLS.items():
        lines.append(f"  {name + ('' if control.annotate else ' *'):16} {control.shows}")
    lines += ["samplers", *(f"  {name}" for name in SAMPLERS)]
    return "\n".join([*lines, "cuts for --reuse-every", *(f"  {name}" for name in CACHE_POINTS)])


def _sentence(error: Exception) -> str:
    """One line, whatever raised it; the system's own errors lose their number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


def _say(sentence: str, code: int = USER_ERROR) -> int:
    sys.stderr.write(sentence + "\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
