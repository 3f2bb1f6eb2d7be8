"""CUDA graphs: a network's step is recorded once for each shape, then replayed with one call to the GPU.

Of a step's many small kernels none is then launched by Python. Inputs are copied into the tensors that the
recording reads, outputs out of those it writes. Weights must stay where they are: not for `save_memory`,
which moves them.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

KEPT = 4  # recordings of a network: image sizes, with and without control
WARM_UPS = 3  # libraries and Triton choose their kernels in the first calls, which cannot be recorded

Replay = Callable[[list[Tensor]], Any]


class Graphed:
    """Calls of `function` on tensors, nested as they like, replayed; for inference alone.

    Calls that differ in a shape, a dtype, a device or in anything that is no tensor have recordings of their
    own; beyond `KEPT` the one that was used least recently goes. Threads take turns.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._recorded: OrderedDict[Any, Replay] = OrderedDict()
        self._turn = threading.Lock()  # a recording has one set of inputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `function` returns, in new tensors."""
        leaves, tree = pytree.tree_flatten((args, kwargs))  # residuals come as lists, caches not at all
        places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[index] for index in places]
        key = (str(tree), *(_kind(leaf) for leaf in leaves))

        def call(given: list[Tensor]) -> Any:
            for index, tensor in zip(places, given, strict=True):
                leaves[index] = tensor
            again, named = pytree.tree_unflatten(leaves, tree)
            return self.function(*again, **named)

        with self._turn, torch.inference_mode():
            if key not in self._recorded:
                while len(self._recorded) >= KEPT:
                    self._recorded.popitem(last=False)
                self._recorded[key] = record_graph(call, tensors)
            self._recorded.move_to_end(key)
            return self._recorded[key](tensors)


def use_graphs(networks: Iterable[nn.Module]) -> None:
    """Let calls of `networks` (U-Net, control branches) be replayed from now on, hooks and all.

    Raises ValueError in one sentence for a network that is not on a CUDA device.
    """
    networks = list(networks)
    for network in networks:
        place = next(network.parameters()).device
        if place.type != "cuda":
            words = f"need a network on a CUDA device, this one is on {place}: leave them out"
            raise ValueError(f"CUDA graphs {words}")
    for network in networks:
        # Where torch puts a compiled call, which `network(...)` then takes; keys and attributes stay.
        network._compiled_call_impl = Graphed(network._call_impl)


def record_graph(function: Callable[[list[Tensor]], Any], example: list[Tensor]) -> Replay:
    """`function` as a CUDA graph over copies of the tensors in `example`."""
    inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in example]
    with torch.cuda.device_of(inputs[0]):
        beside = torch.cuda.Stream()  # warm-ups must not be on the stream that is recorded
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                function(inputs)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=_pool(inputs[0].device)):
            outputs = function(inputs)

    def replay(given: list[Tensor]) -> Any:
        torch._foreach_copy_(inputs, given)
        graph.replay()  # the next one overwrites the outputs: hence copies
        return pytree.tree_map_only(Tensor, torch.clone, outputs)

    return replay


@functools.cache
def _pool(_: torch.device) -> tuple[int, int]:
    """Of memory, for all recordings on a GPU: what lies between a step's inputs and outputs is done with."""
    return torch.cuda.graph_pool_handle()


def _kind(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf
