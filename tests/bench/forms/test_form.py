"""NAME=MODEL names a yaml, a yaml with weights, or a quantized file; anything else is one sentence."""

import pytest

from bench.forms.form import parse_form, parse_forms
from bench.results import ROOT

TINY, LITE = ROOT / "models/tiny.yaml", ROOT / "models/tiny_lite.yaml"
WEIGHTS = ROOT / "models/tiny.safetensors"


def test_a_yaml_alone_has_its_own_weights():
    form = parse_form(f"full={TINY}")
    assert (form.name, form.config, form.weights, form.quantized) == ("full", TINY, (), None)
    assert [path.name for path in form.files] == ["tiny.safetensors", "tiny_control.safetensors"]


def test_weights_behind_the_yaml_take_their_place():
    assert parse_form(f"a={TINY}:{WEIGHTS}").files == [WEIGHTS]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["models/tiny.yaml"], "names no model: write NAME=YAML"),
        (["a="], "names no model"),
        (["a=none.yaml"], "a: no file none.yaml"),
        ([f"a/b={TINY}"], "cannot be the name of a folder"),
        ([f"a={WEIGHTS}"], "names no yaml"),
        ([f"a={TINY}", f"a={LITE}"], "two models are called a"),
        ([], "0 models: name 1 or more"),
    ],
)
def test_what_is_no_model_is_said_in_a_sentence(texts, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        parse_forms(texts)
