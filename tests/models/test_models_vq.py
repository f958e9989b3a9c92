"""VQModel gives the reference's numbers, in training too, and reads codes."""

from __future__ import annotations

import pytest
import torch
from models_oracle import assert_close, diffusers, randn, twins

from langevin.models.vq_model import VQModel

BASE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "num_vq_embeddings": 24,
}
CASES = {
    "plain": {},
    "four latent channels, three in the book": {"latent_channels": 4, "vq_embed_dim": 3, "norm_num_groups": 8},
    "movq": {
        "norm_type": "spatial",
        "latent_channels": 4,
        "vq_embed_dim": 4,
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    },
    "spatial without attention": {"norm_type": "spatial", "mid_block_add_attention": False},
    "other stages": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        "layers_per_block": 2,
        "in_channels": 1,
        "out_channels": 2,
        "act_fn": "gelu",
        "mid_block_add_attention": False,
        "force_upcast": True,
    },
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_same_numbers_as_the_reference(name):
    reference, ours = twins(VQModel, **{**BASE, **CASES[name]})
    picture = randn(2, ours.config.in_channels, 24, 16)
    theirs, mine = reference.encode(picture).latents, ours.encode(picture).latents
    assert_close(mine, theirs)
    for latents in (theirs, randn(*theirs.shape, seed=5)):
        for raw in (False, True):
            his, own = (net.decode(latents, force_not_quantize=raw) for net in (reference, ours))
            assert_close(own.sample, his.sample)
            assert_close(own.commit_loss, his.commit_loss)
    assert_close(ours(picture).sample, reference(picture).sample)
    assert list(ours(picture)) == list(reference(picture)) == ["sample", "commit_loss"]
    pairs = zip(ours(picture, return_dict=False), reference(picture, return_dict=False), strict=True)
    assert all((assert_close(one, other) is None) for one, other in pairs)
    assert isinstance(ours.encode(picture, return_dict=False), tuple)


def test_gradients_pass_by_the_book_and_the_loss_is_the_references():
    reference, ours = twins(VQModel, **BASE)
    gradients = []
    for net in (reference, ours):
        out = net(randn(2, 3, 16, 16))
        ((out.sample**2).mean() + 0.7 * out.commit_loss).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    assert all(g is not None for g in gradients[1].values())
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)
    z = randn(1, 3, 4, 4).requires_grad_()
    codes, loss, (_, _, numbers) = ours.quantize(z)
    assert torch.equal(torch.autograd.grad(codes.sum(), z)[0], torch.ones_like(z))
    near = ours.quantize.get_codebook_entry(numbers, (1, 4, 4, 3))
    assert_close(loss, 1.25 * ((near - z) ** 2).mean())


@torch.no_grad()
def test_every_vector_is_the_nearest_one():
    ours = VQModel(**BASE)
    z = randn(2, 3, 3, 5)
    codes, _, (_, _, numbers) = ours.quantize(z)
    table = ours.quantize.embedding.weight
    for b, i, j in ((0, 0, 0), (1, 2, 4), (0, 1, 3)):
        nearest = (table - z[b, :, i, j]).norm(dim=1).argmin()
        assert numbers.view(2, 3, 5)[b, i, j] == nearest
        assert_close(codes[b, :, i, j], table[nearest])
    again, loss, _ = ours.quantize(codes)
    assert_close(again, codes)
    assert loss < 1e-9


@pytest.mark.parametrize("case", [{}, CASES["movq"]])
@torch.no_grad()
def test_numbers_of_vectors_are_looked_up(case):
    reference, ours = twins(VQModel, **{**BASE, **case, "lookup_from_codebook": True})
    dim = ours.quantize.embedding.embedding_dim
    codes = torch.randint(24, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    shape = (2, 4, 6, dim)
    want = reference.decode(codes, force_not_quantize=True, shape=shape).sample
    for given in (
        dict(h=codes, shape=shape),
        dict(h=codes.flatten(), shape=shape),
        dict(h=codes.flatten(1).int(), shape=shape),
        dict(h=codes),
    ):
        got = ours.decode(**given, force_not_quantize=True)
        assert_close(got.sample, want)
        assert torch.equal(got.commit_loss, torch.zeros(2))
    latents = ours.quantize.embedding(codes).permute(0, 3, 1, 2)
    assert_close(ours.decode(latents).sample, want)  # what is quantised already stays


@torch.no_grad()
def test_the_book_may_be_narrower_than_what_spatial_norms_are_told_in_the_reference():
    """There, such a network is built and cannot decode."""
    config = {**BASE, "norm_type": "spatial", "latent_channels": 4, "vq_embed_dim": 3}
    with pytest.raises(RuntimeError):
        diffusers.VQModel(**config)(randn(1, 3, 8, 8))
    assert VQModel(**config)(randn(1, 3, 8, 8)).sample.shape == (1, 3, 8, 8)


@torch.no_grad()
def test_half_precision_and_attention_functions():
    ours = VQModel(**BASE).eval()
    picture, seen = randn(1, 3, 16, 16), []

    def watch(q, k, v, mask, layer):
        seen.append(q.shape)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    plain = ours(picture).sample
    torch.testing.assert_close(ours(picture, attention=watch).sample, plain)
    assert len(seen) == 2  # one in the middle of each half
    half = ours.to(torch.bfloat16)(picture.bfloat16())
    assert half.sample.dtype == torch.bfloat16
    assert half.commit_loss.isfinite()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(h=torch.zeros(1, 4, 8, 8)), r"this network takes \(batch, 3, height, width\)"),
        (dict(h=torch.zeros(1, 2, 2), force_not_quantize=True), "codes are torch.float32; whole numbers from 0 to 23"),
        (dict(h=torch.full((1, 2, 2), 24), force_not_quantize=True), "codes go from 24 to 24; this book has 0 to 23"),
        (dict(h=torch.zeros(4).long(), force_not_quantize=True), r"codes are \(4,\); \(batch, height, width\)"),
        (dict(h=torch.zeros(4).long(), force_not_quantize=True, shape=(1, 2, 3, 3)), r"shape is \(1, 2, 3, 3\) for 4"),
    ],
)
def test_bad_latents_get_one_clear_line(given, says):
    ours = VQModel(**BASE, lookup_from_codebook=True)
    with pytest.raises(ValueError, match=says) as caught:
        ours.decode(**given)
    assert "\n" not in str(caught.value)


def test_bad_settings_get_one_clear_line():
    with pytest.raises(ValueError, match="norm_type is 'odd'; it must be 'group' or 'spatial'"):
        VQModel(norm_type="odd")
    with pytest.raises(ValueError, match="up_block_types has 1 entries for 2"):
        VQModel(**{**BASE, "up_block_types": ("UpDecoderBlock2D",)})
