"""The command `python -m scenes.things`."""

from scenes.things.art import main

if __name__ == "__main__":
    raise SystemExit(main())
