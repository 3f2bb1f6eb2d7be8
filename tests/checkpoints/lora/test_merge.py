"""LoRA files of every naming become the sum that they stand for; a file that does not fit changes nothing."""

import copy
import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as searching
from hypothesis import strategies as st

from checkpoints.lora.merge import merge_loras
from checkpoints.lora.names import parse_lora
from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder
from tests.diffusers_reference import reference
from tests.lora_files import NAMINGS, difference, first_of_diffusers, kohya, random_lora, targets, write_lora
from tests.small_models import SD15, SD21, build, randomize, relative_error, settings

LESS = {"model_channels": 16, "channel_mult": [1, 2], "num_res_blocks": 1, "context_dim": 12, "num_groups": 4}
SMALL = {"sd15": SD15 | LESS | {"num_heads": 2}, "sd21": SD21 | LESS}
PARAMS = {name: settings(unet).model.params for name, unet in SMALL.items()}
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "up_blocks.1.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.self_attn.v_proj"
OPEN = {"width": 16, "heads": 2, "layers": 3, "embed_dim": 16}


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def family(request):
    """(a small model, the names and shapes of diffusers' U-Net for it)."""
    model = build(SMALL[request.param])
    return model, targets(reference(model, PARAMS[request.param]).unet), PARAMS[request.param]


@pytest.fixture(scope="module")
def small():
    """As `family`, for one."""
    model = build(SMALL["sd15"])
    return model, targets(reference(model, PARAMS["sd15"]).unet)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def text_encoder(model):
    return targets(model.cond_stage_model.transformer)


def assert_merged(model, before, params, expected):
    """expected: diffusers' module name -> its difference; every other weight is to be as it was."""
    old, new = (targets(reference(one, params).unet) for one in (before, model))
    for name, module in new.items():
        wanted = old[name].weight.double() + expected.get(name, 0)
        assert relative_error(module.weight, wanted) < 1e-6, name
        if name not in expected:
            assert torch.equal(module.weight, old[name].weight)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_changes_every_matrix_as_the_formula_says(tmp_path, family, naming):
    before, unet, params = family
    model = copy.deepcopy(before)
    alpha = 2.0 if naming == "kohya" else None
    state, expected = {}, {}
    for seed, (name, module) in enumerate(unet.items()):
        roles = random_lora(module, seed=seed)
        state |= NAMINGS[naming]("unet", name, roles, alpha)
        expected[name] = 0.7 * difference(roles, module.weight.shape, alpha)
    (report,) = merge_loras(model, [(write_lora(tmp_path / "a.safetensors", state), 0.7)])
    assert_merged(model, before, params, expected)
    assert report.layers == {"unet": len(unet)}
    assert report.ranks == (3,)
    for part in ("control_model", "first_stage_model", "cond_stage_model"):
        assert_same(getattr(model, part), state_of(getattr(before, part)))


def test_the_first_naming_of_diffusers_for_attention(tmp_path, family):
    before, unet, params = family
    model = copy.deepcopy(before)
    attention = {name: random_lora(module) for name, module in unet.items() if ".attn" in name}
    state = {}
    for name, roles in attention.items():
        state |= first_of_diffusers("unet", name, roles, None)
    merge_loras(model, [(write_lora(tmp_path / "a", state), 1.0)])
    expected = {name: difference(roles, unet[name].weight.shape) for name, roles in attention.items()}
    assert_merged(model, before, params, expected)


def test_original_names_with_underscores_and_with_dots(tmp_path, small):
    before, unet = small
    roles = random_lora(unet[Q])
    merged = []
    block = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    for start, ends in (
        ("lora_unet_" + block.replace(".", "_"), "down up"),
        ("diffusion_model." + block, "A B"),
    ):
        state = {
            f"{start}.lora_{end}.weight": roles[role]
            for end, role in zip(ends.split(), ("down", "up"), strict=True)
        }
        model = copy.deepcopy(before)
        merge_loras(model, [(write_lora(tmp_path / "a", state), 1.0)])
        merged.append(model)
        assert_merged(model, before, PARAMS["sd15"], {Q: difference(roles, unet[Q].weight.shape)})


@pytest.mark.parametrize("mid", [False, True])
def test_convolutions_with_and_without_a_third_matrix(tmp_path, small, mid):
    before, unet = small
    model, roles = copy.deepcopy(before), random_lora(unet[CONV], mid=mid)
    merge_loras(model, [(write_lora(tmp_path / "a", kohya("unet", CONV, roles, 1.5)), -2.0)])
    assert_merged(model, before, PARAMS["sd15"], {CONV: -2 * difference(roles, unet[CONV].weight.shape, 1.5)})


