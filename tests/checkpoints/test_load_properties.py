"""Whatever happened to files, a model is loaded whole or stays what it was, to the bit."""

import io
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from checkpoints.load import assign_weights

CONTROL, UNET = "control_model.", "model.diffusion_model."


class Small(nn.Module):
    """The skeleton of a whole model: schedule, control branch, U-Net."""

    def __init__(self):
        super().__init__()
        self.register_buffer("betas", torch.linspace(0.1, 0.2, 4))
        self.control_model = nn.ModuleDict({"input_hint_block": nn.Sequential(nn.Linear(3, 4))})
        self.model = nn.Module()
        self.model.diffusion_model = nn.ModuleDict({"out": nn.Linear(4, 2), "mid": nn.Linear(4, 4)})
        self.model.diffusion_model["attn2"] = nn.ModuleDict({"to_k": nn.Linear(6, 2, bias=False)})


torch.manual_seed(0)
WEIGHTS = {name: torch.randn_like(tensor) for name, tensor in Small().state_dict().items()}
NAMES = sorted(WEIGHTS)
BARE = [name.removeprefix(CONTROL) for name in NAMES if name.startswith(CONTROL)]


def encode(state, kind):
    if kind == "safetensors":
        return save({name: tensor.contiguous() for name, tensor in state.items()})
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "epoch": 1}, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


KINDS = st.sampled_from(["safetensors", "zip", "legacy"])
RENAMED = (lambda name: name[1:], lambda name: name + "_", lambda name: "x." + name)
CHANGES = {  # (name, tensor, one of RENAMED) -> what is stored instead
    "rename": lambda name, tensor, rename: (rename(name), tensor),
    "shape": lambda name, tensor, _: (name, tensor[None]),
    "cut": lambda name, tensor, _: (name, tensor[:-1]),
    "empty": lambda name, tensor, _: (name, tensor[:0]),
    "half": lambda name, tensor, _: (name, tensor.half()),
    "whole numbers": lambda name, tensor, _: (name, (tensor * 9).to(torch.int8)),
    "bare": lambda name, tensor, _: (name.removeprefix(CONTROL).removeprefix(UNET), tensor),
}
STRANGERS = ["extra.weight", "model_ema.decay", "lora_controlnet", "logvar", *BARE]
changed_states = st.tuples(
    st.sets(st.sampled_from(NAMES), max_size=2),  # left out
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(sorted(CHANGES)), max_size=2),
    st.sets(st.sampled_from(STRANGERS), max_size=1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("random")


def fresh():
    """A model with weights of its own, and a copy of them."""
    model = Small()
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def loaded_whole_or_untouched(*paths):
    """The model's tensors after loading, None where the files were refused: then nothing may have changed."""
    model, before = fresh()
    parameters = dict(model.named_parameters())
    try:
        assign_weights(model, *paths)
    except ValueError as refusal:
        error = str(refusal)
    else:
        return model.state_dict()
    after = model.state_dict()
    assert any(str(path) in error for path in paths)
    assert "\n" not in error
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameters[name] is one for name, one in model.named_parameters())
    return None


@settings(max_examples=150, deadline=None)
@given(kind=KINDS, change=changed_states, rename=st.sampled_from(RENAMED))
def test_random_subsets_and_renamings_load_whole_or_change_nothing(folder, kind, change, rename):
    left_out, changes, extra = change
    state = {}
    for name, tensor in WEIGHTS.items():
        if name not in left_out:
            other, value = CHANGES[changes[name]](name, tensor, rename) if name in changes else (name, tensor)
            state[other] = value
    state |= {name: torch.ones(1) for name in extra}
    path = folder / f"random.{kind}"
    path.write_bytes(encode(state, kind))
    if (loaded := loaded_whole_or_untouched(path)) is None:
        assert left_out or changes or extra
        return
    for name, tensor in loaded.items():
        wanted = state.get(name, torch.linspace(0.1, 0.2, 4) if name == "betas" else None)
        assert name == "betas" or torch.equal(tensor, wanted.float())


@settings(max_examples=150, deadline=None)
@given(kind=KINDS, place=st.floats(0, 1, exclude_max=True), value=st.binary(max_size=9), cut=st.booleans())
def test_random_damage_loads_whole_or_changes_nothing(folder, kind, place, value, cut):
    whole = encode(WEIGHTS, kind)
    at = int(len(whole) * place)
    path = folder / f"damaged.{kind}"
    path.write_bytes(whole[:at] if cut else whole[:at] + value + whole[at + len(value) :])
    loaded = loaded_whole_or_untouched(path)
    assert not (cut and loaded)
    assert loaded is None or list(loaded) == list(WEIGHTS)


@settings(max_examples=60, deadline=None)
@given(kinds=st.tuples(KINDS, KINDS), place=st.floats(0, 1, exclude_max=True), second=st.booleans())
def test_a_base_and_a_branch_of_which_one_is_cut_change_nothing(folder, kinds, place, second):
    parts = {"base": UNET, "branch": CONTROL}
    paths = []
    for (part, prefix), kind in zip(parts.items(), kinds, strict=True):
        state = {
            name: tensor for name, tensor in WEIGHTS.items() if name.startswith(prefix) or name == "betas"
        }
        path = folder / f"{part}.{kind}"
        path.write_bytes(encode(state, kind))
        paths.append(path)
    assert loaded_whole_or_untouched(*paths) is not None
    whole = paths[second].read_bytes()
    paths[second].write_bytes(whole[: int(len(whole) * place)])
    assert loaded_whole_or_untouched(*paths) is None


def test_whole_numbers_in_place_of_floating_point_ones_are_refused(folder):
    state = WEIGHTS | {f"{UNET}out.bias": torch.ones(2, dtype=torch.int8)}
    (folder / "int8").write_bytes(encode(state, "safetensors"))
    model, _ = fresh()
    with pytest.raises(
        ValueError, match=r"out.bias in torch.int8, the model in torch.float32: is the file quantized"
    ):
        assign_weights(model, folder / "int8")


def test_a_folder_and_files_that_vanish_change_nothing(folder):
    assert loaded_whole_or_untouched(folder) is None
    path = folder / "gone.safetensors"
    path.write_bytes(encode(WEIGHTS, "safetensors"))
    shutil.copy(path, folder / "kept.safetensors")
    path.unlink()
    model, before = fresh()
    with pytest.raises(FileNotFoundError):
        assign_weights(model, folder / "kept.safetensors", path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@settings(max_examples=60, deadline=None)
@given(kind=KINDS, name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_a_file_may_call_its_tensors_anything_and_messages_stay_one_printable_line(folder, kind, name):
    path = folder / f"named.{kind}"
    path.write_bytes(encode(WEIGHTS | {name: torch.ones(1)}, kind))
    error = ""
    try:
        assign_weights(fresh()[0], path)
    except ValueError as refusal:
        error = str(refusal)
    assert error.isprintable()
