"""The pictures of a training run have the published names, sizes and range."""

import pytest
import torch

from cldm.log_images import captions
from ldm.models.diffusion.ddim import DDIMSampler
from tests.small_models import build

SIZE = (3, 3, 64, 32)


@pytest.fixture(scope="module")
def model():
    return build()


def batch():
    noise = torch.Generator().manual_seed(0)
    jpg, hint = (torch.rand(3, 64, 32, 3, generator=noise) for _ in range(2))
    return {"jpg": jpg * 2 - 1, "txt": ["a red circle", "", "star"], "hint": hint}


def draw(model, **options):
    torch.manual_seed(0)
    return model.log_images(batch(), ddim_steps=2, **options)


def test_names_and_sizes_are_the_published_ones(model):
    pictures = draw(model)
    assert list(pictures) == ["reconstruction", "control", "conditioning", "samples_cfg_scale_9.00"]
    assert {tuple(picture.shape) for picture in pictures.values()} == {SIZE}
    assert not any(picture.requires_grad for picture in pictures.values())


def test_published_keywords_choose_what_is_drawn(model):
    assert list(draw(model, sample=True, split="train", n_row=2))[3:] == ["samples", "samples_cfg_scale_9.00"]
    assert list(draw(model, unconditional_guidance_scale=1.0)) == [
        "reconstruction",
        "control",
        "conditioning",
    ]
    assert "samples_cfg_scale_7.50" in draw(model, unconditional_guidance_scale=7.5)
    assert {len(picture) for picture in draw(model, N=2).values()} == {2}


def test_the_control_map_is_stretched_to_the_range_of_pictures(model):
    control = draw(model)["control"]
    torch.testing.assert_close(control, batch()["hint"].permute(0, 3, 1, 2) * 2 - 1)


def test_samples_are_guided_away_from_the_empty_prompt(model):
    pictures = draw(model, sample=True, unconditional_guidance_scale=3.0)
    torch.manual_seed(0)
    latent, cond = model.get_input(batch(), "jpg")
    uncond = cond | {"c_crossattn": [model.get_unconditional_conditioning(3)]}
    guidance = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": uncond}
    for name, options in (("samples", {}), ("samples_cfg_scale_3.00", guidance)):
        samples, _ = DDIMSampler(model).sample(2, 3, latent.shape[1:], cond, **options)
        assert torch.equal(model.decode_first_stage(samples), pictures[name])


def test_captions_are_black_on_white_and_wrap_inside_their_picture():
    blank, short, long = captions(["", "circle", "pale golden rod star " * 8], (128, 128))
    assert blank.shape == (3, 128, 128)
    assert torch.equal(blank, torch.ones_like(blank))
    assert short.min() < -0.5
    assert long.min() >= -1
    assert (long.amin(0) < 0).any(1).sum() > 3 * (short.amin(0) < 0).any(1).sum()  # more lines
    assert (long[..., -1] == 1).all()
