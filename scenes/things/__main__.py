"""The command `python -m scenes.things`."""

from scenes.things.command import main

if __name__ == "__main__":
    raise SystemExit(main())
