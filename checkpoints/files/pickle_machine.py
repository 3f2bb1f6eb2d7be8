"""What a pickle of tensors describes, followed on paper: no object of a library is made, nothing is called.

A pickle is a program for a stack machine. This is such a machine with the operations that `torch.save` writes
and no other. A name in the pickle stays a name; to "call" it gives another stand-in, but for the few that
make tensors and dictionaries. So a hostile pickle can at most describe nonsense. torch is not needed.
"""

from __future__ import annotations

import pickle
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from checkpoints.files.kinds import printable

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


class Storage(NamedTuple):
    """A block of numbers beside the pickle. itemsize: bytes an element of its dtype."""

    key: str
    dtype: str
    itemsize: int
    count: int

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.count * self.itemsize


class Pickled(NamedTuple):
    """A tensor as a pickle describes it; dtype as safetensors writes it."""

    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    storage: Storage


class Named(NamedTuple):
    """Stands for whatever a name means, and for whatever calling that would have made."""

    name: str


@dataclass(frozen=True)
class Walk:
    """What a pickle describes. names: all that it asked for, dotted, under today's spelling."""

    saved: Any
    names: frozenset[str]
    storages: tuple[Storage, ...]


def walk(file: BinaryIO) -> Walk:
    """Follow the pickle that begins at the place of `file`, which ends behind it.

    Raises pickle.UnpicklingError for operations and orders that torch's own files never hold, and almost any
    exception for bytes without sense.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(file):
        machine.step(opcode.name, argument)
    if len(machine.stack) != 1 or machine.marks:
        raise pickle.UnpicklingError("it leaves more than one object")
    return Walk(machine.stack.pop(), frozenset(machine.names), tuple(machine.storages.values()))


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()
        self.storages: dict[str, Storage] = {}

    def step(self, operation: str, argument: Any) -> None:
        if operation in CONSTANTS:
            self.stack.append(CONSTANTS[operation]())
        elif operation in PUSHED:
            self.stack.append(argument)
        elif operation in OPERATIONS:
            OPERATIONS[operation](self, argument)
        elif operation not in ("PROTO", "STOP"):
            raise pickle.UnpicklingError(f"it uses the operation {operation}, which torch never writes")

    def name(self, pair: str) -> None:
        module, _, name = pair.partition(" ")
        # The old pickle protocol writes Python 2's names; torch looks them up under today's.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.names.add(f"{module}.{name}")
        self.stack.append(Named(f"{module}.{name}"))

    def mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def take_since_mark(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append(tuple(items))

    def take(self, count: int) -> None:
        items = tuple(self.stack.pop() for _ in range(count))
        self.stack.append(items[::-1])

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Named:
            raise pickle.UnpicklingError("it appends to what is no list")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, Named):
            raise pickle.UnpicklingError("it sets entries of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # To hash a tuple nested a million deep would end the whole process.
            if type(key) not in PLAIN and not (type(key) is tuple and all(type(one) in PLAIN for one in key)):
                raise pickle.UnpicklingError("a key of its dictionaries is neither text nor a number")
            if type(target) is dict:
                target[key] = value

    def make(self, _: None) -> None:
        arguments, maker = self.stack.pop(), self.stack.pop()
        if type(maker) is not Named or type(arguments) is not tuple:
            raise pickle.UnpicklingError("it calls what is no name")
        if maker.name in TENSOR_MAKERS:
            made = _tensor(*arguments)
        elif maker.name in PARAMETER_MAKERS:
            made = arguments[0]
        else:
            made = {} if maker.name in DICTIONARIES else maker
        self.stack.append(made)

    def set_state(self, _: None) -> None:
        self.stack.pop()
        if type(self.stack[-1]) not in (dict, Named):
            raise pickle.UnpicklingError("it sets the state of what is no object")

    def store(self, _: None) -> None:
        reference = self.stack.pop()
        if type(reference) is tuple and reference[:1] == ("module",):  # the old format adds its source
            self.stack.append(reference[1])
            return
        kind, kind_of_data, key, _location, count = reference[:5]  # the old format adds a view, None
        if kind != "storage" or type(kind_of_data) is not Named or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("it refers to data that is no tensor's")
        storage = Storage(str(key), *_dtype(kind_of_data), count)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError(f"it describes its data {printable(storage.key)} in two ways")
        self.stack.append(storage)


def _tensor(storage: Storage, offset: int, shape: tuple, stride: tuple, *rest: Any) -> Pickled:
    numbers = (offset, *shape, *stride)
    if type(storage) is not Storage or len(shape) != len(stride) or any(type(n) is not int for n in numbers):
        raise pickle.UnpicklingError("a tensor of it is described in a way that torch never writes")
    own = rest[OWN_DTYPE] if len(rest) > OWN_DTYPE and type(rest[OWN_DTYPE]) is Named else None
    dtype, itemsize = _dtype(own) if own else (storage.dtype, storage.itemsize)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if min(numbers) < 0 or (0 not in shape and (last + 1) * itemsize > storage.nbytes):
        raise pickle.UnpicklingError(f"a tensor of shape {list(shape)} goes beyond its data")
    return Pickled(dtype, itemsize, shape, storage)


def _dtype(name: Named) -> tuple[str, int]:
    short = name.name.rpartition(".")[2].removesuffix("Storage")
    if short not in DTYPES:
        raise pickle.UnpicklingError(f"its data is {printable(name.name)}, which is no plain tensor's")
    return DTYPES[short]


PLAIN = {str, bytes, int, float, bool, type(None), Named}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
PUSHED = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": _Machine.name,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.take_since_mark,
    "TUPLE1": lambda machine, _: machine.take(1),
    "TUPLE2": lambda machine, _: machine.take(2),
    "TUPLE3": lambda machine, _: machine.take(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "REDUCE": _Machine.make,
    "NEWOBJ": _Machine.make,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.store,
    "BINPUT": lambda machine, place: machine.memo.__setitem__(place, machine.stack[-1]),
    "LONG_BINPUT": lambda machine, place: machine.memo.__setitem__(place, machine.stack[-1]),
    "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
}
