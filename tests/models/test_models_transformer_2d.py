"""Transformer2DModel gives the reference's numbers, over codes and over maps."""

from __future__ import annotations

import pytest
import torch
from models_oracle import assert_close, randn, twins

import langevin
from langevin.models.transformer_2d import Transformer2DModel

SIZES = {"num_attention_heads": 2, "attention_head_dim": 8, "norm_num_groups": 8}
CODES = {**SIZES, "num_vector_embeds": 9, "sample_size": 4}
VQ = {
    "cross_attention_dim": 12,
    "num_embeds_ada_norm": 10,
    "attention_bias": True,
    "activation_fn": "geglu-approximate",
}
MAPS = {**SIZES, "in_channels": 24}
TEXT = {"encoder_hidden_states": randn(2, 5, 12)}
NOW = {"timestep": torch.tensor(7)}
KEEP = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1]])

# name: (config, forward arguments)
CASES = {
    "VQ-Diffusion": ({**CODES, **VQ, "num_layers": 2}, {**TEXT, **NOW}),
    "codes, gelu": ({**CODES, "cross_attention_dim": 12, "activation_fn": "gelu"}, TEXT),
    "codes without text": ({**CODES, "num_embeds_ada_norm": 10, "activation_fn": "gelu-approximate"}, NOW),
    "map": ({**MAPS, "num_layers": 2}, {}),
    "map and text": ({**MAPS, "cross_attention_dim": 12, "attention_bias": True}, TEXT),
    "map, linear, text alone": (
        {**MAPS, "cross_attention_dim": 12, "use_linear_projection": True, "only_cross_attention": True},
        TEXT,
    ),
    "map, looked at twice": ({**MAPS, "double_self_attention": True, "norm_eps": 1e-3}, {}),
    "map and time": (
        {**MAPS, "num_embeds_ada_norm": 10, "norm_type": "ada_norm", "cross_attention_dim": 12},
        TEXT | NOW,
    ),
    "norms without weights": ({**MAPS, "norm_elementwise_affine": False}, {}),
    "masked": ({**MAPS, "cross_attention_dim": 12}, {**TEXT, "encoder_attention_mask": KEEP}),
    "masked places": ({**MAPS}, {"attention_mask": torch.ones(2, 12).index_fill(1, torch.tensor([2, 7]), 0)}),
    "gated": (
        {**MAPS, "cross_attention_dim": 12, "attention_type": "gated"},
        {**TEXT, "cross_attention_kwargs": {"gligen": {"objs": randn(2, 3, 12)}}},
    ),
}


def given(config):
    """Two pictures in codes, or two maps."""
    if "num_vector_embeds" in config:
        return torch.randint(9, (2, 16), generator=torch.Generator().manual_seed(1))
    return randn(2, 24, 3, 4, seed=2)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_numbers_are_the_references(case):
    config, told = CASES[case]
    theirs, ours = twins(Transformer2DModel, **config)
    x = given(config)
    # the reference takes what it is given out of the dict
    again = {**told, "cross_attention_kwargs": {**told["cross_attention_kwargs"]}} if case == "gated" else told
    wanted = theirs(x, **again).sample
    assert_close(ours(x, **told).sample, wanted)
    assert_close(ours(x, **told, return_dict=False)[0], wanted)


@pytest.mark.parametrize("case", ["VQ-Diffusion", "map and time"])
@torch.no_grad()
def test_each_row_has_its_own_time_and_text(case):
    config, told = CASES[case]
    _, net = twins(Transformer2DModel, **config)
    x, text = given(config), told["encoder_hidden_states"]
    both = net(x, text, torch.tensor([3, 8])).sample  # the reference takes one time for all
    for k, time in enumerate((3, 8)):
        assert_close(net(x[k : k + 1], text[k : k + 1], time).sample, both[k : k + 1])
    assert (net(x, text, torch.tensor([3, 4])).sample - both)[1].abs().max() > 1e-3
    assert (net(x, text.flip(0), torch.tensor([3, 8])).sample - both).abs().max() > 1e-3


def test_answers_over_codes_are_log_probabilities():
    _, net = twins(Transformer2DModel, **CODES, **VQ)
    said = net(given(CODES), **TEXT, **NOW).sample
    assert said.shape == (2, 8, 16)
    torch.testing.assert_close(said.exp().sum(1), torch.ones(2, 16))


def test_the_published_transformer_has_the_references_weights():
    diffusers = pytest.importorskip("diffusers")
    config = {
        "activation_fn": "geglu-approximate",
        "attention_bias": True,
        "attention_head_dim": 64,
        "cross_attention_dim": 512,
        "dropout": 0.0,
        "in_channels": None,
        "norm_num_groups": 32,
        "num_attention_heads": 16,
        "num_embeds_ada_norm": 100,
        "num_layers": 36,
        "num_vector_embeds": 4097,
        "sample_size": 32,
    }
    with torch.device("meta"):
        ours = langevin.Transformer2DModel.from_config(config)
        theirs = diffusers.Transformer2DModel(**config)
        codes = torch.zeros(1, 1024, dtype=torch.int64)
        said = ours(codes, torch.empty(1, 77, 512), timestep=99).sample
    shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert said.shape == (1, 4096, 1024)


def test_it_survives_a_folder(tmp_path):
    net = Transformer2DModel(**CODES, **VQ)
    net.save_pretrained(tmp_path)
    read = langevin.Transformer2DModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (SIZES, "neither of in_channels"),
        ({**CODES, "in_channels": 8}, "both of in_channels"),
        ({**SIZES, "num_vector_embeds": 9}, "needs a sample_size"),
        ({**MAPS, "out_channels": 8}, "out_channels is 8"),
        ({**MAPS, "patch_size": 2}, "patch_size=2 is of a transformer over patches"),
        ({**MAPS, "norm_type": "ada_norm_single"}, "norm_type='ada_norm_single'"),
        ({**MAPS, "norm_type": "ada_norm"}, "needs num_embeds_ada_norm"),
        ({**MAPS, "activation_fn": "relu"}, "activation_fn='relu' is unknown"),
        ({**MAPS, "attention_type": "other"}, "attention_type='other' is unknown"),
    ],
)
def test_settings_that_make_no_network_are_refused(config, says):
    with pytest.raises(ValueError, match=says):
        Transformer2DModel(**config)


@pytest.mark.parametrize(
    ("config", "x", "told", "says"),
    [
        ({**CODES, **VQ}, torch.zeros(2, 16), {**TEXT, **NOW}, "whole numbers are needed"),
        ({**CODES, **VQ}, torch.zeros(2, 17, dtype=torch.int64), {**TEXT, **NOW}, r"\(batch, 16\)"),
        ({**CODES, **VQ}, given(CODES), NOW, "encoder_hidden_states is None"),
        ({**CODES, **VQ}, given(CODES), TEXT, "give a timestep"),
        (MAPS, randn(2, 8, 4, 4), {}, "takes"),
        (MAPS, randn(2, 24, 4, 4), {"cross_attention_kwargs": {"x": 1}}, "known are"),
    ],
)
def test_what_it_cannot_take_is_refused(config, x, told, says):
    with pytest.raises(ValueError, match=says):
        Transformer2DModel(**config)(x, **told)
