"""UNet1DModel gives the reference's numbers, whatever its config switches on, and works where the reference breaks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models_oracle import assert_close, diffusers, randn, twins

from langevin.models.layers.waves import WaveAttention
from langevin.models.unet_1d import UNet1DModel

SOUND = dict(block_out_channels=(8, 32, 32), extra_in_channels=16)
PATHS = dict(
    sample_size=16, in_channels=6, out_channels=6, time_embedding_type="positional", use_timestep_embedding=True,
    freq_shift=1.0, flip_sin_to_cos=False, act_fn="mish", down_block_types=("DownResnetBlock1D",) * 3,
    up_block_types=("UpResnetBlock1D",) * 2, mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock",
    block_out_channels=(8, 16, 32),
)  # fmt: skip
VALUES = dict(
    PATHS, down_block_types=("DownResnetBlock1D",) * 4, up_block_types=(), mid_block_type="ValueFunctionMidBlock1D",
    out_block_type="ValueFunction", block_out_channels=(8, 16, 32, 64), downsample_each_block=True,
)  # fmt: skip
# name: (config, shape of the sample)
CASES = {
    "sound": (SOUND, (2, 2, 64)),
    "sound, the shortest": (SOUND, (1, 2, 24)),
    "sound, another order of the time's sines": ({**SOUND, "flip_sin_to_cos": False}, (2, 2, 64)),
    "sound, positional": ({**SOUND, "time_embedding_type": "positional", "extra_in_channels": 8}, (2, 2, 64)),
    "sound, positional, shifted": (
        dict(SOUND, time_embedding_type="positional", extra_in_channels=8, freq_shift=1.0, flip_sin_to_cos=False),
        (2, 2, 64),
    ),
    "sound, a narrower time": ({**SOUND, "time_embedding_dim": 12, "extra_in_channels": 12}, (2, 2, 64)),
    "sound, mono in, three out": ({**SOUND, "in_channels": 1, "out_channels": 3}, (2, 1, 64)),
    "sound, two heads, one of 48": ({**SOUND, "block_out_channels": (8, 48, 64)}, (2, 2, 64)),
    "sound, four stages": (
        dict(
            SOUND, block_out_channels=(8, 32, 32, 64),
            down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "DownBlock1D", "AttnDownBlock1D"),
            up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
        ),
        (1, 2, 96),
    ),
    "sound, attention everywhere": (
        dict(
            SOUND, down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D", "AttnDownBlock1D"),
            up_block_types=("AttnUpBlock1D", "AttnUpBlock1D", "UpBlock1DNoSkip"), block_out_channels=(32, 64, 32),
            extra_in_channels=64,
        ),
        (2, 2, 64),
    ),
    "sound, with a last block": ({**SOUND, "out_block_type": "OutConv1DBlock", "act_fn": "relu"}, (2, 2, 64)),
    "sound, told no time": (
        dict(block_out_channels=(32, 32, 64), down_block_types=("DownBlock1D", "DownBlock1D", "AttnDownBlock1D"),
             up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1D")),
        (2, 2, 64),
    ),
    "sound that brings its further channels": (
        dict(extra_in_channels=3, block_out_channels=(32, 32, 64),
             down_block_types=("DownBlock1D", "DownBlock1D", "AttnDownBlock1D"),
             up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1D")),
        (2, 5, 64),
    ),
    "paths": (PATHS, (2, 6, 16)),
    "paths, one stage up": ({**PATHS, "up_block_types": ("UpResnetBlock1D",)}, (2, 6, 16)),
    "paths, as many up as down": ({**PATHS, "up_block_types": ("UpResnetBlock1D",) * 3}, (2, 6, 16)),
    "paths, more layers": ({**PATHS, "layers_per_block": 3}, (2, 6, 16)),
    "paths, fourier": ({**PATHS, "time_embedding_type": "fourier", "time_embedding_dim": 24}, (2, 6, 16)),
    "paths, fourier as wide as it comes": ({**PATHS, "time_embedding_type": "fourier"}, (2, 6, 16)),
    "paths, other groups and activation": ({**PATHS, "norm_num_groups": 4, "act_fn": "silu"}, (2, 6, 16)),
    "paths, groups by themselves": ({**PATHS, "norm_num_groups": None, "act_fn": "gelu"}, (2, 6, 16)),
    "paths, the middle of sound": ({**PATHS, "mid_block_type": "UNetMidBlock1D"}, (2, 6, 32)),
    "values": (VALUES, (2, 6, 16)),
    "values, silu": ({**VALUES, "act_fn": "silu"}, (2, 6, 16)),
    "values, the last stage as long": ({**VALUES, "downsample_each_block": False}, (2, 6, 16)),
    "values, halved in the middle alike": (
        {**VALUES, "mid_block_type": "MidResTemporalBlock1D", "block_out_channels": (8, 16, 32, 8),
         "out_block_type": None},
        (2, 6, 16),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_numbers_are_the_reference_ones(case):
    config, shape = CASES[case]
    theirs, ours = twins(UNet1DModel, **config)
    sample = randn(*shape)
    for t in (torch.tensor([0.3, 0.85])[: shape[0]], torch.tensor([7] * shape[0])):
        assert_close(ours(sample, t).sample, theirs(sample, t).sample, 1e-5)
    assert_close(ours(sample, t, return_dict=False)[0], theirs(sample, t, return_dict=False)[0], 1e-5)


@torch.no_grad()
def test_the_filters_are_the_reference_ones():
    theirs, ours = diffusers.UNet1DModel(**SOUND), UNet1DModel(**SOUND)
    kernels = {name: kernel for name, kernel in theirs.state_dict().items() if name.endswith("kernel")}
    assert len(kernels) == 6
    for name, kernel in kernels.items():
        torch.testing.assert_close(ours.state_dict()[name], kernel, atol=0, rtol=0)


def test_folders_load_on_both_sides(tmp_path):
    theirs, ours = twins(UNet1DModel, **SOUND, sample_rate=16000)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for read in (UNet1DModel.from_pretrained(tmp_path / "theirs"),
                 diffusers.UNet1DModel.from_pretrained(tmp_path / "ours")):  # fmt: skip
        assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in read.state_dict().items())
        assert read.config.sample_rate == 16000


# -- published


STAGES = ["DownBlock1D"] * 7 + ["AttnDownBlock1D"] * 5
MAESTRO = {
    "act_fn": None, "block_out_channels": [128, 128, 256, 256] + [512] * 9, "downsample_each_block": False,
    "down_block_types": ["DownBlock1DNoSkip", *STAGES], "extra_in_channels": 16, "flip_sin_to_cos": True,
    "freq_shift": 0.0, "in_channels": 2, "layers_per_block": 1, "mid_block_type": "UNetMidBlock1D",
    "norm_num_groups": 8, "out_block_type": None, "out_channels": 2, "sample_rate": 16000, "sample_size": 65536,
    "time_embedding_type": "fourier", "use_timestep_embedding": False,
    "up_block_types": ["AttnUpBlock1D"] * 5 + ["UpBlock1D"] * 7 + ["UpBlock1DNoSkip"],
}  # fmt: skip


def test_dance_diffusion_as_published_has_the_weights_it_was_published_with():
    """Today's reference makes its time too wide; told how wide, it has the same weights."""
    with torch.device("meta"):
        ours = UNet1DModel(**MAESTRO)
        theirs = diffusers.UNet1DModel(**MAESTRO, time_embedding_dim=16)
        shapes = {name: tuple(weight.shape) for name, weight in ours.state_dict().items()}
        assert shapes == {name: tuple(weight.shape) for name, weight in theirs.state_dict().items()}
        assert shapes["time_proj.weight"] == (8,)
        assert ours(torch.empty(1, 2, 65536), 0.5).sample.shape == (1, 2, 65536)


