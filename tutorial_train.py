"""Train a control branch: without flags, the tiny model's on generated Fill50k data.

    python tutorial_train.py
    python tutorial_train.py --config models/cldm_v15.yaml --resume-path v1-5-pruned.ckpt --preset 16gb
    python tutorial_train.py --resume-from latest

docs/training.md has all flags in a table, docs/scaling.md the lines for several GPUs. Exit codes: 0; 2 with
one sentence about what is wrong; 130 after Ctrl-C or SIGTERM, the state is saved.
"""

from common.shell import run_command
from trainer.flags import parse_args


def main(argv: list[str] | None = None, prog: str = "tutorial_train.py", **defaults: object) -> int:
    """Run the command and return its exit code; what goes wrong is said in one sentence on stderr."""
    settings = parse_args(argv, __doc__, prog, **defaults)

    def act() -> int | str | None:
        from trainer.plan import make_plan  # brings torch: a wrong flag is told before
        from trainer.run import run, validate_data

        plan = make_plan(settings)  # flags and yaml together
        if settings.data.validate_data:
            return validate_data(plan)
        return "\n".join(map(str, run(plan))) or None

    return run_command(
        act,
        stopped="stopped at once; the last checkpoint is kept",
        out_of_memory="try --preset 16gb, 12gb or 8gb, --cache-latents or a lower --resolution",
    )


if __name__ == "__main__":
    raise SystemExit(main())
