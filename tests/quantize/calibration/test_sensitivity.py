"""Each layer is measured by itself, the measurement can be stopped, and a budget buys what it is worth."""

import math

import pytest
import torch

from quantize.calibration.sensitivity import (
    FLOAT,
    HEADER_MARGIN,
    UNREACHED,
    Candidates,
    EvalProbe,
    Measurements,
    Sensitivity,
    candidates_of,
    choose,
    gain,
    measure,
    noise_db,
    relative_noise,
)
from quantize.model import quantize_
from quantize.selection import Plan, default_selection, fingerprint, make_plan
from tests.quantize.small_networks import latents, network

LAYERS = ("input_blocks.0.0", "middle.2", "mix", "out.0")


@pytest.fixture
def model():
    return network()


def probe(model, covers=("",)):
    return EvalProbe("answer", covers, lambda: model(latents(), torch.tensor([10, 10])).flatten())


def wanted(*schemes, layers=LAYERS):
    return dict.fromkeys(layers, schemes)


def measured(model, schemes=("int4_group", "int8_weight"), known=None, probes=None):
    return dict(measure(model, wanted(*schemes), probes or [probe(model)], {}, known or {}))


def test_a_layers_noise_is_that_of_the_network_with_only_it_quantized(model):
    expected, effects = probe(model).answer(), measured(model, ["int4_group"])
    for name in LAYERS:
        other = network()
        plan = Plan({name: "int4_group"}, fingerprint(other))
        quantize_(other, plan, backend="reference")
        alone = relative_noise(expected, probe(other).answer())
        assert effects[name].noise["int4_group"] == pytest.approx(alone, rel=1e-6)


def test_more_bits_are_less_noise_and_the_model_is_float_again(model):
    before = probe(model).answer()
    for effect in measured(model).values():
        assert effect.noise["int4_group"] > 10 * effect.noise["int8_weight"] > 0
    assert torch.equal(before, probe(model).answer())


def test_noises_of_single_layers_add_up_to_that_of_all(model):
    effects = measured(model, ["int8_weight"])
    expected = probe(model).answer()
    other = network()
    quantize_(other, Plan(dict.fromkeys(LAYERS, "int8_weight"), fingerprint(other)), backend="reference")
    together = relative_noise(expected, probe(other).answer())
    summed = sum(effect.noise["int8_weight"] for effect in effects.values())
    # 3 dB: errors that depend on each other would add or cancel more
    assert summed / 2 < together < summed * 2


def test_layers_that_no_probe_covers_or_calls_are_unreached(model):
    probes = [probe(model, covers=("mix", "unused"))]
    model.unused = torch.nn.Linear(32, 32)
    effects = dict(measure(model, wanted("int8_weight", layers=(*LAYERS, "unused")), probes, {}, {}))
    assert effects["mix"].noise
    assert {name for name, one in effects.items() if one == UNREACHED} == {*LAYERS, "unused"} - {"mix"}


def test_what_is_known_is_not_measured_again(model):
    asked = []

    def answer():
        asked.append(1)
        return probe(model).answer()

    known = measured(model)
    assert measured(model, known=known, probes=[EvalProbe("answer", ("",), answer)]) == {}
    assert not asked


def test_a_measurement_goes_on_where_it_was_stopped(model, tmp_path):
    path, about = tmp_path / "noise.json", {"steps": 2, "examples": (("a.png", "a"),)}
    first = Measurements(fingerprint(model), about)
    for name, effect in measure(model, wanted("int4_group"), [probe(model)], {}, {}):
        first.layers[name] = effect
        first.save(path)
        if name == LAYERS[1]:
            break
    second = Measurements(fingerprint(model), about)
    second.resume(path)
    assert second.layers == first.layers
    rest = dict(measure(model, wanted("int4_group"), [probe(model)], {}, second.layers))
    assert list(rest) == list(LAYERS[2:])
    assert not list(tmp_path.glob(".*"))