def test_a_pointwise_convolution_may_be_stored_as_a_matrix_and_the_other_way_round(tmp_path, family):
    before, unet, params = family
    name = "mid_block.attentions.0.proj_in"
    shape = unet[name].weight.shape
    roles = random_lora(unet[name])
    other = {
        role: one.flatten(1) if len(shape) == 4 else one[:, :, None, None] for role, one in roles.items()
    }
    model = copy.deepcopy(before)
    merge_loras(model, [(write_lora(tmp_path / "a", kohya("unet", name, other, None)), 1.0)])
    assert_merged(model, before, params, {name: difference(roles, shape)})


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("level", ["text_model.", ""])
def test_text_encoders_of_the_first_kind(tmp_path, small, naming, level):
    model = copy.deepcopy(small[0])
    before = copy.deepcopy(text_encoder(model))
    roles = {name: random_lora(one, seed=seed) for seed, (name, one) in enumerate(before.items())}
    state = {}
    for name, one in roles.items():
        state |= NAMINGS[naming]("text", level + name.removeprefix("text_model."), one, None)
    merge_loras(model, [(write_lora(tmp_path / "a", state), 1.0)])
    assert len(before) == 6
    for name, module in text_encoder(model).items():
        wanted = before[name].weight.double() + difference(roles[name], module.weight.shape)
        assert relative_error(module.weight, wanted) < 1e-6


@pytest.fixture(scope="module")
def holder():
    """A model that is only a text encoder of the second kind."""
    model = torch.nn.Module()
    model.cond_stage_model = randomize(FrozenOpenCLIPEmbedder(config=OPEN))
    return model


@pytest.mark.parametrize("naming", NAMINGS)
def test_text_encoders_of_the_second_kind_keep_query_key_and_value_in_one(tmp_path, holder, naming):
    model = copy.deepcopy(holder)
    width, rows = OPEN["width"], {"q_proj": 0, "k_proj": 1, "v_proj": 2}
    block = "text_model.encoder.layers.1."
    fused = model.cond_stage_model.model.transformer.resblocks[1]
    wanted = fused.attn.in_proj_weight.detach().double().clone()
    hidden = fused.mlp.c_fc.weight.detach().double().clone()
    state = {}
    for seed, (name, place) in enumerate(rows.items()):
        roles = random_lora(torch.nn.Linear(width, width), seed=seed)
        state |= NAMINGS[naming]("text", f"{block}self_attn.{name}", roles, None)
        wanted[place * width : (place + 1) * width] += difference(roles, (width, width))
    roles = random_lora(fused.mlp.c_fc)
    state |= NAMINGS[naming]("text", f"{block}mlp.fc1", roles, None)
    merge_loras(model, [(write_lora(tmp_path / "a", state), 1.0)])
    fused = model.cond_stage_model.model.transformer.resblocks[1]
    assert relative_error(fused.attn.in_proj_weight, wanted) < 1e-6
    assert relative_error(fused.mlp.c_fc.weight, hidden + difference(roles, hidden.shape)) < 1e-6


def test_several_files_add_up_and_are_rounded_once(tmp_path, small):
    before, unet = small
    model = copy.deepcopy(before).half()
    rows = [random_lora(unet[Q], rank=rank, seed=rank) for rank in (1, 2, 4)]
    files = [
        (write_lora(tmp_path / str(number), kohya("unet", Q, roles, None)), weight)
        for number, (roles, weight) in enumerate(zip(rows, (1.0, -0.5, 0.25), strict=True))
    ]
    weight = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q.weight
    total = sum(
        weight * difference(roles, unet[Q].weight.shape)
        for roles, (_, weight) in zip(rows, files, strict=True)
    )
    wanted = (weight.detach().double() + total).half()
    reports = merge_loras(model, files)
    weight = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q.weight
    assert weight.dtype == torch.float16
    assert (weight == wanted).float().mean() > 0.99, "only ties between two halves may fall to the other side"
    assert [report.ranks for report in reports] == [(1,), (2,), (4,)]


def test_weight_zero_is_the_model_to_the_bit(tmp_path, small):
    before, unet = small
    model = copy.deepcopy(before)
    path = write_lora(tmp_path / "a", kohya("unet", Q, random_lora(unet[Q]), 1.0))
    merge_loras(model, [(path, 0.0)])
    merge_loras(model, [])
    assert_same(model, state_of(before))


