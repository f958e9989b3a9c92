"""unCLIP's prior and Stable unCLIP's normaliser against the reference."""

from __future__ import annotations

import pytest
import torch

import langevin
from tests.prompts.readers_parts import random

SIZES = dict(num_attention_heads=2, attention_head_dim=6, num_layers=2, embedding_dim=8, num_embeddings=5)
CONFIGS = {
    "karlo": {},
    "no last token": dict(added_emb_type=None, additional_embeddings=3),
    "norms": dict(norm_in_type="layer", embedding_proj_norm_type="layer", embedding_proj_dim=10, clip_embed_dim=7),
    "no text": dict(encoder_hid_proj_type=None, num_embeddings=4, additional_embeddings=0, time_embed_dim=20),
    "shap-e": dict(
        added_emb_type=None,
        encoder_hid_proj_type=None,
        num_embeddings=3,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
    ),
}


def pair(**config):
    import diffusers

    theirs = random(diffusers.PriorTransformer(**{**SIZES, **config}))
    ours = langevin.PriorTransformer(**{**SIZES, **config}).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_are_the_reference_ones(name):
    config = CONFIGS[name]
    ours, theirs = pair(**config)
    generator = torch.Generator().manual_seed(0)
    several = name == "shap-e"
    x = torch.randn(3, *([3] if several else []), 8, generator=generator)
    call = dict(proj_embedding=torch.randn(3, config.get("embedding_proj_dim", 8), generator=generator))
    masks = [None]
    if "encoder_hid_proj_type" not in config:
        call["encoder_hidden_states"] = torch.randn(3, 5, 8, generator=generator)
        masks.append(torch.arange(5)[None] < torch.tensor([[2], [5], [3]]))
    for timestep in (7, torch.tensor(500), torch.tensor([1, 2, 900])):
        for mask in masks:
            with torch.no_grad():
                said = [model(x, timestep, **call, attention_mask=mask) for model in (ours, theirs)]
            torch.testing.assert_close(*(one.predicted_image_embedding for one in said), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours.post_process_latents(call["proj_embedding"][:, :1]),
                                   theirs.post_process_latents(call["proj_embedding"][:, :1]))  # fmt: skip
        assert isinstance(ours(x, 3, **call, return_dict=False), tuple)


def test_folders_load_on_both_sides(tmp_path):
    import diffusers

    ours, theirs = pair(norm_in_type="layer")
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for read in (
        langevin.PriorTransformer.from_pretrained(tmp_path / "theirs"),
        diffusers.PriorTransformer.from_pretrained(tmp_path / "ours"),
    ):
        assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in read.state_dict().items())
        assert read.config.norm_in_type == "layer"


@pytest.mark.parametrize(
    "name", ["norm_in_type", "embedding_proj_norm_type", "encoder_hid_proj_type", "added_emb_type"]
)
def test_unknown_types_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is 'odd'"):
        langevin.PriorTransformer(**{**SIZES, name: "odd"})


def test_tokens_of_another_number_are_refused():
    ours, _ = pair()
    x, tokens = torch.zeros(1, 8), torch.zeros(1, 4, 8)
    with pytest.raises(ValueError, match="encoder_hidden_states are missing"):
        ours(x, 1, x)
    with pytest.raises(ValueError, match="attention_mask is"):
        ours(x, 1, x, torch.zeros(1, 5, 8), torch.ones(1, 4))
    with pytest.raises(ValueError, match="there are 11 tokens"):
        ours(x, 1, x, torch.zeros(1, 7, 8))
    with pytest.raises(ValueError, match="there are 8 tokens"):
        ours(x, 1, x, tokens)


def test_half_precision_and_attention_functions():
    ours, _ = pair()
    seen = []

    def watch(q, k, v, mask, layer):
        seen.append(q.shape)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    x, tokens, mask = torch.ones(1, 8), torch.ones(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        plain = ours(x, 3, x, tokens, mask, return_dict=False)[0]
        torch.testing.assert_close(ours(x, 3, x, tokens, mask, return_dict=False, attention=watch)[0], plain)
        half = ours.to(torch.bfloat16)(x.bfloat16(), 3, x.bfloat16(), tokens.bfloat16(), mask, return_dict=False)[0]
    assert seen == [(1, 2, 9, 6)] * 2
    torch.testing.assert_close(half.float(), plain, atol=0.2, rtol=0.1)


def test_the_normaliser(tmp_path):
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer as Theirs

    theirs = Theirs(embedding_dim=6)
    torch.nn.init.normal_(theirs.mean)
    torch.nn.init.uniform_(theirs.std, 0.5, 2)
    theirs.save_pretrained(tmp_path)
    ours = langevin.StableUnCLIPImageNormalizer.from_pretrained(tmp_path)
    x = torch.randn(4, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours.scale(x), theirs.scale(x))
        torch.testing.assert_close(ours.unscale(ours.scale(x)), x)
    assert ours.library_name == "stable_diffusion"
