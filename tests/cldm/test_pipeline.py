"""One request through a small random model."""

from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch

from annotator.util import target_size
from cldm.conditioning import encode_image, fit_image, fit_mask
from cldm.pipeline import Pipeline
from cldm.request import ControlInput, Request
from ldm.models.diffusion.samplers import SAMPLERS
from tests.small_models import build, settings

SKETCH = np.full((64, 64, 3), 255, np.uint8)
SKETCH[20:44, 20:22] = SKETCH[20:44, 42:44] = SKETCH[20:22, 20:44] = SKETCH[42:44, 20:44] = 0
PHOTO = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(build(), defaults={"resolution": 64, "scale": 2.0})


def ask(prompt="a red square", **fields):
    return Request(prompt, **{"steps": 2, **fields})


@contextmanager
def calls(pipe):
    """What the model is called with meanwhile: how many rows, and whether they are steered."""
    seen, original = [], pipe.model.apply_model
    pipe.model.apply_model = lambda x, t, cond: (
        seen.append((len(x), cond["control"] is not None)) or original(x, t, cond)
    )
    try:
        yield seen
    finally:
        del pipe.model.apply_model


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def test_the_same_request_gives_the_same_bytes(pipe):
    assert same(pipe(SKETCH, ask(num_samples=2)), pipe(SKETCH, ask(num_samples=2)))
    assert not same(pipe(SKETCH, ask()), pipe(SKETCH, ask(seed=1)))


def test_picture_k_of_many_is_the_picture_of_seed_plus_k(pipe):
    many = pipe(SKETCH, ask(num_samples=3, eta=0.5)).images
    alone = pipe(SKETCH, ask(seed=2, eta=0.5)).images[0]
    # One level: batches of other sizes may round differently.
    assert np.abs(many[2].astype(int) - alone).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_makes_a_picture_of_the_maps_size(pipe, sampler):
    result = pipe(SKETCH, ask(sampler=sampler, steps=3))
    assert result.images[0].shape == result.maps[0].shape == (64, 64, 3)
    assert result.images[0].dtype == np.uint8


def test_the_result_says_what_the_defaults_were(pipe):
    request = pipe(SKETCH, ask()).request
    assert (request.scale, request.resolution) == (2.0, 64)
    assert same(pipe(SKETCH, request), pipe(SKETCH, ask()))


def test_strength_zero_is_a_picture_without_control(pipe):
    weak = pipe(SKETCH, ask(controls=(ControlInput(strength=0),)))
    assert same(weak, pipe(SKETCH[::-1, ::-1].copy(), ask(controls=(ControlInput(strength=0),))))
    assert not same(weak, pipe(SKETCH, ask()))


def test_a_request_writes_nothing_to_the_model(pipe):
    before = {name: value.clone() for name, value in pipe.model.state_dict().items()}
    scales = list(pipe.model.control_scales)
    pipe(SKETCH, ask(guess_mode=True, controls=(ControlInput(strength=0.3),)))
    assert pipe.model.control_scales == scales
    assert all(torch.equal(value, before[name]) for name, value in pipe.model.state_dict().items())


def test_guess_mode_and_guided_control_keep_control_out_of_the_unconditional_pass(pipe):
    with calls(pipe) as seen:
        pipe(SKETCH, ask(steps=1, guess_mode=True))
        assert seen == [(1, True), (1, False)]
        pipe(SKETCH, ask(steps=1, guided_control=True))
        assert seen[2:] == [(1, True), (1, False)]


