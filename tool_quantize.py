"""Smaller and faster models by fewer bits: the command `python -m quantize` under a script's name.

python tool_quantize.py --help
"""

from tools.compress.quantize import main

if __name__ == "__main__":
    raise SystemExit(main())