@torch.no_grad()
def test_a_published_config_in_small_gives_the_reference_numbers():
    config = dict(SOUND, block_out_channels=(16, 32, 32))  # 16 channels of time, and not twice the first stage's
    ours = UNet1DModel(**config).eval()
    theirs, told = twins(UNet1DModel, **config, time_embedding_dim=16)
    ours.load_state_dict(told.state_dict())
    sample = randn(2, 2, 64)
    assert_close(ours(sample, 0.4).sample, theirs(sample, torch.tensor(0.4)).sample, 1e-5)


# -- where the reference breaks


@torch.no_grad()
def test_a_time_between_whole_numbers_is_a_number_too():
    """The reference takes Python's 0.4 for 0."""
    theirs, ours = twins(UNet1DModel, **SOUND)
    sample = randn(2, 2, 64)
    assert_close(ours(sample, 0.4).sample, theirs(sample, torch.tensor(0.4)).sample, 1e-5)
    assert_close(theirs(sample, 0.4).sample, theirs(sample, torch.tensor(0.0)).sample, 1e-5)


@torch.no_grad()
def test_a_timestep_embedding_is_joined_to_sound_too():
    config = dict(SOUND, use_timestep_embedding=True, act_fn="silu", extra_in_channels=8)
    ours = UNet1DModel(**config).eval()
    sample = randn(2, 2, 64)
    both = ours(sample, torch.tensor([0.2, 0.8])).sample
    assert both.shape == (2, 2, 64)
    assert not torch.allclose(both, ours(sample, 0.2).sample, atol=1e-5)  # it is told the time
    with pytest.raises(RuntimeError):
        diffusers.UNet1DModel(**config)(sample, 0.5)


