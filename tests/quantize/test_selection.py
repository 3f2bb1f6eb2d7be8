"""Plans: the rules that make them, the skip list on real names, and what refuses to be planned."""

import json

import pytest
import torch
from torch import nn

from ldm.config import create_meta_model
from quantize.layers import quantize_layer
from quantize.schemes import SCHEMES
from quantize.selection import (
    MIN_WEIGHTS,
    SKIPPED,
    Plan,
    Rule,
    Selection,
    default_selection,
    fingerprint,
    make_plan,
    read_plan,
)
from tests.quantize.small_networks import network
from tests.small_models import settings

CONTROL, UNET, DECODER = "control_model.", "model.diffusion_model.", "first_stage_model.decoder."


@pytest.fixture(scope="module")
def model():
    return create_meta_model(settings())


@pytest.fixture(scope="module")
def planned(model):
    return make_plan(model, default_selection("int8_static")).layers


def test_all_kinds_of_layers_and_all_parts_are_planned(model, planned):
    modules = dict(model.named_modules())
    assert {type(modules[name]) for name in planned} == {nn.Linear, nn.Conv2d, nn.Embedding}
    assert {name.split(".")[0] for name in planned} == {
        "control_model", "model", "first_stage_model", "cond_stage_model",
    }  # fmt: skip
    for prefix in (CONTROL, UNET):
        held = sum(p.numel() for n, p in model.named_parameters() if n.startswith(prefix) and p.ndim > 1)
        small = sum(modules[n].weight.numel() for n in planned if n.startswith(prefix))
        assert small > 0.85 * held
    assert planned["cond_stage_model.transformer.text_model.embeddings.token_embedding"] == "int8_weight"


@pytest.mark.parametrize(
    "name",
    [
        CONTROL + "zero_convs.3.0", CONTROL + "middle_block_out.0", CONTROL + "input_hint_block.0",
        CONTROL + "input_blocks.0.0", UNET + "input_blocks.0.0", UNET + "out.2", UNET + "time_embed.0",
        CONTROL + "time_embed.2", DECODER + "conv_in", DECODER + "conv_out", "first_stage_model.quant_conv",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding",
        "first_stage_model.post_quant_conv", DECODER + "mid.block_1.conv1",
    ],
)  # fmt: skip
def test_what_everything_depends_on_stays_float(model, planned, name):
    assert name in dict(model.named_modules())
    assert name not in planned


def test_the_lite_branch_has_its_own_names_on_the_skip_list():
    lite = create_meta_model("models/tiny_lite.yaml")
    planned = make_plan(lite, default_selection("int8_static")).layers
    assert any(name.startswith(CONTROL) for name in planned)
    assert not {CONTROL + "stem", CONTROL + "time_gain.0", CONTROL + "time_gain.2"} & planned.keys()


def test_every_pattern_of_the_skip_list_fits_a_real_layer(model):
    names = [
        name for one in (model, create_meta_model("models/tiny_lite.yaml")) for name, _ in one.named_modules()
    ]
    names += ["out.2"]
    rules = [Selection((Rule(pattern, "int8_weight"),), min_weights=0) for pattern in SKIPPED]
    probe = nn.Linear(8, 8)
    for rule in rules:
        assert any(rule.scheme_of(name, probe) for name in names), rule


def test_the_decoder_has_a_switch(model):
    with_it = make_plan(model, default_selection("int8_static", decoder=True)).layers
    assert DECODER + "mid.block_1.conv1" in with_it
    assert DECODER + "conv_out" not in with_it


