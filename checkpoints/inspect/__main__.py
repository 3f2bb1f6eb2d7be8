"""The command `python -m checkpoints.inspect`."""

from checkpoints.inspect.command import main

if __name__ == "__main__":
    raise SystemExit(main())
