"""The command `python -m bench.step`."""

from bench.step.command import main

if __name__ == "__main__":
    raise SystemExit(main())
