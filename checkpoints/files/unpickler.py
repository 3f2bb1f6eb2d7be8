"""What a pickle of tensors describes: Python's own unpickler, in which no name means anything.

A pickle is a program for a stack machine. Here only the operations that `torch.save` writes are known to it,
and a name stays a name: to "call" it gives another stand-in, but for the few that make tensors and
dictionaries. So a hostile pickle can at most describe nonsense. torch's own restricted unpickler cannot
serve: it takes the memory that a pickle claims and hashes whatever is a key. torch is not needed.
"""

from __future__ import annotations

import pickle
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from common.shell import printable

# Storage classes and dtypes of torch -> dtype as safetensors writes it, and bytes an element.
DTYPES = {
    "Double": ("F64", 8), "Float": ("F32", 4), "Half": ("F16", 2), "BFloat16": ("BF16", 2),
    "Long": ("I64", 8), "Int": ("I32", 4), "Short": ("I16", 2), "Char": ("I8", 1), "Byte": ("U8", 1),
    "Bool": ("BOOL", 1), "Untyped": ("U8", 1), "ComplexFloat": ("C64", 8), "ComplexDouble": ("C128", 16),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1), "float8_e8m0fnu": ("F8_E8M0", 1),
    "uint16": ("U16", 2), "uint32": ("U32", 4), "uint64": ("U64", 8),
}  # fmt: skip
TENSOR_MAKERS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
PARAMETER_MAKERS = {f"torch._utils._rebuild_parameter{kind}" for kind in ("", "_with_state")}
OWN_DTYPE = 2  # place among the further arguments of _rebuild_tensor_v3
DICTIONARIES = {
    "collections.OrderedDict",
    "collections.Counter",
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
}
# What torch makes for real of what fills it: its items are hashed, and a number claims so many bytes.
FILLED_BY_TORCH = {"builtins.set", "builtins.bytearray", "collections.Counter", "collections.OrderedDict"}
# The operations that torch writes. Python's unpickler is taken, not that in C: there the memo is an array as
# long as its highest number, so that a pickle of ten bytes could claim gigabytes.
WRITTEN_BY_TORCH = """
    PROTO STOP GLOBAL MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    SHORT_BINSTRING EMPTY_LIST EMPTY_TUPLE EMPTY_SET TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM
    SETITEMS REDUCE BUILD BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET
"""
CODES = [ord(one.code) for one in pickletools.opcodes if one.name in WRITTEN_BY_TORCH.split()]


class Storage(NamedTuple):
    """A block of numbers beside the pickle. itemsize: bytes an element of its dtype."""

    key: str
    dtype: str
    itemsize: int
    count: int  # elements, as the pickle claims; held against the file by who reads it

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.count * self.itemsize


class DescribedTensor(NamedTuple):
    """A tensor as a pickle describes it; dtype as safetensors writes it."""

    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    storage: Storage


class Described(dict):
    """A dictionary of the pickle; its attributes, such as the versions in a state dict, are passed over."""

    def __setitem__(self, key: Any, value: Any) -> None:
        _check_key(key)
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        if type(state) is not Described:  # torch would take pairs too, whose keys nobody has looked at
            raise pickle.UnpicklingError("it sets the state of a dictionary in a way that torch never writes")


@dataclass(frozen=True)
class Named:
    """Stands for whatever a name means, and for whatever calling or changing that would have made."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        """A description of what it makes, where that is a tensor or a dictionary."""
        if self.name in TENSOR_MAKERS:
            return _tensor(*arguments)
        if self.name in PARAMETER_MAKERS:
            return arguments[0]  # a parameter is its tensor
        if self.name in FILLED_BY_TORCH:
            _check_filling(arguments, pairs=self.name == "collections.OrderedDict")
        return Described() if self.name in DICTIONARIES else self

    def __setstate__(self, _state: Any) -> None: ...

    def __setitem__(self, _key: Any, _value: Any) -> None: ...

    def extend(self, _items: Any) -> None:
        """Nothing is kept."""

    append = extend


class _Operations(dict[int, Callable]):
    def __missing__(self, code: int) -> Callable:
        name = pickletools.code2op[chr(code)].name
        raise pickle.UnpicklingError(f"it uses the operation {name}, which torch never writes")


class DescribingUnpickler(pickle._Unpickler):
    """Follows one pickle of `file`, which ends behind it.

    names: all that it asked for, dotted, under today's spelling. `load` raises pickle.UnpicklingError for
    what torch's own files never hold, and almost any exception for bytes without sense.
    """

    dispatch = _Operations(
        {code: pickle._Unpickler.dispatch[code] for code in CODES}
        | {pickle.NEWOBJ[0]: pickle._Unpickler.load_reduce}
        | {pickle.EMPTY_DICT[0]: lambda self: self.append(Described())}
    )

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self.names: set[str] = set()  # held against known libraries before torch may load
        self.storages: dict[str, Storage] = {}  # by key: two tensors may share one

    def find_class(self, module: str, name: str) -> Named:
        """The name alone. Old protocols write Python 2's, which torch looks up under today's."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.names.add(f"{module}.{name}")  # also of what is never called
        return Named(f"{module}.{name}")

    def persistent_load(self, reference: Any) -> Any:
        """What a reference to data beside the pickle describes."""
        if type(reference) is tuple and reference[:1] == ("module",):  # the old format adds its source
            return reference[1]
        kind, kind_of_data, key, _location, count = reference[:5]  # the old format adds a view, None
        types = type(kind_of_data), type(count), type(key) in (str, int)
        if kind != "storage" or types != (Named, int, True) or count < 0:
            raise pickle.UnpicklingError("it refers to data that is no tensor's")
        storage = Storage(str(key), *_dtype(kind_of_data), count)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError(f"it describes its data {printable(storage.key)} in two ways")
        return storage


def _tensor(storage: Storage, offset: int, shape: tuple, stride: tuple, *rest: Any) -> DescribedTensor:
    numbers = (offset, *shape, *stride)
    if type(storage) is not Storage or len(shape) != len(stride) or any(type(n) is not int for n in numbers):
        raise pickle.UnpicklingError("a tensor of it is described in a way that torch never writes")
    own = rest[OWN_DTYPE] if len(rest) > OWN_DTYPE and type(rest[OWN_DTYPE]) is Named else None
    dtype, itemsize = _dtype(own) if own else (storage.dtype, storage.itemsize)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if min(numbers) < 0 or (0 not in shape and (last + 1) * itemsize > storage.nbytes):
        raise pickle.UnpicklingError(f"a tensor of shape {list(shape)} goes beyond its data")
    return DescribedTensor(dtype, itemsize, shape, storage)


def _check_key(key: Any) -> None:
    # To hash a tuple nested a million deep would end the whole process.
    if type(key) not in PLAIN and not (type(key) is tuple and all(type(one) in PLAIN for one in key)):
        raise pickle.UnpicklingError("a key of its dictionaries is neither text nor a number")


def _check_filling(arguments: tuple, *, pairs: bool) -> None:
    for filling in arguments:
        if type(filling) is int:
            raise pickle.UnpicklingError("it asks for memory by a number")
        if type(filling) in (list, tuple):
            for one in filling:
                _check_key(one[0] if pairs else one)


def _dtype(name: Named) -> tuple[str, int]:
    short = name.name.rpartition(".")[2].removesuffix("Storage")
    if short not in DTYPES:
        raise pickle.UnpicklingError(f"its data is {printable(name.name)}, which is no plain tensor's")
    return DTYPES[short]


PLAIN = {str, bytes, int, float, bool, type(None), Named}