def test_both_halves_of_guidance_are_one_call_unless_memory_is_short(pipe):
    saving = Pipeline(pipe.model, defaults=pipe.defaults)
    saving.save_memory = True  # of an own pipeline alone: the model's attention is not sliced
    with calls(pipe) as seen:
        together = pipe(SKETCH, ask(steps=1, num_samples=2)).images
        assert seen == [(4, True)]
        apart = saving(SKETCH, ask(steps=1, num_samples=2)).images
        assert seen[1:] == [(2, True), (2, True)]
        pipe(SKETCH, ask(steps=1, scale=1.0))
        assert seen[3:] == [(1, True)]
    for one, other in zip(together, apart, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_several_maps_meet_their_own_pictures_in_one_call(pipe):
    hints = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    together = pipe.generate(["a", "b"], hints, seed=3, steps=2)
    saving = Pipeline(pipe.model, defaults=pipe.defaults)
    saving.save_memory = True  # as above
    apart = saving.generate(["a", "b"], hints, seed=3, steps=2)
    for one, other in zip(together, apart, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_two_controls_with_their_own_maps_and_branches(pipe):
    pipe.branches["other"] = build(seed=5).control_model
    both = (ControlInput("scribble"), ControlInput("canny", 0.5, branch="other"))
    result = pipe([SKETCH, PHOTO], ask(controls=both))
    assert len(result.maps) == 2
    assert not same(result, pipe(SKETCH, ask()))


def test_a_white_brush_on_a_transparent_layer_is_a_mask():
    brush = np.zeros((64, 64, 4), np.uint8)
    brush[16:32, 16:32] = 255
    painted = fit_mask(brush, (64, 64))
    assert painted[16:32, 16:32].all()
    assert painted.sum() == 16 * 16


def test_an_initial_picture_of_another_shape_is_cut_not_squeezed():
    disc = np.zeros((128, 256, 3), np.uint8)
    disc[(np.arange(128)[:, None] - 64) ** 2 + (np.arange(256) - 128) ** 2 < 40**2] = 255
    fitted = fit_image(disc, (64, 64))[..., 0] > 127
    assert np.ptp(fitted.any(axis=0).nonzero()[0]) == np.ptp(fitted.any(axis=1).nonzero()[0])
    mask = np.zeros((128, 256), np.uint8)
    mask[:, 64:192] = 255  # just what is left of the picture
    assert fit_mask(mask, (64, 64)).all()


def test_a_picture_whose_sides_are_only_rounded_is_taken_whole():
    photo = np.random.default_rng(1).integers(0, 256, (100, 150, 3), np.uint8)
    whole = cv2.resize(photo, (128, 64), interpolation=cv2.INTER_AREA)
    assert target_size(100, 150, 64) == (64, 128) != (64, 96)  # what it is rounded to
    assert np.array_equal(fit_image(photo, (64, 128)), whole)


def test_a_mask_keeps_every_pixel_outside_it(pipe):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    picture = pipe(SKETCH, ask(), init=PHOTO, mask=mask).images[0]
    assert np.array_equal(picture[mask == 0], PHOTO[mask == 0])
    assert not np.array_equal(picture[mask > 0], PHOTO[mask > 0])


def test_little_denoising_stays_near_the_latents_of_the_picture(pipe):
    # 10 steps, of which 1 or 8 run: the fewer, the nearer to the autoencoder's own reconstruction.
    with torch.inference_mode():
        latent = encode_image(pipe.model, PHOTO)
        decoded = pipe.model.decode_first_stage(latent)
    reconstruction = as_picture(decoded)

    def distance(denoise):
        picture = pipe(SKETCH, ask(steps=10, denoise=denoise), init=PHOTO).images[0]
        return np.abs(picture - reconstruction).mean()

    assert distance(0.1) < distance(0.8)


def as_picture(pixels):
    return (pixels[0].permute(1, 2, 0) * 127.5 + 127.5).clamp(0, 255).numpy()


def test_progress_reports_every_step_and_previews_have_the_shape(pipe):
    steps = []
    pipe(SKETCH, ask(steps=3), on_step=steps.append)
    assert [(step.index, step.total) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    assert pipe.preview(steps[0].x0)[0].shape == (64, 64, 3)


def test_a_half_precision_model_makes_finite_pictures(pipe):
    half = Pipeline(build().bfloat16(), defaults=pipe.defaults)
    assert half(SKETCH, ask()).images[0].std() > 0


def test_saving_memory_changes_the_picture_by_rounding_only(pipe):
    saving = Pipeline(build(), defaults=pipe.defaults, save_memory=True)
    got = saving(SKETCH, ask()).images[0].astype(int)
    assert np.abs(got - pipe(SKETCH, ask()).images[0]).max() <= 1


def test_generate_makes_one_picture_a_prompt(pipe):
    hints = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pictures = pipe.generate(["a", "b"], hints, seed=3, steps=2)
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * 2
    free = pipe.generate(["a", "b"], None, seed=3, steps=2)
    assert not np.array_equal(pictures[0], free[0])


def test_a_yaml_says_whether_its_control_is_guided(pipe):
    hints = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    guided = Pipeline(pipe.model, defaults={**pipe.defaults, "guided_control": True})
    by_default, plain = (one.generate(["a"], hints, seed=3, steps=2, scale=3)[0] for one in (guided, pipe))
    assert not np.array_equal(by_default, plain)
    asked = pipe(SKETCH, ask(guided_control=True)).images[0]
    assert np.array_equal(guided(SKETCH, ask()).images[0], asked)
    assert np.array_equal(guided(SKETCH, ask(guided_control=False)).images[0], pipe(SKETCH, ask()).images[0])


@pytest.mark.parametrize(
    ("fields", "options", "sentence"),
    [
        ({"denoise": 0.5}, {}, "initial picture"),
        ({}, {"mask": np.zeros((64, 64), np.uint8)}, "initial picture"),
        ({"controls": (ControlInput(branch="gone"),)}, {}, "no control branch 'gone'"),
        ({"controls": (ControlInput(scales=(1.0,)),)}, {}, "scales has 1 factors"),
        ({"controls": (ControlInput("depth"),)}, {}, "depth_anything_v2 needs"),
    ],
)
def test_settings_that_do_not_fit_are_named(pipe, fields, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipe(SKETCH, ask(**fields), **options)


def test_pictures_that_do_not_fit_the_controls_are_named(pipe):
    two = (ControlInput(), ControlInput())
    with pytest.raises(ValueError, match="3 pictures for 2 controls"):
        pipe([SKETCH] * 3, ask(controls=two))
    with pytest.raises(ValueError, match="differ in size"):
        pipe([SKETCH, np.full((64, 128, 3), 255, np.uint8)], ask(controls=two))


def test_a_yaml_without_weights_asks_for_files(tmp_path):
    from omegaconf import OmegaConf

    path = tmp_path / "model.yaml"
    OmegaConf.save(settings(), path)
    with pytest.raises(ValueError, match="ships no weights"):
        Pipeline.from_files(path)


def test_a_pipeline_from_files_draws_as_the_model_it_was_saved_from(pipe, tmp_path):
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    config = settings()
    config.weights = ["model.safetensors"]
    config.defaults = dict(pipe.defaults)
    OmegaConf.save(config, tmp_path / "model.yaml")
    save_file(build().state_dict(), tmp_path / "model.safetensors")
    loaded = Pipeline.from_files(tmp_path / "model.yaml", device="cpu")
    saved = pipe.model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.model.state_dict().items())
    # One level: weights lie in the mapped file where its header ends, and MKL rounds a product of one row
    # by how its operands are aligned to 64 bytes.
    images = loaded(SKETCH, ask()).images[0].astype(int), pipe(SKETCH, ask()).images[0]
    assert np.abs(images[0] - images[1]).max() <= 1