@torch.no_grad()
def test_paths_take_the_time_without_an_embedding():
    ours = UNet1DModel(**{**PATHS, "use_timestep_embedding": False}).eval()
    sample = randn(2, 6, 16)
    assert not torch.allclose(ours(sample, 1).sample, ours(sample, 300).sample, atol=1e-5)
    with pytest.raises(RuntimeError):
        diffusers.UNet1DModel(**{**PATHS, "use_timestep_embedding": False})(sample, 0.5)


@torch.no_grad()
def test_a_batch_is_judged_at_one_time():
    theirs, ours = twins(UNet1DModel, **VALUES)
    sample = randn(3, 6, 16)
    assert_close(ours(sample, 4).sample, theirs(sample, torch.tensor([4, 4, 4])).sample, 1e-5)
    with pytest.raises(RuntimeError):
        theirs(sample, 4)


@torch.no_grad()
def test_narrow_stages_have_one_head():
    ours = UNet1DModel(**{**SOUND, "block_out_channels": (8, 16, 16)}).eval()
    assert ours(randn(1, 2, 64), 0.5).sample.isfinite().all()
    assert {layer.heads for layer in ours.modules() if isinstance(layer, WaveAttention)} == {1}


@torch.no_grad()
def test_rows_do_not_know_of_each_other():
    _, ours = twins(UNet1DModel, **SOUND)
    sample, t = randn(2, 2, 64), torch.tensor([0.3, 0.8])
    alone = torch.cat([ours(sample[k : k + 1], t[k : k + 1]).sample for k in range(2)])
    assert_close(ours(sample, t).sample, alone, 1e-5)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({}, "extra_in_channels is 0, and the time .* has 64 channels; set extra_in_channels=64"),
        ({**SOUND, "time_embedding_dim": 12}, "set extra_in_channels=12"),
        ({**SOUND, "extra_in_channels": 13}, "the time has 13 channels; 'fourier' needs"),
        ({**SOUND, "time_embedding_type": "learned"}, "time_embedding_type='learned' is unknown; use 'positional'"),
        ({**SOUND, "use_timestep_embedding": True}, "act_fn is None; this network needs an activation"),
        ({**SOUND, "out_block_type": "OutConv1DBlock"}, "act_fn is None"),
        ({**SOUND, "out_block_type": "Out"}, "out_block_type='Out' is unknown; use one of: None, 'OutConv1DBlock'"),
        ({**SOUND, "mid_block_type": None}, "mid_block_type=None is unknown; use one of: UNetMidBlock1D"),
        ({**SOUND, "down_block_types": ("DownBlock1D", "Down", "DownBlock1D")}, "no block is called 'Down'; use one"),
        ({**SOUND, "up_block_types": ("UpBlock1D", "Up")}, "up_block_types: no block is called 'Up'"),
        ({**SOUND, "up_block_types": ("UpBlock1D",) * 4}, "up_block_types has 4 entries for 3 block_out_channels"),
        ({**SOUND, "block_out_channels": (8, 32)}, "down_block_types has 3 entries for 2 block_out_channels"),
        ({**SOUND, "down_block_types": ("DownBlock1DNoSkip",) * 3}, "only the first stage can be one"),
        ({**SOUND, "block_out_channels": (8, 32, 65)}, "has 65 channels; give fewer than 64, or a multiple of 32"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_work_is_refused_in_one_line(config, line):
    with pytest.raises(ValueError, match=line) as caught:
        UNet1DModel(**config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "shape", "line"),
    [
        (SOUND, (2, 3, 64), r"sample has shape \(2, 3, 64\); this network takes \(batch, 2, length\)"),
        (SOUND, (2, 64), r"takes \(batch, 2, length\)"),
        (SOUND, (2, 2, 60), "sample is 60 long; this network takes multiples of 8"),
        (SOUND, (2, 2, 16), "sample is 16 long; this network takes 24 and more"),
        (PATHS, (2, 6, 17), "sample is 17 long; this network takes multiples of 4"),
        (VALUES, (2, 6, 128), "32 numbers are left of the sample at the end, where this network judges 16; give"),
    ],
)
def test_a_wrong_sample_is_refused_in_one_line(config, shape, line):
    network = UNet1DModel(**config)
    with pytest.raises(ValueError, match=line) as caught:
        network(randn(*shape), 0.5)
    assert "\n" not in str(caught.value)


