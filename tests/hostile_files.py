"""Files that wish us ill, made by hand: pickles in the containers of torch.save, and safetensors headers."""

import json
import pickle
import struct
import zipfile

import torch

from checkpoints.files.pickles import describe_pickle

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how torch's old format begins
SYSTEM = {
    "protocol_version": PROTOCOL,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def text(words):
    """The operation that pushes a text."""
    data = words.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def storage(key="0", count=4, kind="FloatStorage"):
    """The operations that push a reference to data."""
    return (b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
            + b"J" + struct.pack("<i", count) + b"tQ")  # fmt: skip


def tensor(shape=(4,), stride=(1,), offset=0, data=None):
    """The operations that push a tensor."""
    numbers = [b"(" + b"".join(b"J" + struct.pack("<i", n) for n in row) + b"t" for row in (shape, stride)]
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + (data or storage()) + b"J" + struct.pack("<i", offset)
            + numbers[0] + numbers[1] + b"\x89ccollections\nOrderedDict\n)RtR")  # fmt: skip


def saved(**operations):
    """The pickle of a dictionary: key -> operations that push its value."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in operations.items()) + b"u."


def write_zip(path, pickled, data=None, compression=zipfile.ZIP_STORED):
    """The pickle in today's container; data: member -> bytes, by default four floats."""
    data = {"data/0": struct.pack("<4f", *range(4))} if data is None else data
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in {**data, "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def write_legacy(path, pickled, data=None):
    """The pickle in the container from before torch 1.6; data: what follows the keys."""
    data = struct.pack("<q4f", 4, *range(4)) if data is None else data
    head = b"".join(pickle.dumps(one, protocol=2) for one in (MAGIC, PROTOCOL, SYSTEM))
    pickled = pickled.replace(b"tQ", b"NtQ")  # references to data had one place more: a view, or None
    path.write_bytes(head + pickled + pickle.dumps(["0"], protocol=2) + data)
    return path


CONTAINERS = {"zip": write_zip, "legacy": write_legacy}


def write_safetensors(path, header, data=b"", length=None):
    """A safetensors file with this header, a dictionary or bytes as they are; length: what it claims."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(shape=(1,), start=0, end=4, dtype="F32"):
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


FOUR = torch.arange(4.0)


def load_pickle(path):
    """What torch makes of a file of its own, whole objects and lists too, once it is found harmless."""
    with path.open("rb") as file:
        legacy = not file.read(2).startswith(b"PK")
    return describe_pickle(path, legacy=legacy).load()
