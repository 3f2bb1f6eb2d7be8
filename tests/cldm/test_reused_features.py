"""Steps that use features again: what they compute, when, and that doing it never is the same to the bit."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from cldm.pipeline import Pipeline
from cldm.request import ControlInput, Request
from cldm.sampling import ControlledDenoiser, ControlUnit, combined_residuals, control_scales, step_at
from ldm.models.diffusion.samplers import SAMPLERS, get_sampler
from ldm.modules.feature_cache import CACHE_POINTS, DEFAULT_CACHE_POINT, CachePoint, FeatureCache
from tests.small_models import SD15, build

BLOCKS = 9  # input blocks of the small model, and output blocks
HINT = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
TEXT = torch.randn(2, 5, SD15["context_dim"], generator=torch.Generator().manual_seed(3))
TIMESTEPS = [1.0, 200.0, 400.0, 600.0, 800.0, 999.0]
SKETCH = np.full((64, 64, 3), 255, np.uint8)
SKETCH[20:44, 20:22] = SKETCH[20:44, 42:44] = SKETCH[20:22, 20:44] = SKETCH[42:44, 20:44] = 0
each_cut = pytest.mark.parametrize("cut", CACHE_POINTS)


@pytest.fixture(scope="module")
def model():
    return build().requires_grad_(False)


@pytest.fixture(scope="module")
def pipe(model):
    return Pipeline(model, defaults={"resolution": 64, "scale": 2.0})


def unit(model, strength=1.0, **options):
    scales = control_scales(strength, len(model.control_scales), guess_mode=False)
    return ControlUnit(model.control_model, model.control_model.encode_hint(HINT), scales, **options)


def saving(every=1, cut=DEFAULT_CACHE_POINT, control_every=1):
    return Request("x", reuse_every=every, reuse_cut=cut, control_every=control_every)


def plain_denoiser(model, text, units, timesteps):
    """Every branch and the whole U-Net at each step, nothing kept."""

    def denoise(x, t):
        acting = [one for one in units if one.acts(step_at(timesteps, t), len(timesteps))]
        control = combined_residuals(acting, x, t, text)
        cond = {"c_crossattn": [text], "c_concat": None, "control": control}
        return model.predict_eps(x, t, cond)

    return denoise


def walk(denoise, timesteps=TIMESTEPS):
    """The answers of a denoiser at each step, from the noisiest on, for another latent each."""
    return [denoise(X * (1 + 0.1 * i), torch.full((2,), int(t))) for i, t in enumerate(reversed(timesteps))]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def counted(model):
    """Calls inside, by name: the parts of the U-Net that tell kinds of steps apart, and the branch."""
    calls, unet = Counter(), model.model.diffusion_model
    parts = {
        "branch": model.control_model, "unet": unet, "middle": unet.middle_block,
        **{f"in {i}": block for i, block in enumerate(unet.input_blocks)},
        **{f"out {i}": block for i, block in enumerate(unet.output_blocks)},
    }  # fmt: skip
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
        for name, part in parts.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@each_cut
def test_reusing_nothing_is_the_plain_denoiser_to_the_bit(model, cut):
    units = [unit(model), unit(model, 0.5, start=0.5)]
    plain = walk(plain_denoiser(model, TEXT, units, TIMESTEPS))
    assert same(walk(ControlledDenoiser(model, TEXT, units, TIMESTEPS, saving(1, cut, 1))), plain)


@each_cut
@pytest.mark.parametrize("way", [{}, {"only_mid_control": True}, {"control": None}])
def test_a_step_between_with_nothing_changed_is_the_whole_step_to_the_bit(model, cut, way):
    unet, t = model.model.diffusion_model, torch.tensor([500, 500])
    control = model.control_model(X, HINT.expand(2, -1, -1, -1), t, TEXT)
    cache, options = CACHE_POINTS[cut].make_cache(BLOCKS), {"control": control, **way}
    whole = unet(X, t, TEXT, cache=cache, **options)
    assert torch.equal(whole, unet(X, t, TEXT, **options))
    with counted(model) as calls:
        assert torch.equal(unet(X, t, TEXT, cache=cache, **options), whole)
    assert calls["middle"] == 0


@each_cut
def test_whole_steps_are_exact_and_those_between_are_not(model, cut):
    units = [unit(model)]
    plain = walk(plain_denoiser(model, TEXT, units, TIMESTEPS))
    reused = walk(ControlledDenoiser(model, TEXT, units, TIMESTEPS, saving(2, cut)))
    assert same(reused[::2], plain[::2])  # whole steps
    assert not any(torch.equal(a, b) for a, b in zip(reused[1::2], plain[1::2], strict=True))


@pytest.mark.parametrize(
    ("cut", "computed"),
    [
        ("outer-1", {"in 0", "out 8"}),
        ("outer-3", {"in 0", "in 1", "in 2", "out 6", "out 7", "out 8"}),
        ("decoder", {f"out {i}" for i in range(BLOCKS)}),
    ],
)
def test_every_second_step_computes_only_what_the_cut_says(model, cut, computed):
    with counted(model) as calls:
        walk(ControlledDenoiser(model, TEXT, [unit(model)], TIMESTEPS, saving(2, cut)))
    assert {name for name in calls if name[:2] in ("in", "ou") and calls[name] == 6} == computed
    assert {calls[name] for name in calls if name not in computed | {"unet"}} == {3}
    assert calls["unet"] == 6


def test_the_branch_alone_rests_and_its_residuals_stay(model):
    seen, plain = [], model.apply_model
    model.apply_model = lambda x, t, cond: seen.append(cond["control"]) or plain(x, t, cond)
    try:
        with counted(model) as calls:
            walk(ControlledDenoiser(model, TEXT, [unit(model, 0.5)], TIMESTEPS, saving(control_every=4)))
    finally:
        del model.apply_model
    assert (calls["branch"], calls["middle"]) == (2, 6)
    assert same(seen[0], seen[3])
    assert not same(seen[3], seen[4])


def test_branches_rest_longer_than_the_unet_where_both_are_asked(model):
    with counted(model) as calls:
        walk(ControlledDenoiser(model, TEXT, [unit(model)], TIMESTEPS, saving(2, control_every=4)))
    assert (calls["branch"], calls["middle"]) == (2, 3)


def test_a_branch_that_comes_or_goes_makes_a_step_whole(model):
    late, early = [unit(model, start=0.5)], [unit(model, end=0.5)]
    for units, calls_of_branch in ((late, 1), (early, 1)):
        with counted(model) as calls:
            walk(ControlledDenoiser(model, TEXT, units, TIMESTEPS, saving(6)))
        assert (calls["middle"], calls["branch"]) == (2, calls_of_branch)


def test_what_a_branch_added_is_gone_with_it_to_the_bit(model):
    denoise = ControlledDenoiser(model, TEXT, [unit(model, end=0.5)], TIMESTEPS, saving(control_every=6))
    plain = walk(plain_denoiser(model, TEXT, [], TIMESTEPS))
    got = walk(denoise)
    assert same(got[3:], plain[3:])
    assert not torch.equal(got[2], plain[2])


@pytest.mark.parametrize(
    ("steps", "whole"), [([0, 1, 2, 3, 4, 5], [0, 3]), ([1, 2, 3, 4], [1, 3]), ([2, 4, 5], [2, 4])]
)
def test_a_pass_that_begins_late_or_misses_steps_keeps_the_same_rhythm(model, steps, whole):
    denoise, found = ControlledDenoiser(model, TEXT, [], TIMESTEPS, saving(3)), []
    for step in steps:
        with counted(model) as calls:
            denoise(X, torch.full((2,), int(TIMESTEPS[-1 - step])))
        found += [step] * calls["middle"]
    assert found == whole


def test_both_looks_of_a_second_order_solver_at_a_level_are_of_one_kind(model):
    abar, steps = model.alphas_cumprod, 5
    levels = get_sampler("heun").timesteps(steps, abar)
    denoise, seen = ControlledDenoiser(model, TEXT, [], levels, saving(2)), []

    def listen(x, t):
        with counted(model) as calls:
            eps = denoise(x, t)
        seen.append((round(float(t[0]), 3), calls["middle"] == 1))
        return eps

    get_sampler("heun")(listen, X, levels, abar)
    kinds = [(round(level, 3), i % 2 == 0) for i, level in enumerate(reversed(levels))]
    assert seen == [kinds[0], *(kind for kind in kinds[1:] for _ in range(2))]


def ask(**fields):
    return Request("a red square", **{"steps": 4, **fields})


def pictures(pipe, request, **options):
    return [torch.from_numpy(picture) for picture in pipe(SKETCH, request, **options).images]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_leaves_out_the_same_steps(pipe, sampler):
    whole = pictures(pipe, ask(sampler=sampler))
    with counted(pipe.model) as calls:
        saved = pictures(pipe, ask(sampler=sampler, reuse_every=2, guidance_end=0.5))
    looks, guided = (7, 3) if sampler == "heun" else (4, 2)  # Heun looks twice at all levels but the first
    assert calls["unet"] == looks + guided
    assert not same(saved, whole)


@pytest.mark.parametrize("fields", [{}, {"guess_mode": True}, {"guided_control": True}])
def test_unguided_steps_are_those_of_scale_one_to_the_bit(pipe, fields):
    with counted(pipe.model) as calls:
        pipe(SKETCH, ask(guidance_start=0.25, guidance_end=0.75, **fields))
    assert calls["unet"] == 4 + (2 if fields else 0)  # both passes are one call where they are steered alike
    assert calls["branch"] == 4
    first = []
    for request in (ask(guidance_start=0.25, **fields), ask(scale=1, **fields)):
        steps = []
        pipe(SKETCH, request, on_step=steps.append)
        first.append(steps)
    assert torch.equal(first[0][0].x, first[1][0].x)
    assert not torch.equal(first[0][1].x, first[1][1].x)


def test_the_defaults_and_one_are_off_to_the_bit(pipe):
    plain = pictures(pipe, ask(num_samples=2))
    for cut in CACHE_POINTS:
        off = ask(
            num_samples=2, guidance_start=0, guidance_end=1, reuse_every=1, reuse_cut=cut, control_every=1
        )
        assert same(pictures(pipe, off), plain)


def test_savings_go_with_several_controls_a_picture_to_start_from_and_a_mask(pipe):
    pipe.branches["other"] = build(seed=5).control_model
    both = (ControlInput(end=0.5), ControlInput("canny", 0.5, branch="other"))
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    saving = ask(steps=8, controls=both, denoise=0.75, reuse_every=2, control_every=4, guidance_end=0.5)
    picture = pipe(SKETCH, saving, init=photo, mask=mask).images[0]
    assert np.array_equal(picture[mask == 0], photo[mask == 0])
    assert not np.array_equal(picture[mask > 0], photo[mask > 0])


def test_requests_in_two_threads_keep_their_features_apart(pipe):
    requests = [
        ask(seed=seed, reuse_every=2, control_every=4, reuse_cut=cut) for seed, cut in enumerate(CACHE_POINTS)
    ]
    alone = [pictures(pipe, request) for request in requests]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda request: pictures(pipe, request), requests))
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))


def test_a_half_precision_model_saves_too(pipe):
    half = Pipeline(build().bfloat16(), defaults=pipe.defaults)
    assert half(SKETCH, ask(reuse_every=2)).images[0].std() > 0


@pytest.mark.parametrize("cut", [CachePoint(10, 10), CachePoint(1, 10)])
def test_a_unet_too_small_for_a_cut_is_refused(cut):
    with pytest.raises(ValueError, match="this U-Net has 9 output blocks"):
        cut.make_cache(BLOCKS)
    assert CachePoint(0, None).make_cache(BLOCKS) == FeatureCache(0, BLOCKS)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"guidance_start": 0.5, "guidance_end": 0.5}, "guidance_start=0.5, guidance_end=0.5: parts"),
        ({"guidance_end": 1.5}, "0 <= start < end <= 1"),
        ({"reuse_every": 0}, "reuse_every=0: use 1 .compute every step. to 500"),
        ({"control_every": 501}, "control_every=501: use 1"),
        ({"reuse_cut": "deep"}, "reuse_cut='deep' is no way to cut the U-Net: choose from outer-1"),
    ],
)
def test_savings_out_of_range_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(ask(), **fields)