# -- what every network here promises


@torch.no_grad()
def test_attention_can_be_watched_and_replaced():
    _, ours = twins(UNet1DModel, **SOUND)
    sample, seen = randn(1, 2, 64), []

    def watch(q, k, v, mask, layer):
        assert q.shape[1:] == (layer.heads, q.shape[2], layer.head_dim)
        seen.append(layer)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    assert torch.equal(ours(sample, 0.5, attention=watch).sample, ours(sample, 0.5).sample)
    assert set(seen) == {layer for layer in ours.modules() if isinstance(layer, WaveAttention)}
    blind = ours(sample, 0.5, attention=lambda q, k, v, mask, layer: torch.zeros_like(q)).sample
    assert not torch.allclose(blind, ours(sample, 0.5).sample, atol=1e-3)


@pytest.mark.parametrize("case", ["sound", "paths", "values"])
def test_checkpointing_gives_the_same_gradients(case):
    config, shape = CASES[case]
    _, network = twins(UNet1DModel, **config)
    network.train()

    def gradients():
        network.zero_grad()
        network(randn(*shape), 0.5).sample.square().mean().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    plain = gradients()
    network.enable_gradient_checkpointing()
    kept = gradients()
    assert plain.keys() == kept.keys() == {n for n, p in network.named_parameters() if p.requires_grad}
    for name, gradient in plain.items():
        assert_close(kept[name], gradient, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["sound", "paths"])
@torch.no_grad()
def test_half_precision_keeps_its_dtype_and_comes_near(case, dtype):
    config, shape = CASES[case]
    _, ours = twins(UNet1DModel, **config)
    sample = randn(*shape)
    full = ours(sample, 0.5).sample
    half = ours.to(dtype)(sample.to(dtype), 0.5).sample
    assert half.dtype == dtype
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()
