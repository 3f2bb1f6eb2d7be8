"""Pruned weights: models become as small as their files, and compute what they computed without the units."""

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from cldm.compressed.pruned import HEADS, MLP, RES, prunable, shrink
from cldm.compressed.quantized import load_quantized_model
from cldm.model import create_model, load_control, load_model, with_branch
from ldm.config import create_meta_model
from quantize.files.write import Content, write_quantized
from quantize.model import quantized_layers
from quantize.prune.importance import keep_best, magnitude
from quantize.prune.record import METADATA_KEY, Record
from quantize.prune.units import shrink_
from quantize.selection import default_selection, make_plan
from tests.small_models import SD15, SD21, build, randomize, relative_error, settings

FAMILIES = {"SD1.5": SD15, "SD2.1": SD21}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def halved(model):
    """`model` without half of every kind of unit; the same model with nobody reading them."""
    groups = prunable(model)
    kept = keep_best(magnitude(model, groups), groups, 0.5)
    silent, small = copy.deepcopy(model).requires_grad_(False), copy.deepcopy(model)
    for group in groups:
        for cut in group.cuts:
            if cut.reads:
                gone = [unit for unit in range(group.count) if unit not in kept[group.name]]
                weight = silent.get_parameter(cut.tensor)
                places = torch.arange(weight.shape[cut.axis]).reshape(group.count, group.width)[gone]
                weight.index_fill_(cut.axis, places.flatten(), 0)
    shrink_(small, groups, kept)
    return small, silent


@cache
def models(family="SD1.5"):
    """The whole, the halved and the silent one; nobody changes them."""
    whole = build(FAMILIES[family])
    return whole, *halved(whole)


def call(model, seed=0):
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 8, 8, generator=noise)
    cond = {
        "c_crossattn": [torch.randn(2, 77, 32, generator=noise)],
        "c_concat": [torch.rand(2, 3, 64, 64, generator=noise)],
    }
    with torch.no_grad():
        return model.apply_model(x, torch.tensor([900, 20]), cond)


def save(model, path, prefix="", record=None):
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {METADATA_KEY: (record or Record("small.yaml")).to_json()}
    save_file({n: v for n, v in state.items() if n.startswith(prefix)}, path, metadata=metadata)
    return path


def test_every_transformer_and_resblock_of_unet_and_branch_has_units(family):
    groups = prunable(models(family)[0])
    kinds = Counter((group.name.split(".")[0], group.kind) for group in groups)
    transformers, blocks = {"control_model": 5, "model": 11}, {"control_model": 8, "model": 17}
    assert kinds == Counter(
        {(part, HEADS): 2 * count for part, count in transformers.items()}
        | {(part, MLP): count for part, count in transformers.items()}
        | {(part, RES): count for part, count in blocks.items()}
    )


def test_units_that_left_are_those_that_nobody_reads(family):
    whole, small, silent = models(family)
    assert relative_error(call(small), call(silent)) < 1e-5  # the order of float sums
    assert relative_error(call(small), call(whole)) > 0.05


def test_a_lite_branch_has_the_channels_of_its_mlps():
    branch = randomize(create_model(with_branch(settings(), "lite")).control_model)
    small, silent = halved(branch)
    assert {group.kind for group in prunable(branch)} == {MLP}
    hint = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for got, expected in zip(small.encode_hint(hint), silent.encode_hint(hint), strict=True):
            assert relative_error(got, expected) < 1e-5


def test_a_pruned_file_loads_by_its_shapes(family, tmp_path):
    _, small, _ = models(family)
    model = load_model(settings(FAMILIES[family]), save(small, tmp_path / "small.safetensors"))
    assert torch.equal(call(model), call(small))


def test_files_of_torch_and_those_without_a_record_load_too(tmp_path):
    _, small, _ = models()
    torch.save(small.state_dict(), tmp_path / "small.ckpt")
    assert torch.equal(call(load_model(settings(), tmp_path / "small.ckpt")), call(small))


def test_a_whole_branch_over_a_pruned_base_and_the_other_way_round(tmp_path):
    whole, small, _ = models()
    files = {
        (kind, part): save(model, tmp_path / f"{kind}{part}.safetensors", part)
        for kind, model in (("whole", whole), ("small", small))
        for part in ("", "control_model.")
    }
    mixed = load_model(settings(), files["small", ""], files["whole", "control_model."])
    other = load_model(settings(), files["whole", ""], files["small", "control_model."])
    branch = load_control(settings(), files["small", "control_model."])
    for model, unet_of, branch_of in ((mixed, small, whole), (other, whole, small)):
        assert shapes(model.model) == shapes(unet_of.model)
        assert shapes(model.control_model) == shapes(branch_of.control_model)
    assert shapes(branch) == shapes(small.control_model)


def shapes(module):
    return {name: value.shape for name, value in module.state_dict().items()}


def test_a_pruned_file_of_another_model_is_refused_with_its_own_yaml(tmp_path):
    path = save(models()[1], tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"pruned, from the model of small\.yaml: take that yaml"):
        load_model(settings(SD15 | {"model_channels": 64}), path)


def test_a_file_pruned_in_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("quantize.prune.record.FORMAT_VERSION", 7)
    path = save(models()[1], tmp_path / "small.safetensors")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is pruned in format 7, this program reads 1: update it"):
        load_model(settings(), path)


def test_whole_weights_shrink_nothing():
    model = create_meta_model(settings())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shrink(model, shapes)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes


@pytest.mark.parametrize("scheme", ["int8_dynamic", "int4_group"])
def test_a_pruned_model_is_quantized_and_loaded_in_its_shapes(family, scheme, tmp_path):
    _, small, _ = models(family)
    plan = make_plan(small, default_selection(scheme))
    path = write_quantized(tmp_path / "q.safetensors", small, small.state_dict().items(), Content(plan))
    loaded = load_quantized_model(settings(FAMILIES[family]), path)
    assert len(list(quantized_layers(loaded))) == len(plan.layers)
    # About 35 dB and 17 dB a layer of these sizes; some thirty of them add up.
    assert relative_error(call(loaded), call(small)) < {"int4_group": 0.4, "int8_dynamic": 0.05}[scheme]


@pytest.mark.parametrize("told", [False, True])
def test_gradients_reach_the_unets_encoder_only_when_told(told, monkeypatch):
    unet = models()[0].model.diffusion_model
    monkeypatch.setattr(unet, "encoder_learns", told)
    weights = [unet.input_blocks[1][0].in_layers[2].weight, unet.out[2].weight]
    for weight in weights:
        monkeypatch.setattr(weight, "requires_grad", True)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    control = [torch.zeros(1)[:, None, None, None]] * (len(unet.input_blocks) + 1)
    answer = unet(x, torch.tensor([500]), text, control=control)
    encoder, last = torch.autograd.grad(answer.sum(), weights, allow_unused=True)
    assert last is not None
    assert (encoder is not None) == told
