"""A new branch beside a base: published names at full width, and one beginning for tool and trainer."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from checkpoints import surgery
from cldm.model import BRANCHES, fresh_branch, load_model, with_branch
from ldm.config import create_meta_model
from tests.cldm.test_golden import golden
from tests.converted_models import write_model, write_training_checkpoint
from tests.hostile_files import entry, write_safetensors
from tools.convert.add_control import BranchInit, add_control, check_base, in_published_order
from tools.convert.files import Target, open_original
from trainer.model import load_for_training

ROOT = Path(__file__).parents[3]
ADDED_BY_PUBLISHED_SCRIPT = 42  # zero convolutions 24, hint block 16, middle's zero convolution 2


def sparse_base(path, version):
    """A base of the published names and shapes at full width, its numbers a hole in the disk."""
    names, end = {}, 0
    for name, shape in sorted(golden(f"golden_keys_{version}.tsv")):
        if name.startswith(surgery.CONTROL) or name == "logvar":  # what published bases do not have
            continue
        dtype, size = ("I64", 8) if name.endswith("position_ids") else ("F32", 4)
        start, end = end, end + size * torch.Size(shape).numel()
        names[name] = entry(shape, start, end, dtype)
    write_safetensors(path, names)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end)
    return path


@pytest.mark.parametrize("version", ["v15", "v21"])
def test_a_published_base_becomes_what_published_scripts_load_strictly(tmp_path, version):
    config = ROOT / f"models/cldm_{version}.yaml"
    source = open_original(sparse_base(tmp_path / "base.safetensors", version))
    model = create_meta_model(config)
    check_base(source, model, config)
    with torch.device("meta"):
        fresh = fresh_branch(config, 0)
    joined, copied = surgery.add_control(source.state, fresh)
    new = [name for name in joined if name.startswith(surgery.CONTROL) and name not in copied]
    state, computed = in_published_order(joined, model)
    assert [(name, tuple(tensor.shape)) for name, tensor in state.items()] == list(
        golden(f"golden_keys_{version}.tsv")
    )
    assert len(new) == ADDED_BY_PUBLISHED_SCRIPT
    assert {name.split(".")[1] for name in new} == {
        "zero_convs", "input_hint_block", "middle_block_out",
    }  # fmt: skip
    assert computed == ["logvar"]
    assert {tensor.dtype for tensor in state.values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize(("version", "other"), [("v15", "v21"), ("v21", "v15")])
def test_a_base_of_the_other_family_is_refused_with_the_yaml_that_fits(tmp_path, version, other):
    config = ROOT / f"models/cldm_{other}.yaml"
    source = open_original(sparse_base(tmp_path / "base.safetensors", version))
    with pytest.raises(ValueError, match="made for text of width .*, but the model for") as refused:
        check_base(source, create_meta_model(config), config)
    assert str(refused.value).endswith(f"--config names others, such as models/cldm_{version}.yaml")
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small base without a branch, and its yaml."""
    folder = tmp_path_factory.mktemp("files")
    state = write_model(folder, "sd15")
    base = {name: t for name, t in state.items() if not name.startswith(surgery.CONTROL)}
    torch.save({"state_dict": base}, folder / "base.ckpt")
    return folder


@pytest.mark.parametrize("kind", BRANCHES)
def test_an_untrained_branch_adds_nothing_to_the_bit(files, tmp_path, kind):
    config, path = files / "model.yaml", tmp_path / "ini.safetensors"
    add_control(files / "base.ckpt", Target(path), config, BranchInit(kind))
    model = load_model(with_branch(config, kind), path)
    plain = load_model(config, files / "full.safetensors")
    noise = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=noise), torch.randn(2, 5, 32, generator=noise)
    t, hint = torch.tensor([10, 900]), torch.rand(2, 3, 64, 64, generator=noise)
    with torch.no_grad():
        expected = plain.apply_model(x, t, {"c_concat": None, "c_crossattn": [text]})
        got = model.apply_model(x, t, {"c_concat": [hint], "c_crossattn": [text]})
        other = plain.apply_model(x, t, {"c_concat": [hint], "c_crossattn": [text]})
    assert torch.equal(got, expected)
    assert not torch.equal(other, expected)  # a branch that is not zero does change it
    assert all((one == 0).all() for one in model.control_model(x, hint, t, text))


@pytest.mark.parametrize("kind", BRANCHES)
def test_tool_and_trainer_begin_the_same_branch(files, tmp_path, kind):
    OmegaConf.save(with_branch(files / "model.yaml", kind), tmp_path / "model.yaml")
    for seed in (0, 1):
        target = Target(tmp_path / f"{seed}.ckpt")
        add_control(files / "base.ckpt", target, files / "model.yaml", BranchInit(kind, seed))
    begun, is_new = load_for_training(tmp_path / "model.yaml", [files / "base.ckpt"], seed=1)
    saved, again = load_for_training(tmp_path / "model.yaml", [tmp_path / "1.ckpt"])
    assert (is_new, again) == (True, False)
    assert all(torch.equal(saved.state_dict()[name], one) for name, one in begun.state_dict().items())
    other, _ = load_for_training(tmp_path / "model.yaml", [tmp_path / "0.ckpt"])
    assert not all(torch.equal(other.state_dict()[name], one) for name, one in begun.state_dict().items())


def test_a_trainer_that_takes_the_averages_copies_them_too(files, tmp_path):
    state = write_model(tmp_path, "sd15")
    write_training_checkpoint(tmp_path / "last.ckpt", state)
    model, _ = load_for_training(files / "model.yaml", [tmp_path / "last.ckpt"], use_ema=True)
    weights, name = model.state_dict(), "input_blocks.1.0.in_layers.2.weight"
    assert torch.equal(weights[surgery.UNET + name], state[surgery.UNET + name] + 1)
    assert torch.equal(weights[surgery.CONTROL + name], weights[surgery.UNET + name])


def test_beginning_a_branch_leaves_the_random_numbers_of_others_alone(files):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fresh_branch(files / "model.yaml", 1)
    assert torch.equal(torch.rand(3), expected)
