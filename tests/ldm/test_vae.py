"""Laws of the autoencoder's two halves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.vae import AttnBlock, Decoder, Downsample, Encoder, ResnetBlock, VAEConfig
from tests.small_models import VAE, randomize, relative_error

CONFIG = VAEConfig.from_params(VAE)


def test_downsampling_pads_right_and_below_only():
    down = Downsample(1)
    nn.init.ones_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    sums = down(torch.ones(1, 1, 6, 8))[0, 0]
    assert sums.shape == (3, 4)
    assert sums[0, 0] == 9  # the top left window lies wholly in the picture
    assert sums[-1, -1] == 4


@torch.no_grad()
def test_attention_is_one_head_over_all_positions():
    block, x = randomize(AttnBlock(8, groups=4)), torch.randn(2, 8, 3, 5)
    q, k, v = (p(block.norm(x)).flatten(2).double() for p in (block.q, block.k, block.v))
    weights = torch.einsum("bcn,bcm->bnm", q, k).div(8**0.5).softmax(-1)
    mixed = torch.einsum("bnm,bcm->bcn", weights, v).unflatten(2, (3, 5)).float()
    torch.testing.assert_close(block(x), x + block.proj_out(mixed), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_residual_block_adds_to_its_input_or_to_a_projection_of_it():
    x = torch.randn(1, 8, 4, 4)
    for out_channels in (8, 12):
        block = randomize(ResnetBlock(8, out_channels, groups=4))
        h = block.conv2(F.silu(block.norm2(block.conv1(F.silu(block.norm1(x))))))
        skip = x if out_channels == 8 else block.nin_shortcut(x)
        torch.testing.assert_close(block(x), skip + h)


@torch.no_grad()
@pytest.mark.parametrize(("mult", "factor"), [([1], 1), ([1, 2], 2), ([1, 2, 2, 2], 8)], ids=str)
def test_the_latent_is_smaller_by_one_halving_for_each_level_but_the_last(mult, factor):
    config = VAEConfig.from_params(VAE | {"ch_mult": mult})
    moments = Encoder(config)(torch.randn(1, 3, 16, 24))
    assert moments.shape == (1, 8, 16 // factor, 24 // factor)
    assert Decoder(config)(moments[:, :4]).shape == (1, 3, 16, 24)


@torch.no_grad()
def test_single_z_has_no_log_variance():
    assert Encoder(VAEConfig.from_params(VAE | {"double_z": False}))(torch.randn(1, 3, 8, 8)).shape[1] == 4


@torch.no_grad()
def test_pictures_of_a_batch_do_not_meet():
    decoder, z = randomize(Decoder(CONFIG)), torch.randn(2, 4, 4, 4)
    assert relative_error(decoder(z)[:1], decoder(z[:1])) < 1e-5


def test_published_settings_that_change_nothing_are_accepted_and_others_refused():
    inert = {"resolution": 256, "attn_resolutions": [], "dropout": 0.0}
    assert VAEConfig.from_params(VAE | inert) == CONFIG
    with pytest.raises(ValueError, match="attn_resolutions must be empty: attention is only"):
        VAEConfig.from_params(VAE | {"attn_resolutions": [16]})
    with pytest.raises(ValueError, match="ddconfig does not know channels; it takes ch, ch_mult"):
        VAEConfig.from_params(VAE | {"channels": 8})
