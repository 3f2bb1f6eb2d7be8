"""The command `python -m bench.tables`."""

from bench.tables.command import main

if __name__ == "__main__":
    raise SystemExit(main())
