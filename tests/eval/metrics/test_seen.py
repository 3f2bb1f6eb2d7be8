"""LPIPS, CLIP score, CMMD and DINOv2 through small networks with random weights, from local folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.metrics import weights
from eval.metrics.clip import CLIP_SCORE, CMMD, MAX_TOKENS, cut_prompts
from eval.metrics.dinov2 import FD_DINOV2
from eval.metrics.lpips import LPIPS
from eval.metrics.metric import Picture, Tools
from eval.metrics.networks import bicubic, middle_square
from eval.metrics.registry import METRICS
from tests.eval.metrics.networks import alexnet_file, published


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pictures(rng, *shapes, prompt="a red circle"):
    return [Picture(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), prompt=prompt) for shape in shapes]


def test_lpips_is_its_formula(tmp_path, rng):
    import torchmetrics.functional.image as image
    import torchvision

    path = alexnet_file(tmp_path)
    first, second = rng.integers(0, 256, (2, 64, 80, 3), dtype=np.uint8)
    found = LPIPS.feature.open(Tools(path, "cpu"))([Picture(first, second), Picture(first, first)])

    features = torchvision.models.alexnet(weights=None).features
    features.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(path).items()})
    heads = torch.load(Path(image.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu")
    shift, scale = (torch.tensor(v)[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    pair, expected = (
        [(torch.from_numpy(x).permute(2, 0, 1) / 127.5 - 1 - shift) / scale for x in (first, second)],
        0,
    )
    for number, layer in enumerate(features):
        pair = [layer(x) for x in pair]
        if number in (1, 4, 7, 9, 11):
            unit = [x / (x.square().sum(0, keepdim=True) + 1e-8).sqrt() for x in pair]
            head = heads[f"lin{(1, 4, 7, 9, 11).index(number)}.model.1.weight"][0]
            expected += (head * (unit[0] - unit[1]).square()).sum(0).mean().item()
    np.testing.assert_allclose(found, [[expected], [0]], rtol=1e-4, atol=1e-7)


def test_lpips_says_what_is_too_small(tmp_path, rng):
    image = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="63 pixels or more"):
        LPIPS.feature.open(Tools(alexnet_file(tmp_path), "cpu"))([Picture(image, image)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP as transformers keeps it, with a tokenizer of letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(words), eos_token_id=len(words) - 1, projection_dim=8, **small)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=8, **small)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
        ).save_pretrained(folder)
    return folder


def test_the_clip_score_is_a_hundred_cosines_and_never_negative(clip, rng):
    some = pictures(rng, (40, 40), (64, 48), (32, 32), (33, 90))
    scores = CLIP_SCORE.feature.open(Tools(clip, "cpu"))(some)
    assert scores.shape == (4, 1)
    assert ((scores >= 0) & (scores <= 100)).all()
    alone = [CLIP_SCORE.feature.open(Tools(clip, "cpu"))([one])[0] for one in some]
    np.testing.assert_allclose(scores, alone, atol=1e-3)


def test_long_prompts_are_counted_and_cut(clip, rng):
    long = "z" * (MAX_TOKENS - 1)
    assert cut_prompts(Tools(clip), ["short", "z" * (MAX_TOKENS - 2)]) is None
    assert cut_prompts(Tools(clip), ["short", long, long]).startswith("2 of 3 prompts are cut")
    compute = CLIP_SCORE.feature.open(Tools(clip, "cpu"))
    one = pictures(rng, (32, 32), prompt=long)[0]
    other = Picture(one.image, prompt=f"{long} more of it")
    np.testing.assert_allclose(compute([one]), compute([other]), atol=1e-4)


def test_embeddings_of_cmmd_have_length_one(clip, rng):
    found = CMMD.feature.open(Tools(clip, "cpu"))(pictures(rng, (40, 60), (32, 32)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_dinov2_gives_its_class_token(tmp_path, rng):
    from transformers import Dinov2Config, Dinov2Model

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **small))
    net.save_pretrained(tmp_path)
    found = FD_DINOV2.feature.open(Tools(tmp_path, "cpu"))(pictures(rng, (40, 60), (224, 224)))
    assert found.shape == (2, 16)
    assert not np.allclose(found[0], found[1])


def test_a_square_is_cut_from_the_middle_and_a_fitting_picture_stays(rng):
    image = rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)
    assert middle_square(image) == (2, 0, 12, 10)
    np.testing.assert_array_equal(bicubic(image, 10, middle_square(image)), image[:, 2:12])
    np.testing.assert_array_equal(bicubic(image[:, :10], 10), image[:, :10])


def test_a_network_is_known_by_its_content(tmp_path, clip):
    path = alexnet_file(tmp_path)
    own = published(path)
    assert weights.identity(own, path) == own.sha256
    with pytest.raises(
        ValueError, match="7be5be79 is the published one: delete it, then python tool_download"
    ):
        weights.identity(weights.NETWORKS["alexnet"], path)
    assert len(weights.identity(weights.NETWORKS["clip"], clip)) == 64
    with pytest.raises(ValueError, match="no folder of transformers"):
        weights.identity(weights.NETWORKS["clip"], tmp_path)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_says_what_it_is_and_where_its_network_lies(name):
    metric = METRICS[name]
    assert metric.title
    assert metric.better in ("higher", "lower")
    assert metric.feature.network is None or metric.feature.network in weights.NETWORKS
