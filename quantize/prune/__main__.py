"""The command `python -m quantize.prune`."""

from tools.compress.prune import main

if __name__ == "__main__":
    raise SystemExit(main())
