"""Train a control branch: without flags, the tiny model's on generated Fill50k data.

    python tutorial_train.py
    python tutorial_train.py --config models/cldm_v15.yaml --resume-path v1-5-pruned.ckpt --preset 16gb
    python tutorial_train.py --resume-from latest

docs/training.md has all flags in a table, docs/scaling.md the lines for several cards. Exit codes: 0; 2 with
one sentence about what is wrong; 130 after Ctrl-C or SIGTERM, the state is saved.
"""

import sys

from common.shell import USER_ERROR
from trainer.flags import parse_args

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: list[str] | None = None, prog: str = "tutorial_train.py", **defaults: object) -> int:
    """Run the command and return its exit code; what goes wrong is said in one sentence on stderr."""
    args = parse_args(argv, __doc__, prog, **defaults)
    from trainer.run import Stopped, run, validate_data

    try:
        if args.validate_data:
            return validate_data(args)
        for path in run(args):
            print(path)
    except Stopped as stopped:
        return _say(str(stopped), INTERRUPTED)
    except KeyboardInterrupt:
        return _say("stopped at once; the last checkpoint is kept", INTERRUPTED)
    except (ValueError, OSError, FloatingPointError) as error:
        return _say(_sentence(error), USER_ERROR)
    except RuntimeError as error:  # everything but memory is a fault of the program: its traceback is needed
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        return _say(
            "out of memory: try --preset 16gb, 12gb or 8gb, --cache-latents or a lower --resolution",
            USER_ERROR,
        )
    return 0


def _sentence(error: Exception) -> str:
    # A worker that reads data sends its whole traceback; the last line is what happened.
    last = str(error).strip().splitlines()[-1] if "DataLoader worker" in str(error) else str(error)
    return last.removeprefix(f"{type(error).__name__}: ")


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
