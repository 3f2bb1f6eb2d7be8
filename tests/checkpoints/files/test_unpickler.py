"""A pickle can describe, never do: whatever its operations ask for, nothing is made, called or believed."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.files import pickles
from checkpoints.files.headers import read_header
from checkpoints.files.pickles import OpaqueObject
from checkpoints.files.unpickler import DescribedTensor, Named
from tests.hostile_files import CONTAINERS, FOUR, load_pickle, saved, storage, tensor, text, write_zip


def loaded_or_refused(path):
    """What the file holds, or None where it is refused, which it must be in one sentence that names it."""
    try:
        return load_pickle(path)
    except ValueError as refusal:
        error = str(refusal)
    assert error.startswith(f"{path} ")
    assert "\n" not in error
    return None


containers = pytest.mark.parametrize("write", CONTAINERS.values(), ids=CONTAINERS)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_is_described_is_what_torch_saved(tmp_path, zipped):
    weight = torch.nn.Parameter(torch.randn(3, 4))
    weights = {"a": weight, "row": torch.randn(6, 2)[1:3].T, "n": torch.tensor(5), "h": torch.ones(2).half(),
               "nested": [{"b": torch.zeros(0, 3)}], "epoch": 3}  # fmt: skip
    torch.save(weights, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    found = read_header(tmp_path / "w").pickle.saved
    shapes = {name: (one.dtype, one.shape) for name, one in found.items() if isinstance(one, DescribedTensor)}
    assert shapes == {"a": ("F32", (3, 4)), "row": ("F32", (2, 2)), "n": ("I64", ()), "h": ("F16", (2,))}
    assert found["nested"][0]["b"].shape == (0, 3)
    assert found["epoch"] == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint16, torch.float8_e4m3fn, torch.bool])
def test_every_plain_dtype_is_described_with_its_size(tmp_path, dtype):
    whole = torch.zeros(6, dtype=dtype)
    torch.save({"a": whole}, tmp_path / "w")
    found = read_header(tmp_path / "w").pickle.saved["a"]
    assert found.itemsize == whole.itemsize
    assert str(dtype).split(".")[1][:2].upper() in ("BF", "UI", "FL", "BO")
    assert found.storage.nbytes == whole.nbytes


@containers
def test_the_files_made_by_hand_load_where_they_are_harmless(tmp_path, write):
    assert torch.equal(load_pickle(write(tmp_path / "w.pth", saved(a=tensor())))["a"], FOUR)


def touch(path):
    return text(f"touch {path}")


ATTACKS = {
    "reduce": lambda trace: b"cos\nsystem\n(" + touch(trace) + b"tR",
    "python 2's name": lambda trace: b"c__builtin__\neval\n(" + text(f"open({str(trace)!r}, 'w')") + b"tR",
    "inst": lambda trace: b"(" + touch(trace) + b"ios\nsystem\n",
    "obj": lambda trace: b"(cos\nsystem\n" + touch(trace) + b"o",
    "newobj": lambda trace: b"cos\nsystem\n(" + touch(trace) + b"t\x81",
    "newobj_ex": lambda trace: b"cos\nsystem\n(" + touch(trace) + b"t}\x92",
    "stack_global": lambda trace: text("os") + text("system") + b"\x93(" + touch(trace) + b"tR",
    "hidden": lambda trace: text("torch") + text("hub.os.system") + b"\x93(" + touch(trace) + b"tR",
    "build": lambda trace: b"cos\nsystem\n(" + touch(trace) + b"tb",
    "getattr": lambda trace: b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("system") + b"tR",
    "dotted": lambda trace: b"cpathlib\nos.system\n(" + touch(trace) + b"tR",
    "dotted torch": lambda trace: b"ctorch.hub\nos.system\n(" + touch(trace) + b"tR",
    "extension": lambda trace: b"\x82\x01(" + touch(trace) + b"tR",
    "in a state": lambda trace: b"ccollections\nOrderedDict\n)R}(Ncos\nsystem\n(" + touch(trace) + b"tRub",
    "as a tensor": lambda trace: tensor(data=b"cos\nsystem\n(" + touch(trace) + b"tR"),
    "as a key": lambda trace: b"}cos\nsystem\n(" + touch(trace) + b"tRNs",
    "as a persistent id": lambda trace: b"cos\nsystem\n(" + touch(trace) + b"tRQ",
}  # fmt: skip


@containers
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_operation_runs_anything(tmp_path, write, attack):
    trace = tmp_path / "trace"
    path = write(tmp_path / "evil.ckpt", saved(a=tensor(), x=ATTACKS[attack](trace)))
    loaded = loaded_or_refused(path)
    assert loaded is None or isinstance(loaded["x"], OpaqueObject)  # the latter for a name in a known library
    assert not trace.exists()


HARMFUL = """
    torch.load torch.hub.load torch.jit.load torch.utils.cpp_extension.load torch.compile numpy.load
    numpy.fromfile torch.hub.download_url_to_file torch.serialization.add_safe_globals ldm.image.read_image
    pathlib.Path.write_text pathlib.Path.unlink cldm.model.load_state_dict ldm.util.instantiate_from_config