def test_trainability_and_identity_of_parameters_stay(tmp_path, small):
    before, unet = small
    model = copy.deepcopy(before).requires_grad_(False)
    parameters = dict(model.named_parameters())
    merge_loras(model, [(write_lora(tmp_path / "a", kohya("unet", Q, random_lora(unet[Q]), 1.0)), 1.0)])
    assert all(parameters[name] is one and not one.requires_grad for name, one in model.named_parameters())


def merged_scale(path, small, roles):
    """How much of up @ down a file adds to the query of `Q`."""
    model, unet = copy.deepcopy(small[0]), small[1]
    merge_loras(model, [(path, 1.0)])
    added = targets(reference(model, PARAMS["sd15"]).unet)[Q].weight - unet[Q].weight
    whole = difference(roles, added.shape)
    return ((added.double() * whole).sum() / (whole * whole).sum()).item()


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 1.0),
        ({"unet.lora_alpha": 6, "unet.r": 3, "text_encoder.lora_alpha": 9}, 2.0),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 1.5, "to_k": 7}}, 0.5),
    ],
)
def test_diffusers_keeps_alpha_in_the_metadata(tmp_path, small, settings, scale):
    roles = random_lora(small[1][Q])
    metadata = {"lora_adapter_metadata": json.dumps(settings)} if settings else None
    path = write_lora(tmp_path / "a", NAMINGS["peft in diffusers"]("unet", Q, roles, None), metadata)
    assert merged_scale(path, small, roles) == pytest.approx(scale, rel=1e-5)


def test_peft_keeps_alpha_in_a_file_of_its_own(tmp_path, small):
    roles = random_lora(small[1][Q])
    start = f"base_model.model.{Q}"
    path = write_lora(
        tmp_path / "a", {f"{start}.lora_A.weight": roles["down"], f"{start}.lora_B.weight": roles["up"]}
    )
    with pytest.raises(ValueError, match="a is a file of PEFT, which needs its adapter_config.json"):
        merge_loras(copy.deepcopy(small[0]), [(path, 1.0)])
    (tmp_path / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 12}')
    assert merged_scale(path, small, roles) == pytest.approx(4.0, rel=1e-5)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 12, "use_rslora": true}')
    with pytest.raises(ValueError, match="rank-stabilised"):
        merge_loras(copy.deepcopy(small[0]), [(path, 1.0)])
    (tmp_path / "adapter_config.json").write_text("[" * 5000)
    with pytest.raises(ValueError, match="is not readable JSON"):
        merge_loras(copy.deepcopy(small[0]), [(path, 1.0)])


