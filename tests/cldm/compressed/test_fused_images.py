"""The engine draws what the layers draw apart: the shipped tiny model, its inputs quantized as they come."""

from pathlib import Path

import pytest

import tools.compress.quantize
from cldm.compressed import quantized
from cldm.compressed.fused_blocks import FusedResBlock
from cldm.pipeline import Pipeline
from cldm.request import ControlInput, Request
from eval.metrics.likeness import psnr
from ldm.image import read_image

ROOT = Path(__file__).parents[3]
CONFIG, SKETCH = ROOT / "models" / "tiny.yaml", ROOT / "test_imgs" / "circle.png"
PROMPT = "cyan circle with brown background"
SAME_DB = 45  # bytes that round to the neighbour; quantizing at all leaves some 49 dB, less in guess mode
# Of two pictures that round apart from each other, each as far from the float model's: the root of two.
APART_DB = 3
REQUESTS = {
    "plain": Request(PROMPT, steps=4),
    "guess mode": Request(PROMPT, steps=4, guess_mode=True),
    "two controls, one only at first": Request(
        PROMPT, steps=4, controls=(ControlInput("scribble"), ControlInput("scribble", strength=0.5, end=0.5))
    ),
    "two pictures": Request(PROMPT, steps=4, num_samples=2),
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """The tiny model's int8 layers by themselves, and as an engine."""
    out = tmp_path_factory.mktemp("int8") / "tiny.safetensors"
    assert (
        tools.compress.quantize.main(
            [str(CONFIG), "--scheme", "int8_dynamic", "--decoder", "--out", str(out)]
        )
        == 0
    )
    fused = Pipeline.from_files(CONFIG, quantized=out, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, "fuse_cpu", lambda _: None)
        plain = Pipeline.from_files(CONFIG, quantized=out, device="cpu")
    return plain, fused


@pytest.fixture(scope="module")
def exact():
    """The model in float."""
    return Pipeline.from_files(CONFIG, device="cpu")


def drawn(pipeline, request):
    sketch = read_image(SKETCH)
    return pipeline([sketch] * len(request.controls), request).images


@pytest.mark.parametrize("name", REQUESTS)
def test_a_picture_of_the_engine_is_that_of_its_layers(pipelines, exact, name):
    """As near to it as what quantizing costs allows."""
    layers, engine = (drawn(pipeline, REQUESTS[name]) for pipeline in pipelines)
    cost = min(psnr(drawn(exact, REQUESTS[name]), layers))
    assert min(psnr(layers, engine)) > cost - APART_DB


def test_a_file_that_is_loaded_for_the_cpu_becomes_an_engine(pipelines):
    found = [any(isinstance(m, FusedResBlock) for m in pipeline.model.modules()) for pipeline in pipelines]
    assert found == [False, True]


def test_saving_memory_changes_nothing(pipelines):
    """Slices and tiles larger than the picture."""
    plain, fused = pipelines
    saving = Pipeline(fused.model, defaults=fused.defaults, save_memory=True)
    assert min(psnr(drawn(plain, REQUESTS["plain"]), drawn(saving, REQUESTS["plain"]))) > SAME_DB
