"""The command `python -m quantize`."""

from tools.compress.quantize import main

if __name__ == "__main__":
    raise SystemExit(main())
