"""Smaller models by leaving weights out: the command `python -m quantize.prune` under a script's name.

python tool_prune.py --help
"""

from tools.compress.prune import main

if __name__ == "__main__":
    raise SystemExit(main())
