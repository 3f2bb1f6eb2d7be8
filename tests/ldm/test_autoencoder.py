"""Laws of the autoencoder: its Gaussian, its tiles, and its retreat from half precision."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F

from ldm.models.autoencoder import AutoencoderKL, DiagonalGaussianDistribution, decode_tiled
from tests.small_models import VAE, randomize, relative_error

SHALLOW = VAE | {"ch_mult": [1, 2]}  # a picture is twice its latent, so that tiles are quick to decode
OVERFLOWING = 4e4  # times a weight still fits fp16, which ends at 65504; what it puts out does not


def autoencoder(config=SHALLOW, **options):
    return randomize(AutoencoderKL(config, embed_dim=4, **options)).eval()


def gaussian(logvar, mean=0.5):
    shape = (2, 3, 40, 40)
    return DiagonalGaussianDistribution(
        torch.cat([torch.full(shape, mean), torch.full(shape, logvar)], dim=1)
    )


def test_the_mode_is_the_mean_and_samples_spread_by_the_deviation():
    posterior = gaussian(math.log(0.09))
    assert torch.equal(posterior.mode(), posterior.mean)
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    n = drawn.numel()
    assert abs(drawn.mean() - 0.5) < 4 * 0.3 / n**0.5  # four standard errors
    assert abs(drawn.std() - 0.3) < 4 * 0.3 / (2 * n) ** 0.5


def test_a_generator_alone_decides_the_sample_and_without_one_it_is_torchs_first_draw():
    posterior = gaussian(0.0, mean=0.0)
    seeded = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    torch.manual_seed(3)
    drawn = posterior.sample()
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.randn(posterior.mean.shape))


def test_kl_is_that_of_torch_and_zero_for_the_standard_normal():
    torch.manual_seed(0)
    posterior = DiagonalGaussianDistribution(torch.randn(2, 6, 4, 4))
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(posterior.kl(), expected)
    assert torch.equal(gaussian(0.0, mean=0.0).kl(), torch.zeros(2))


@pytest.mark.parametrize("logvar", [-1e9, 1e9])
def test_wild_log_variances_stay_finite(logvar):
    posterior = gaussian(logvar)
    assert posterior.std.isfinite().all()
    assert posterior.kl().isfinite().all()


@torch.no_grad()
def test_forward_decodes_a_sample_of_its_own_posterior():
    vae, pixels = autoencoder(), torch.randn(2, 3, 16, 16)
    reconstruction, posterior = vae(pixels, torch.Generator().manual_seed(1))
    sample = vae.encode(pixels).sample(torch.Generator().manual_seed(1))
    assert torch.equal(reconstruction, vae.decode(sample))
    assert torch.equal(posterior.mean, vae.encode(pixels).mean)


def test_what_belongs_to_its_own_training_is_accepted():
    AutoencoderKL(ddconfig=SHALLOW, embed_dim=4, lossconfig={"target": "torch.nn.Identity"}, monitor="val")


def enlarge(z):
    return F.interpolate(z, scale_factor=2.0, mode="nearest")


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (40, 12), (33, 33), (5, 20)], ids=str)
@pytest.mark.parametrize("tile", [8, 11, 16])
def test_tiles_cover_every_pixel_exactly_once_in_weight(size, tile):
    z = torch.randn(2, 3, *size)
    torch.testing.assert_close(decode_tiled(enlarge, z, tile=tile), enlarge(z))


def test_no_tile_is_larger_than_asked():
    seen = []
    decode_tiled(lambda z: seen.append(z.shape[-2:]) or enlarge(z), torch.randn(1, 3, 33, 20), tile=16)
    assert set(seen) == {(16, 16)}
    assert len(seen) == 6  # starts 0, 12, 17 by 0, 4


@torch.no_grad()
def test_decoding_inside_one_tile_is_decoding_the_whole():
    z = torch.randn(1, 4, 16, 9)
    assert torch.equal(autoencoder(tile=16).decode(z), autoencoder().decode(z))


@torch.no_grad()
def test_decoding_in_tiles_is_close_to_decoding_the_whole():
    z = torch.randn(1, 4, 40, 28)
    whole, tiled = autoencoder().decode(z), autoencoder(tile=24).decode(z)
    assert 0 < relative_error(tiled, whole) < 0.2  # norms and attention see another neighbourhood
    unrelated = autoencoder().decode(torch.randn(1, 4, 40, 28))
    assert relative_error(tiled, whole) < relative_error(unrelated, whole) / 5


@pytest.mark.parametrize("tile", [0, 7])
def test_tiles_below_8_latent_pixels_are_refused(tile):
    with pytest.raises(ValueError, match=f"tile={tile}: VAE tiles need at least 8 latent pixels"):
        autoencoder(tile=tile).decode(torch.randn(1, 4, 16, 16))


def overflowing(part):
    """An autoencoder whose `part` leaves the range of fp16 on its way to an answer of usual size."""
    vae = autoencoder()
    network = getattr(vae, part)
    with torch.no_grad():
        network.conv_in.weight *= OVERFLOWING
    return vae


@torch.no_grad()
@pytest.mark.parametrize("tile", [None, 8])
def test_a_decoder_that_overflows_is_run_again_in_float32_and_says_so(caplog, tile):
    vae, z = overflowing("decoder"), torch.randn(1, 4, 12, 12)
    vae.tile = tile
    exact = vae.decode(z)
    vae.half()
    with caplog.at_level(logging.WARNING):
        pixels = vae.decode(z.half())
    assert "the autoencoder overflowed in torch.float16; it works in float32" in caplog.text
    assert relative_error(pixels, exact) < 0.01  # weights and latents were rounded to fp16 once
    caplog.clear()
    assert torch.equal(vae.decode(z.half()), pixels)
    assert torch.equal(vae.half().decode(z.half()), pixels)  # nothing leads back to half precision
    assert not caplog.records


@torch.no_grad()
def test_an_encoder_that_overflows_is_run_again_in_float32(caplog):
    vae, pixels = overflowing("encoder"), torch.randn(1, 3, 16, 16)
    exact = vae.encode(pixels).mode()
    posterior = vae.half().encode(pixels.half())
    assert relative_error(posterior.mode(), exact) < 0.01
    assert "overflowed" in caplog.text


@torch.no_grad()
def test_autocast_that_overflows_is_left_for_good(caplog):
    vae, z = overflowing("decoder"), torch.randn(1, 4, 8, 8)
    exact = vae.decode(z)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(vae.decode(z), exact)
        assert torch.equal(vae.decode(z), exact)
    assert len(caplog.records) == 1


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_that_fits_stays(caplog, dtype):
    vae, z, pixels = autoencoder(), torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16, 16)
    exact, mode = vae.decode(z), vae.encode(pixels).mode()
    vae.to(dtype)
    assert vae.decode(z.to(dtype)).dtype == vae.encode(pixels.to(dtype)).mode().dtype == dtype
    assert vae.decode(z).dtype == vae.encode(pixels).mode().dtype == torch.float32  # answers in kind
    assert relative_error(vae.decode(z), exact) < 0.05
    assert relative_error(vae.encode(pixels).mode(), mode) < 0.05
    assert not caplog.records


@torch.no_grad()
def test_latents_that_are_not_finite_are_not_the_autoencoders_fault(caplog):
    vae = autoencoder().half()
    z = torch.full((1, 4, 8, 8), math.nan)
    assert vae.decode(z).isnan().any()
    assert "given NaN or infinity" in caplog.text
    assert next(vae.parameters()).dtype == torch.float16