"""
MADE_BY_TORCH = """
    torch._utils._rebuild_sparse_tensor torch._utils._rebuild_qtensor torch._utils._rebuild_wrapper_subclass
    torch._utils._rebuild_meta_tensor_no_storage torch._tensor._rebuild_from_type_v2 torch.FloatTensor
    torch.Tensor torch.cuda.FloatTensor
"""


@containers
@pytest.mark.parametrize("name", HARMFUL.split())
def test_functions_of_known_libraries_are_never_called(tmp_path, write, name, monkeypatch):
    called = []
    if name != "torch.load":  # which is what reads the file
        monkeypatch.setattr(name, lambda *args, **_: called.append(args))
    module, _, function = name.rpartition(".")
    call = f"c{module}\n{function}\n(".encode() + text(str(tmp_path / "trace")) + b"tR"
    loaded = load_pickle(write(tmp_path / "w.ckpt", saved(a=tensor(), x=call)))
    assert isinstance(loaded["x"], OpaqueObject)
    assert torch.equal(loaded["a"], FOUR)
    assert not called
    assert os.listdir(tmp_path) == ["w.ckpt"]


@containers
@pytest.mark.parametrize("target", [b"ctorch.optim\nAdam\n", b"ctorch.optim\nAdam\n)R", b"cnumpy\nload\n)R"])
def test_no_state_sticks_to_what_stands_for_objects(tmp_path, write, target):
    before = dict(vars(OpaqueObject))
    state = b"N}" + text("__init__") + text("x") + b"s\x86"  # (None, {"__init__": "x"}): slots
    path = write(tmp_path / "w.ckpt", saved(a=tensor(), x=target + state + b"b"))
    loaded = loaded_or_refused(path)
    assert loaded is None or (type(loaded["x"]) is OpaqueObject and not vars(loaded["x"]))
    assert dict(vars(OpaqueObject)) == before


@containers
@pytest.mark.parametrize("maker", MADE_BY_TORCH.split())
def test_what_torch_would_make_for_real_is_refused_unless_it_is_a_plain_tensor(tmp_path, write, maker):
    module, _, name = maker.rpartition(".")
    path = write(tmp_path / "w", saved(a=f"c{module}\n{name}\n(J\x04\0\0\0tR".encode()))
    with pytest.raises(ValueError, match=f"asks for {maker}, which weights never need"):
        load_pickle(path)


DEEP = b")" + b"\x85" * 100_000  # a tuple in a tuple in a tuple ...


@containers
@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (b"}" + DEEP + b"Ns", "neither text nor a number"),  # hashing it would end the process
        (b"}(" + DEEP + b"Nu", "neither text nor a number"),
        (b"c__builtin__\nset\n]" + DEEP + b"a\x85R", "neither text nor a number"),  # torch makes it for real
        (b"ccollections\nCounter\n]" + DEEP + b"a\x85R", "neither text nor a number"),
        (b"ccollections\nOrderedDict\n](" + DEEP + b"Nta\x85R", "neither text nor a number"),
        (b"ccollections\nOrderedDict\n)R](" + DEEP + b"Ntab", "sets the state of a dictionary"),
        (b"c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R", "asks for memory by a number"),  # 64 GiB
        (tensor(shape=(5,)), "goes beyond its data"),
        (tensor(shape=(2**30, 2**30), stride=(2**30, 1)), "goes beyond its data"),
        (tensor(shape=(2,), offset=3), "goes beyond its data"),
        (tensor(shape=(-1,)), "goes beyond its data"),
        (tensor(shape=(2,), stride=(-1,), offset=1), "goes beyond its data"),
        (tensor(shape=(2,), stride=()), "in a way that torch never writes"),
        (tensor(data=text("not data")), "in a way that torch never writes"),
        (tensor(data=storage(kind="QInt8Storage")), "its data is torch.QInt8Storage"),
        (tensor(data=storage(count=-4)), "no tensor's"),
        (b"(" + text("storage") + b"ctorch\nFloatStorage\n)" + text("cpu") + b"K\x04tQ", "no tensor's"),
        (tensor() + b"0" + tensor(data=storage(count=3), shape=(3,)), "operation POP"),
        (b"]" + tensor() + b"a" + tensor(data=storage(count=3), shape=(3,)) + b"a", "data 0 in two ways"),
        (b"K\x01(K\x02tR", "'int' object is not callable"),
        (b"K\x01K\x02a", "'int' object has no attribute 'append'"),
        (b"](K\x01K\x02u", "damaged or cut short"),
        (b"K\x01}b", "got <class 'int'>"),
        (b"X\xff\xff\xff\x7f", "damaged or cut short"),  # a text of 2 GiB
        (b"\x8a\xff" + b"\xff" * 255 + b"r\xff\xff\xff\x7f0", "operation POP"),  # a memo of 2**31 places
        (b"h\x07", "Memo value not found"),  # an entry of the memo that is not there
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", "operation FRAME"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_one_sentence(tmp_path, write, operations, message):
    path = write(tmp_path / "w", saved(a=operations))
    with pytest.raises(ValueError, match=message) as raised:
        load_pickle(path)
    assert str(raised.value).startswith(f"{path} is ")
    assert "\n" not in str(raised.value)


def test_a_pickle_that_goes_on_for_ever_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 1000)
    for write in CONTAINERS.values():
        path = write(tmp_path / "w", b"\x80\x02" + b"]" * 5000 + b".")
        with pytest.raises(ValueError, match="refused|damaged"):
            load_pickle(path)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    data = {"data/0": bytes(200 << 20)}
    bomb = write_zip(
        tmp_path / "w", saved(a=tensor(data=storage(count=50 << 20))), data, zipfile.ZIP_DEFLATED
    )
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="would unpack to 0.2 GiB: refused as a zip bomb"):
        load_pickle(bomb)


def test_a_pickle_that_inflates_is_refused(tmp_path):
    bomb = write_zip(tmp_path / "w", saved(a=tensor()) + bytes(20 << 20), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="has a pickle of .* refused"):
        load_pickle(bomb)


def test_a_directory_that_lies_about_sizes_is_refused(tmp_path):
    path = write_zip(tmp_path / "w", saved(a=tensor()))
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02")  # the first entry of the directory is that of the pickle
    path.write_bytes(whole[: at + 24] + struct.pack("<I", 12) + whole[at + 28 :])
    with pytest.raises(ValueError, match="is damaged or cut short|is not a plain weights file"):
        load_pickle(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["data.pkl", "data/0", "version"])
def test_two_members_of_one_name_are_refused(tmp_path, name):
    path = write_zip(tmp_path / "w", saved(a=tensor()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"archive/{name}", b"another")
    with pytest.raises(ValueError, match=f"two members called archive/{name}"):
        load_pickle(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [({}, "data 0 is missing"), ({"data/0": b"12"}, "data 0 has 2 bytes instead of 16"),
     ({"data/0": bytes(16), "elsewhere/data.pkl": b"."}, "holds 2 saved objects")],
)  # fmt: skip
def test_data_that_does_not_fit_the_pickle_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        load_pickle(write_zip(tmp_path / "w", saved(a=tensor()), data))


def test_a_legacy_file_that_claims_more_data_than_it_has_is_refused_before_memory_is_taken(tmp_path):
    path = CONTAINERS["legacy"](tmp_path / "w", saved(a=tensor(data=storage(count=2**31 - 1))))
    with pytest.raises(ValueError, match="cut short, .* 85899345.. bytes of data are gone"):
        load_pickle(path)


def sample(zipped):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.randn(40), "b": torch.ones(3).half()}, "lr": np.float64(1)}, buffer,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    return buffer.getvalue()


SAMPLES = {"zip": sample(True), "legacy": sample(False)}


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(SAMPLES)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory, kind, share):
    path = tmp_path_factory.getbasetemp() / "cut.ckpt.part"
    path.write_bytes(SAMPLES[kind][: int(len(SAMPLES[kind]) * share)])
    assert loaded_or_refused(path) is None


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(SAMPLES)),
    place=st.floats(0, 1, exclude_max=True),
    value=st.binary(min_size=1, max_size=9),
)
def test_damaged_bytes_never_end_in_anything_but_a_sentence(tmp_path_factory, kind, place, value):
    whole = SAMPLES[kind]
    at = int(len(whole) * place)
    path = tmp_path_factory.getbasetemp() / "bad.ckpt"
    path.write_bytes(whole[:at] + value + whole[at + len(value) :])
    loaded_or_refused(path)


def test_names_stand_for_themselves(tmp_path):
    torch.save({"a": torch.ones(1), "when": Path()}, tmp_path / "w")
    described = read_header(tmp_path / "w").pickle
    assert described.saved["when"] in (Named("pathlib.PosixPath"), Named("pathlib.WindowsPath"))
    assert described.saved["when"].name in described.names
