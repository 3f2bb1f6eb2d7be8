"""Work shared out to several processes of torch.distributed: gloo on CPUs, nccl on GPUs.

What each computes is written where the others find it; nothing but the end is waited for together.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.shell import MISTAKES, USER_ERROR, sentence

MISTAKE = "mistake"  # the file that tells the parent what a process stopped at


def spread(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(rank, world, *arguments)` in `count` processes; of one, here.

    work: a function of a module, as its name travels. ValueError with the sentence of the first mistake; the
    other processes are ended then.
    """
    if count < 1:
        raise ValueError(f"processes={count}: 1 or more")
    if count == 1:
        work(0, 1, *arguments)
        return
    from torch import multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        try:
            multiprocessing.spawn(_enter, (count, folder, work, arguments), nprocs=count)
        except multiprocessing.ProcessExitedException:
            told = Path(folder, MISTAKE)
            if not told.exists():  # killed from outside, such as for its memory
                raise ChildProcessError("a process was ended by the system: try fewer --processes") from None
            raise ValueError(told.read_text()) from None


def _enter(rank: int, world: int, folder: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch
    from torch import distributed

    with_gpus = torch.cuda.device_count() >= world
    if with_gpus:
        torch.cuda.set_device(rank)
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    place = f"file://{folder}/meeting"
    distributed.init_process_group("nccl" if with_gpus else "gloo", place, rank=rank, world_size=world)
    try:
        work(rank, world, *arguments)
        distributed.barrier()
    except MISTAKES as error:
        Path(folder, MISTAKE).write_text(sentence(error))
        os._exit(USER_ERROR)  # the others must not be waited for
    distributed.destroy_process_group()
