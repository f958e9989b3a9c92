"""DiTTransformer2DModel gives the reference's numbers, under both names that its checkpoints have."""

from __future__ import annotations

import json

import pytest
import torch
from models_oracle import assert_close, randn, twins
from safetensors.torch import save_file

import langevin
from langevin.models.dit_transformer_2d import DiTTransformer2DModel

BASE = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 10}
# name: (config, shape)
CASES = {
    "learned variance": ({"out_channels": 8}, (2, 4, 8, 8)),
    "as many channels": ({"activation_fn": "gelu", "attention_bias": False}, (2, 4, 8, 8)),
    "small patches": ({"patch_size": 1, "activation_fn": "geglu", "norm_eps": 1e-3}, (2, 4, 8, 8)),
    "norms with weights": ({"norm_elementwise_affine": True, "in_channels": 3, "out_channels": 6}, (2, 3, 8, 8)),
    "made for more": ({"sample_size": 128, "patch_size": 8}, (2, 4, 128, 128)),
    "another size": ({"out_channels": 8}, (2, 4, 16, 16)),
    "smaller": ({"out_channels": 8}, (2, 4, 4, 4)),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_numbers_are_the_references(case):
    config, shape = CASES[case]
    theirs, ours = twins(DiTTransformer2DModel, **{**BASE, **config})
    told = {"timestep": torch.tensor([3, 999]), "class_labels": torch.tensor([7, 10])}
    wanted = theirs(randn(*shape), **told).sample
    assert_close(ours(randn(*shape), **told).sample, wanted)
    assert_close(ours(randn(*shape), *told.values(), return_dict=False)[0], wanted)
    if case == "learned variance":
        for other in ({"timestep": torch.tensor([3, 4])}, {"class_labels": torch.tensor([7, 2])}):
            moved = (ours(randn(*shape), **{**told, **other}).sample - wanted).abs().amax(dim=(1, 2, 3))
            assert moved[0] < 1e-4 < 1e-3 < moved[1]


@torch.no_grad()
def test_pictures_need_not_be_square():
    _, net = twins(DiTTransformer2DModel, **BASE)
    x = randn(1, 4, 8, 8)
    told = {"timestep": 5, "class_labels": torch.tensor([1])}
    assert net(x[..., :4], **told).sample.shape == (1, 4, 8, 4)  # the reference mixes rows up
    turned = net(x.transpose(2, 3)[..., :4], **told).sample.transpose(2, 3)
    assert (turned - net(x[..., :4, :], **told).sample).abs().max() > 1e-3, "it knows rows from columns"


def test_the_published_transformer_has_the_references_weights_under_its_old_name(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    config = {
        "_class_name": "Transformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 72,
        "cross_attention_dim": None,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": 16,
        "num_embeds_ada_norm": 1000,
        "num_layers": 28,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 32,
    }
    with torch.device("meta"):
        ours, theirs = langevin.Transformer2DModel.from_config(config), diffusers.Transformer2DModel.from_config(config)
        said = ours(torch.empty(1, 4, 32, 32), 5, torch.zeros(1, dtype=torch.int64)).sample
    assert type(ours) is DiTTransformer2DModel
    shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert said.shape == (1, 8, 32, 32)

    net = DiTTransformer2DModel(**BASE)
    net.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "Transformer2DModel"}))
    read = langevin.Transformer2DModel.from_pretrained(tmp_path)
    assert type(read) is DiTTransformer2DModel
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in net.state_dict().items())
    save_file({name: value for name, value in net.state_dict().items() if "proj_out" not in name},
              tmp_path / "diffusion_pytorch_model.safetensors")  # fmt: skip
    assert langevin.Transformer2DModel.from_pretrained(tmp_path).proj_out_2.weight.isfinite().all()


@pytest.mark.parametrize(
    ("config", "told", "says"),
    [
        ({"norm_type": "layer_norm"}, {}, "'ada_norm_zero'"),
        ({"activation_fn": "relu"}, {}, "activation_fn='relu' is unknown"),
        ({}, {"timestep": 3}, "give class_labels"),
        ({}, {"class_labels": torch.tensor([1])}, "give a timestep"),
        ({"patch_size": 3, "sample_size": 9}, {"timestep": 3, "class_labels": torch.tensor([1])}, "multiples of 3"),
    ],
)
def test_what_does_not_fit_is_refused(config, told, says):
    with pytest.raises(ValueError, match=says):
        DiTTransformer2DModel(**{**BASE, **config})(randn(1, 4, 8, 8), **told)
