"""Our networks compute the same after balancing, and have a pair wherever nothing stands between."""

import pytest
import torch
from PIL import Image

from cldm.lite import Block
from cldm.pipeline import Pipeline
from ldm.modules.attention import SpatialTransformer
from quantize.calibration.ranges import watch_inputs
from quantize.calibration.smoothquant import AbsMaxObserver, smooth_
from tests.small_files import write_small_model
from tests.small_models import SD15, SD21, build, randomize, relative_error
from tools.compress.calibration import Example, FloatModel, Runs, smooth, smoothing_pairs


def answer(model):
    noise = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=noise), torch.randn(2, 7, 32, generator=noise)
    cond = {"c_crossattn": [text], "c_concat": [torch.rand(2, 3, 64, 64, generator=noise)]}
    with torch.inference_mode():
        return model.apply_model(x, torch.tensor([300, 300]), cond)


class ModelCalls:
    """Runs that ask the model itself: no pictures, no pipeline."""

    def play(self, pipeline):
        answer(pipeline.model)


class Holder:
    def __init__(self, model):
        self.model = model


@pytest.mark.parametrize("unet", [SD15, SD21], ids=["1x1 convolutions", "Linear projections"])
def test_a_balanced_model_answers_as_before(unet):
    model = build(unet).requires_grad_(False)
    expected = answer(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transformers = [one for one in model.modules() if isinstance(one, SpatialTransformer)]
    in_blocks = 6  # norm1, norm2, norm3, the values of both attentions, the gated half
    assert smooth(FloatModel(Holder(model), [], None, None, ModelCalls())) == (in_blocks + 1) * len(
        transformers
    )
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    for place in ("norm1.weight", "norm2.bias", "norm3.weight", "attn2.to_v.weight", "ff.net.2.weight"):
        assert any(name.endswith(place) for name in changed)
    assert not any("in_layers" in name or "to_k.bias" in name for name in changed)
    assert relative_error(answer(model), expected) < 1e-4


def test_a_lite_block_answers_as_before():
    block = randomize(Block(16, 3)).requires_grad_(False)
    x = torch.randn(2, 16, 8, 8)
    expected, gain = block(x), block.norm.weight.clone()
    pairs, peaks = smoothing_pairs(block), AbsMaxObserver(block)
    with watch_inputs(block, [pair.layers[0] for pair in pairs], peaks.see):
        block(x)
    assert smooth_(block, pairs, peaks.by_name) == 1
    assert not torch.equal(block.norm.weight, gain)
    assert relative_error(block(x), expected) < 1e-5


def test_pictures_are_the_same_after_balancing(tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    pipeline = Pipeline.from_files(write_small_model(tmp_path), device="cpu")
    runs = Runs([Example(tmp_path / "a.png", "a circle")], steps=2)
    expected = answer(pipeline.model)
    assert smooth(FloatModel(pipeline, [], None, None, runs)) > 0
    assert relative_error(answer(pipeline.model), expected) < 1e-4