def test_compact_plans_leave_no_weights_float_but_positions(model):
    plan = make_plan(model, default_selection("int8_static", compact=True))
    layers = plan.layers
    assert Plan.from_json(plan.to_json()).narrow
    kept = [
        n for n, m in model.named_modules() if hasattr(m, "weight") and m.weight.ndim > 1 and n not in layers
    ]
    large = [name for name in kept if model.get_submodule(name).weight.numel() >= MIN_WEIGHTS]
    assert large == ["cond_stage_model.transformer.text_model.embeddings.position_embedding"]
    assert layers[CONTROL + "zero_convs.3.0"] == layers[DECODER + "mid.block_1.conv1"] == "int8_weight"
    assert layers[UNET + "middle_block.0.in_layers.2"] == "int8_static"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_what_runs_at_every_step_is_calibrated(model, scheme):
    layers = make_plan(model, default_selection(scheme, decoder=True)).layers
    static = {name for name, one in layers.items() if SCHEMES[one].inputs == "static"}
    assert bool(static) == (scheme == "int8_static")
    assert not [name for name in static if not name.startswith((CONTROL, UNET)) or "hint" in name]
    assert not [name for name in static if name.endswith(("attn2.to_k", "attn2.to_v"))]
    assert layers[DECODER + "mid.block_1.conv1"] == ("int8_dynamic" if static else scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_encoders_keep_float_inputs(model, scheme):
    layers = make_plan(model, default_selection(scheme)).layers
    text = {one for name, one in layers.items() if name.startswith("cond_stage_model.")}
    assert {SCHEMES[one].inputs for one in text} == {"float"}
    assert {SCHEMES[one].weights for one in text} == {SCHEMES[scheme].weights}


def test_the_first_rule_that_fits_wins():
    extra = (Rule("*mix", "int4_group"), Rule("middle.*", None))
    layers = make_plan(network(), default_selection("int8_weight", extra=extra)).layers
    assert layers == {"mix": "int4_group"}


def test_small_layers_stay_float():
    assert make_plan(network(), Selection((Rule("*", "int8_weight"),), min_weights=9000)).layers == {
        "middle.2": "int8_weight"
    }


def test_a_plan_reads_back_as_it_was_written(tmp_path):
    plan = make_plan(network(), default_selection("int8_static"), {"made by": "a test"})
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert read_plan(tmp_path / "plan.json", network(seed=1)) == plan


def test_the_fingerprint_is_of_names_and_shapes_alone():
    model = network()
    with torch.device("meta"):
        empty = network()
    assert fingerprint(model) == fingerprint(network(seed=1)) == fingerprint(empty)
    assert fingerprint(model) != fingerprint(network(width=64))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "0"}, "is for another model"),
        ({"layers": {"nobody": "int8_weight"}}, "names nobody, which the model does not have"),
        ({"layers": {"middle.0": "int8_weight"}}, "middle.0, which cannot be quantized"),
        ({"layers": {"mix": "int3"}}, "unknown scheme 'int3'"),
        ({"layers": {"mix": ["int8_weight"]}}, "the scheme of mix must be a name"),
        ({"layers": ["mix"]}, "must be an object"),
        ({"version": 99}, "has version 99, this program reads 1"),
        ({"narrow": 1}, "narrow is true or false, not 1"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(tmp_path, change, words):
    content = json.loads(make_plan(network(), default_selection("int8_weight")).to_json()) | change
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        read_plan(tmp_path / "plan.json", network())


@pytest.mark.parametrize("text", ["", "[1]", '{"layers": {}}'])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match=r"plan\.json is no"):
        Plan.from_json(text, "plan.json")


def test_a_missing_plan_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"plan\.json"):
        read_plan(tmp_path / "plan.json", network())


def test_a_quantized_model_is_not_planned_again():
    model = network()
    model.mix = quantize_layer(model.mix, "int8_weight")
    with pytest.raises(ValueError, match=r"quantized already \(mix\)"):
        make_plan(model, default_selection("int8_weight"))


def test_a_model_without_layers_to_quantize_is_refused():
    with pytest.raises(ValueError, match="nothing to quantize"):
        make_plan(nn.Sequential(nn.Conv1d(64, 64, 3)), default_selection("int8_weight"))


def test_layers_that_compute_otherwise_are_left_alone():
    """The output projection of torch's own attention is a Linear that is never called."""
    attention = nn.Sequential(nn.MultiheadAttention(64, 4), nn.Linear(64, 64))
    assert list(make_plan(attention, default_selection("int8_weight")).layers) == ["1"]
