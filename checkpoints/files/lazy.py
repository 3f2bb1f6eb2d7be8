"""The tensors of a file: mapped, and read or computed only when they are asked for.

Conversions are functions on state dicts; on lazy tensors the same functions convert files larger than memory.
Pages of a mapped file leave memory only with their mapping, so that a walk over a file maps it anew for each
piece: without that, reading 5.7 GB would look like, and compete like, 5.7 GB in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils import _pytree as pytree

from checkpoints.files.headers import Header, weights_in, wrapper_of

PIECE_BYTES = 1 << 27  # read between two mappings: 128 MiB, little beside 5.7 GB yet few openings of the file
ROWS_BYTES = PIECE_BYTES // 4  # of a large tensor that is changed: besides it there is its result


class MappedFile:
    """The tensors of one file, got from `read` again whenever they are needed after `release`."""

    def __init__(self, tensors: dict[str, Tensor], read: Callable[[], dict[str, Tensor]]) -> None:
        self._tensors: dict[str, Tensor] | None = tensors  # None while the file is not mapped
        self._read = read

    def lazy(self) -> dict[str, LazyTensor]:
        """All of them, by name."""
        return {
            name: LazyTensor(tensor.to("meta"), partial(self._get, name), frozenset([self]), tensor.nbytes)
            for name, tensor in (self._tensors or self._read()).items()
        }

    def release(self) -> None:
        """Give up the mapping; tensors that were handed out keep theirs."""
        self._tensors = None

    def _get(self, name: str) -> Tensor:
        if self._tensors is None:
            self._tensors = self._read()
        return self._tensors[name]


class LazyTensor:
    """Shape and dtype of a tensor, and how to get its values.

    Torch functions of it and its slices are lazy too; nothing is computed before `read`. sources: the files
    behind it; cost: bytes of them that `read` touches.
    """

    def __init__(
        self, meta: Tensor, read: Callable[[], Tensor], sources: frozenset[MappedFile], cost: int
    ) -> None:
        self.meta, self.read, self.sources, self.cost = meta, read, sources, cost
        self.shape, self.dtype, self.nbytes = meta.shape, meta.dtype, meta.nbytes

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """In another dtype."""
        return _deferred(Tensor.to, (self, dtype), {})

    def __len__(self) -> int:
        return len(self.meta)

    def __getitem__(self, index: Any) -> LazyTensor:
        return _deferred(Tensor.__getitem__, (self, index), {})

    @classmethod
    def __torch_function__(cls, function: Callable, _types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return _deferred(function, args, kwargs or {})


Values = Tensor | LazyTensor


def read_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """The tensors of the file `path` under its own names, without what trainers wrap them in.

    Mapped from it wherever its format allows that: then it must not be overwritten in place while they live;
    write beside it and rename. Raises ValueError for a dtype that this torch does not have.
    """
    if header.pickle:
        saved = weights_in(header.pickle.load())
        found = {str(name): one.detach() for name, one in saved.items() if isinstance(one, Tensor)}
    else:
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
    lacks = len(wrapper_of(found))
    return {name[lacks:]: one for name, one in found.items()}


def open_tensors(path: Path, header: Header) -> dict[str, Values]:
    """As `read_tensors`, but lazy where they can be mapped, for walks over all of the file."""
    tensors = read_tensors(path, header)
    if header.pickle and not header.pickle.mapped:  # of the old format, or packed: in memory already
        return tensors
    return MappedFile(tensors, lambda: read_tensors(path, header)).lazy()


def lazy(tensor: Values) -> LazyTensor:
    """A tensor that is in memory anyway as a lazy one, for what is done with it to be late."""
    if isinstance(tensor, LazyTensor):
        return tensor
    return LazyTensor(tensor.to("meta"), lambda: tensor, frozenset(), 0)  # no file, no cost


def read(tensor: Values) -> Tensor:
    """The tensor itself, read where it is lazy."""
    return tensor.read() if isinstance(tensor, LazyTensor) else tensor


def by_rows(change: Callable[..., Tensor], dtype: torch.dtype, *tensors: Values) -> Values:
    """`change` of tensors of one shape, value by value, into `dtype`; late where one of them is lazy.

    Large ones are read and changed some rows at a time, so that only the result is in memory as a whole.
    """
    late = [tensor for tensor in tensors if isinstance(tensor, LazyTensor)]
    if not late:
        return change(*tensors)
    cost, sources = sum(one.cost for one in late), frozenset().union(*(one.sources for one in late))
    meta = torch.empty(late[0].shape, dtype=dtype, device="meta")

    def compute() -> Tensor:
        if cost <= ROWS_BYTES or not meta.ndim:
            return change(*map(read, tensors))
        result = torch.empty(meta.shape, dtype=dtype)
        rows = max(1, len(result) * ROWS_BYTES // cost)  # as many as one piece has
        for start in range(0, len(result), rows):
            part = slice(start, start + rows)
            result[part] = change(*(read(tensor[part]) for tensor in tensors))
            release(sources)
        return result

    return LazyTensor(meta, compute, sources, cost)


def walk(named: Iterable[tuple[str, Values]]) -> Iterator[tuple[str, Tensor]]:
    """Each name with its tensor, read; who drops every tensor before the next holds a piece at most."""
    cost, sources = 0, frozenset()
    for name, tensor in named:
        if not isinstance(tensor, LazyTensor):
            yield name, tensor
            continue
        if cost and cost + tensor.cost > PIECE_BYTES:
            release(sources)
            cost, sources = 0, frozenset()
        cost, sources = cost + tensor.cost, sources | tensor.sources
        yield name, tensor.read()
    release(sources)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The values of `tensor` in order, as bytes; copied only where they are not in order already."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def release(sources: Iterable[MappedFile]) -> None:
    """Have all of them give up their mappings."""
    for source in sources:
        source.release()


def _deferred(function: Callable, args: tuple, kwargs: dict[str, Any]) -> LazyTensor:
    inputs = [one for one in pytree.tree_leaves(args) if isinstance(one, LazyTensor)]
    return LazyTensor(
        function(*pytree.tree_map_only(LazyTensor, lambda lazy: lazy.meta, args), **kwargs),
        lambda: function(*pytree.tree_map_only(LazyTensor, lambda lazy: lazy.read(), args), **kwargs),
        frozenset().union(*(one.sources for one in inputs)),
        sum(one.cost for one in inputs),
    )