START = "lora_unet_" + Q.replace(".", "_")
DOWN, UP = f"{START}.lora_down.weight", f"{START}.lora_up.weight"
# what is done to the good file -> (what replaces its entries, as functions of its halves; what is said of it)
SPOILT = {
    "a stranger": ({"lora_unet_nowhere.lora_up.weight": lambda down, up: up}, "has 1 of 4 names unknown"),
    "another name": ({"something.weight": lambda down, up: up}, r"unknown to the model \(something.weight\)"),
    "lacks up": ({UP: None}, "lacks the up half"),
    "lacks down": ({DOWN: None}, "lacks the down half"),
    "wide": ({DOWN: lambda down, up: down.repeat(1, 2)}, r"attn1_to_q it has .*32\] and .* the weight is"),
    "tall": ({UP: lambda down, up: up.repeat(2, 1)}, "does not fit the model"),
    "other rank": ({UP: lambda down, up: up[:, :2]}, "does not fit the model"),
    "no rank": ({UP: lambda down, up: up[:, :0], DOWN: lambda down, up: down[:0]}, "does not fit the model"),
    "row": ({DOWN: lambda down, up: down[0]}, "does not fit the model"),
    "number": ({DOWN: lambda down, up: down[0, 0]}, "does not fit the model"),
    "row for the text": (
        {START.replace("attn1_to_q", "attn2_to_k") + ".lora_down.weight": lambda down, up: down[0]},
        "lacks the up half",
    ),
    "no alpha": ({f"{START}.alpha": lambda down, up: torch.ones(0)}, "alpha of .* is not one number"),
    "cube": ({UP: lambda down, up: up[:, :, None].repeat(1, 1, 3)}, "does not fit the model"),
    "loha": ({f"{START}.hada_w1_a": lambda down, up: down}, "is a LoHa .*; take a plain LoRA"),
    "dora": ({f"{START}.dora_scale": lambda down, up: down}, "is a DoRA"),
    "sdxl": ({"lora_te2_text_model_x.lora_up.weight": lambda down, up: up}, "is a LoRA for SDXL"),
    "not a number": ({UP: lambda down, up: up * math.nan}, "would not be finite"),
    "infinite alpha": ({f"{START}.alpha": lambda down, up: torch.tensor(math.inf)}, "would not be finite"),
    "quantized": ({DOWN: lambda down, up: down.to(torch.int8)}, "not of floating point"),
    "twice": (
        {f"unet.{Q}.lora_A.weight": lambda down, up: down, f"unet.{Q}.lora_B.weight": lambda down, up: up},
        "twice",
    ),
    "no lora": ({UP: None, DOWN: None, "out.2.bias": lambda down, up: up}, "is no LoRA"),
    "text of SD 1.x": (
        {
            START.replace("attn1_to_q", "attn2_to_k") + ".lora_down.weight": lambda down, up: torch.ones(
                3, 768
            )
        },
        r"for text of width 768 \(SD 1.x\), but the model for text of width 12",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_does_not_fit_is_refused_and_the_model_stays_as_it_was(tmp_path, small, how):
    model, unet = copy.deepcopy(small[0]), small[1]
    before = state_of(model)
    roles = random_lora(unet[Q])
    changes, message = SPOILT[how]
    state = kohya("unet", Q, roles, 1.0)
    state |= {
        name: change and change(**{one: roles[one] for one in ("down", "up")})
        for name, change in changes.items()
    }
    bad = write_lora(tmp_path / "bad", {name: tensor for name, tensor in state.items() if tensor is not None})
    good = write_lora(tmp_path / "good", kohya("unet", CONV, random_lora(unet[CONV]), 1.0))
    with pytest.raises(ValueError, match=message) as raised:
        merge_loras(model, [(good, 1.0), (bad, 1.0)])
    assert "bad" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert_same(model, before)


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_must_be_a_number(tmp_path, small, weight):
    path = write_lora(tmp_path / "a", kohya("unet", Q, random_lora(small[1][Q]), 1.0))
    with pytest.raises(ValueError, match="use a number, 1 is as trained"):
        merge_loras(copy.deepcopy(small[0]), [(path, weight)])


@pytest.fixture(scope="module")
def unet_alone(small):
    """The U-Net of `small` in the place it has there: what a random file may change."""
    model = torch.nn.Module()
    model.model = copy.deepcopy(small[0].model)
    return model


@searching(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_files_are_used_whole_or_not_at_all(tmp_path, small, unet_alone, data):
    """Random subsets, renamings and shapes: a model is changed by all of a file or by nothing of it."""
    names = data.draw(
        st.sets(st.sampled_from([Q, CONV, "conv_in", "mid_block.attentions.0.proj_in"]), min_size=1)
    )
    whole = {}
    for name in sorted(names):
        whole |= kohya("unet", name, random_lora(small[1][name]), data.draw(st.sampled_from([None, 1.0])))
    state = {}
    for name in data.draw(st.sets(st.sampled_from(sorted(whole)), min_size=1)) | set(list(whole)[2:]):
        other = data.draw(st.sampled_from([name, name, name, name, name[1:], name.replace("0", "9")]))
        state[other] = whole[name] if data.draw(st.integers(0, 9)) else whole[name][None]
    before = state_of(unet_alone)
    model = copy.deepcopy(unet_alone)
    try:
        (report,) = merge_loras(model, [(write_lora(tmp_path / "random", state), 1.0)])
    except ValueError:
        assert_same(model, before)
        return
    assert 2 * report.layers["unet"] == sum(not name.endswith("alpha") for name in state)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) == report.layers["unet"]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("a.safetensors:-1", ("a.safetensors", -1.0)),
        (r"C:\a.safetensors", (r"C:\a.safetensors", 1.0)),
        (r"C:\a.safetensors:.5", (r"C:\a.safetensors", 0.5)),
        ("a:b", ("a:b", 1.0)),
        (":1", (":1", 1.0)),
    ],
)
def test_a_file_may_be_followed_by_its_weight(text, parsed):
    assert parse_lora(text) == parsed


def test_a_colon_in_the_name_of_a_file_that_is_there_belongs_to_it(tmp_path):
    (tmp_path / "a:2").touch()
    assert parse_lora(str(tmp_path / "a:2")) == (str(tmp_path / "a:2"), 1.0)
    assert parse_lora(f"{tmp_path / 'a:2'}:3") == (str(tmp_path / "a:2"), 3.0)
