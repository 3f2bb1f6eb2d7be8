"""Train a control branch on several GPUs or machines: tutorial_train.py with one process a GPU.

    python tutorial_train_dist.py --devices 8 --config models/cldm_v15.yaml --resume-path v1-5-pruned.ckpt

Flags are those of tutorial_train.py; docs/scaling.md has the lines for torchrun and SLURM.
"""

import tutorial_train


def main(argv: list[str] | None = None) -> int:
    """As `tutorial_train.main`, on all GPUs that there are unless told otherwise."""
    return tutorial_train.main(argv, "tutorial_train_dist.py", strategy="ddp", devices=-1)


if __name__ == "__main__":
    raise SystemExit(main())