def test_nothing_there_is_a_beginning(tmp_path):
    one = Measurements("abc", {})
    one.resume(tmp_path / "none.json")
    assert one.layers == {}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Measurements("another", {"steps": 2}), "another model, other weights"),
        (Measurements("abc", {"steps": 3}), "other settings"),
        ('{"version": 1}', "is no measurement"),
        ("[]", "is no measurement"),
        ("not json", "is no measurement"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, other, words):
    path = tmp_path / "noise.json"
    other.save(path) if isinstance(other, Measurements) else path.write_text(other)
    with pytest.raises(ValueError, match=words):
        Measurements("abc", {"steps": 2}).resume(path)


def test_noise_in_decibels_and_of_broken_answers():
    assert noise_db(0.01) == pytest.approx(20)
    assert noise_db(0.0) == math.inf
    assert relative_noise(torch.ones(4), torch.ones(4)) == 0
    assert relative_noise(torch.ones(4), torch.full((4,), torch.nan)) == math.inf
    assert relative_noise(torch.zeros(4), torch.ones(4)) == math.inf


def test_nan_weights_are_named(model):
    model.mix.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="^mix: a weight has 1 values"):
        measured(model)


LADDERS = {name: Candidates("int4_group", "int8_weight", 100 + HEADER_MARGIN) for name in "abcd"}
EFFECTS = {
    "a": Sensitivity("one", {"int4_group": 8e-2, "int8_weight": 1e-4}),
    "b": Sensitivity("one", {"int4_group": 4e-2, "int8_weight": 1e-4}),
    "c": Sensitivity("two", {"int4_group": 1e-2, "int8_weight": 1e-4}),
    "d": UNREACHED,
}


def up(choice):
    return {name for name, scheme in choice.layers.items() if scheme != "int4_group"}


def test_without_a_budget_only_what_nothing_is_known_of_goes_up():
    assert up(choose(LADDERS, EFFECTS)) == {"d"}
    assert choose(LADDERS, EFFECTS).noise == pytest.approx({"one": 0.12, "two": 0.01})


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_bytes_buy_what_takes_most_noise_away(count):
    choice = choose(LADDERS, EFFECTS, most_bytes=count * LADDERS["a"].cost)
    assert up(choice) == {"d", *"abc"[: count - 1]}
    assert choice.cost == count * LADDERS["a"].cost


def test_a_large_layer_gives_way_to_a_small_one_that_fits():
    candidates = LADDERS | {"a": Candidates("int4_group", "int8_weight", 2000 + HEADER_MARGIN)}
    assert up(choose(candidates, EFFECTS, most_bytes=3 * LADDERS["b"].cost)) == {"d", "b", "c"}


@pytest.mark.parametrize(("most", "expected"), [(0.2, "d"), (0.1, "ad"), (0.03, "abd"), (1e-3, "abcd")])
def test_noise_is_bought_down_in_every_probe(most, expected):
    choice = choose(LADDERS, EFFECTS, most_noise=most)
    assert up(choice) == set(expected)
    assert max(choice.noise.values()) <= most


def test_a_budget_of_noise_that_nothing_reaches_is_spent_to_the_end():
    choice = choose(LADDERS, EFFECTS, most_noise=1e-9)
    assert up(choice) == set("abcd")
    assert max(choice.noise.values()) > 1e-9


def test_ladders_know_the_bytes_of_their_rungs(model):
    plan = make_plan(model, default_selection("int4_group"))
    for name, candidates in candidates_of(model, plan.layers).items():
        weight = model.get_submodule(name).weight
        assert candidates.better == "int8_weight"
        most = weight.numel() + 4 * len(weight)  # codes, and a float32 scale a channel
        assert 0.3 * most < candidates.cost - HEADER_MARGIN < most
    floats = candidates_of(model, {"mix": "int8_static"})["mix"]
    assert floats.better == FLOAT
    ranges = 8  # a scale and a zero of the inputs
    less = 3 * model.mix.weight.numel() - 4 * len(model.mix.weight) - ranges
    assert floats.cost - HEADER_MARGIN == less
    assert gain(floats, Sensitivity("one", {"int8_static": 0.5})) == 0.5
