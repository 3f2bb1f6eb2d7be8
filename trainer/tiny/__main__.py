"""The command `python -m trainer.tiny`."""

from trainer.tiny.command import main

if __name__ == "__main__":
    raise SystemExit(main())
