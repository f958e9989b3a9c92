"""AutoencoderKL gives the reference's numbers: whole, in slices and in tiles."""

from __future__ import annotations

import pytest
import torch
from models_oracle import assert_close, diffusers, randn, twins

from langevin.models.autoencoder_kl import AutoencoderKL
from langevin.models.distributions import DiagonalGaussianDistribution

BASE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "sample_size": 16,
}
CASES = {
    "stable diffusion": {},
    "three stages, many latents": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "latent_channels": 16,
        "in_channels": 1,
        "out_channels": 2,
    },
    "attention at every size": {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "norm_num_groups": 8,
    },
    "bare": {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "act_fn": "gelu",
        "shift_factor": 0.1,
        "scaling_factor": 0.3,
    },
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_same_numbers_as_the_reference(name):
    reference, ours = twins(AutoencoderKL, **{**BASE, **CASES[name]})
    picture = randn(2, ours.config.in_channels, 24, 16)
    theirs, mine = reference.encode(picture).latent_dist, ours.encode(picture).latent_dist
    assert_close(mine.mode(), theirs.mode())
    one, two = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    assert_close(mine.sample(one), theirs.sample(two))
    z = theirs.mode()
    assert_close(ours.decode(z).sample, reference.decode(z).sample)
    assert_close(ours(picture).sample, reference(picture).sample)
    one, two = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    drawn = ours(picture, sample_posterior=True, generator=one).sample
    assert_close(drawn, reference(picture, sample_posterior=True, generator=two).sample)


@pytest.fixture(scope="module")
def vae():
    return twins(AutoencoderKL, **BASE)


@pytest.fixture
def tiled(vae):
    for network in vae:
        network.enable_tiling()
    yield vae
    for network in vae:
        network.disable_tiling()


@pytest.mark.parametrize("size", [(40, 56), (16, 70), (64, 64), (18, 18), (16, 16), (90, 17 * 2)])
@torch.no_grad()
def test_tiles_are_the_references(tiled, size):
    reference, ours = tiled
    picture = randn(1, 3, *size)
    mine = ours.encode(picture).latent_dist.parameters
    assert_close(mine, reference.encode(picture).latent_dist.parameters)
    z = randn(1, 4, size[0] // 2, size[1] // 2)
    assert_close(ours.decode(z).sample, reference.decode(z).sample)


@torch.no_grad()
def test_tiles_of_a_changed_size_are_the_references(tiled):
    for network in tiled:
        network.tile_sample_min_size, network.tile_latent_min_size, network.tile_overlap_factor = 24, 12, 1 / 3
    reference, ours = tiled
    z = randn(2, 4, 31, 40)
    assert_close(ours.decode(z).sample, reference.decode(z).sample)
    for network in tiled:
        network.tile_sample_min_size, network.tile_latent_min_size, network.tile_overlap_factor = 16, 8, 0.25


@torch.no_grad()
def test_a_picture_that_fits_one_tile_is_not_tiled(vae):
    _, ours = vae
    picture = randn(1, 3, 16, 16)
    whole = ours(picture).sample
    ours.enable_tiling()
    assert torch.equal(ours(picture).sample, whole)
    ours.disable_tiling()


@torch.no_grad()
def test_slices_are_the_whole(vae):
    _, ours = vae
    picture = randn(3, 3, 16, 16)
    whole = ours(picture).sample
    ours.enable_slicing()
    sliced = ours(picture).sample
    ours.enable_tiling()
    both = ours(picture).sample
    ours.disable_slicing()
    ours.disable_tiling()
    assert_close(sliced, whole)
    assert_close(both, whole)


@torch.no_grad()
def test_stages_left_in_float32_work_on_a_float16_rest(vae):
    from copy import deepcopy

    _, ours = vae
    mixed = deepcopy(ours).to(torch.bfloat16)
    mixed.decoder.up_blocks.float()
    mixed.decoder.conv_norm_out.float()
    mixed.decoder.conv_out.float()
    z = randn(1, 4, 8, 8)
    got = mixed.decode(z.bfloat16()).sample
    assert got.dtype == torch.float32
    assert (got - ours.decode(z).sample).abs().max() < 0.2


def _distributions(**options):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Reference

    parameters = randn(2, 8, 4, 4) * 3
    return DiagonalGaussianDistribution(parameters, **options), Reference(parameters, **options)


def test_distribution():
    mine, theirs = _distributions()
    for name in ("mean", "std", "var", "logvar"):
        assert_close(getattr(mine, name), getattr(theirs, name))
    assert_close(mine.kl(), theirs.kl())
    other = randn(2, 8, 4, 4, seed=2)
    assert_close(mine.kl(DiagonalGaussianDistribution(other)), theirs.kl(type(theirs)(other)))
    assert_close(mine.nll(randn(2, 4, 4, 4)), theirs.nll(randn(2, 4, 4, 4)))
    assert_close(mine.nll(randn(2, 4, 4, 4), dims=[1, 2]), theirs.nll(randn(2, 4, 4, 4), dims=[1, 2]))
    assert_close(mine.sample(torch.Generator().manual_seed(1)), theirs.sample(torch.Generator().manual_seed(1)))


def test_a_deterministic_distribution_is_its_mean():
    mine, theirs = _distributions(deterministic=True)
    assert torch.equal(mine.sample(), mine.mode())
    assert torch.equal(mine.kl(), theirs.kl())
    assert torch.equal(mine.nll(mine.mean), theirs.nll(mine.mean))


def test_variances_are_held_in_range():
    wild = DiagonalGaussianDistribution(torch.tensor([0.0, 500.0]).reshape(1, 2, 1, 1))
    assert wild.logvar.item() == 20.0
    assert torch.isfinite(wild.sample()).all()


def test_one_generator_per_picture_makes_each_picture_again():
    mine, _ = _distributions()
    seeds = [5, 9]
    both = mine.sample([torch.Generator().manual_seed(s) for s in seeds])
    second = DiagonalGaussianDistribution(mine.parameters[1:])
    assert torch.equal(second.sample(torch.Generator().manual_seed(9)), both[1:])
    with pytest.raises(ValueError, match="1 generators for a batch of 2"):
        mine.sample([torch.Generator()])


def test_old_names_of_weights_are_read(vae):
    _, ours = vae
    now = ours.state_dict()
    old = {}
    for key, value in now.items():
        for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if "attentions" in key:
                key = key.replace(f".{new}.", f".{name}.")
        old[key] = value
    assert set(old) != set(now)
    converted = AutoencoderKL.convert_state_dict(old)
    assert list(converted) == list(now)
    reference = diffusers.AutoencoderKL(**BASE)
    assert set(converted) == set(reference.state_dict())
