"""Edits of projections in closed form."""

from __future__ import annotations

import pytest
import torch

from langevin import UNet2DConditionModel
from langevin.models.editing import edited, text_projections, token_change


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def tokens(seed=0, count=5):
    torch.manual_seed(seed)
    return torch.randn(count, 12), torch.randn(count, 12)


def test_it_is_the_least_of_the_papers_loss():
    """Equation 3: Σ ||W'c - Wc*||² + λ||W' - W||²; its gradient vanishes at the edit, and nothing near is less."""
    c, wanted = (side.double() for side in tokens())
    weight = torch.randn(7, 12, dtype=torch.float64)
    lamb = 0.3

    def loss(w):
        return ((c @ w.T - wanted @ weight.T) ** 2).sum() + lamb * ((w - weight) ** 2).sum()

    made = (weight @ token_change(c, wanted, lamb)).requires_grad_()
    assert torch.autograd.grad(loss(made), made)[0].abs().max() < 1e-9
    for k in range(4):
        nudge = 1e-3 * torch.randn(7, 12, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        assert loss(made + nudge) > loss(made)


def test_it_is_equation_5_for_every_projection(unet):
    c, wanted = tokens()
    made = edited(unet, c, wanted, 0.2)
    inverse = torch.linalg.inv(0.2 * torch.eye(12) + c.T @ c)
    for before, after in zip(text_projections(unet), text_projections(made), strict=True):
        expected = (0.2 * before.weight + (before.weight @ wanted.T) @ c) @ inverse
        torch.testing.assert_close(after.weight, expected, atol=1e-4, rtol=1e-4)


def test_a_small_lambda_takes_one_token_for_the_other_and_a_large_one_changes_nothing(unet):
    c, wanted = tokens(count=3)
    for lamb, like in ((1e-6, wanted), (1e9, c)):
        made = edited(unet, c, wanted, lamb)
        for before, after in zip(text_projections(unet), text_projections(made), strict=True):
            torch.testing.assert_close(after(c), before(like), atol=1e-3, rtol=1e-3)


def test_the_network_itself_stays_and_what_is_not_edited_is_shared(unet):
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    c, wanted = tokens()
    made = edited(unet, c, wanted)
    assert all(torch.equal(unet.state_dict()[name], weight) for name, weight in before.items())
    mine, own = dict(made.named_parameters()), dict(unet.named_parameters())
    others = {name for name in own if mine[name] is not own[name]}
    assert others == {n for n in own if ".attn2.to_k." in n or ".attn2.to_v." in n}
    assert not any(torch.equal(mine[name], own[name]) for name in others)
    assert {n for n, p in edited(unet, c, wanted, keys=False).named_parameters() if p is not own[n]} == {
        n for n in own if ".attn2.to_v." in n
    }


def test_half_precision_is_edited_in_full(unet):
    c, wanted = tokens()
    full = edited(unet, c, wanted)
    half = edited(unet, c, wanted)
    import copy

    half = edited(copy.deepcopy(unet).half(), c.half(), wanted.half())
    for one, other in zip(text_projections(full), text_projections(half), strict=True):
        assert other.weight.dtype == torch.float16
        torch.testing.assert_close(other.weight.float(), one.weight, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(sources=torch.ones(2, 12), targets=torch.ones(3, 12)), "both \\(tokens, dim\\) are needed"),
        (dict(sources=torch.ones(2, 8), targets=torch.ones(2, 8)), "looks at tokens 8 wide"),
        (dict(sources=torch.ones(2, 12), targets=torch.ones(2, 12), lamb=0.0), "lamb is 0.0"),
    ],
)
def test_bad_input_gets_one_clear_line(unet, arguments, says):
    with pytest.raises(ValueError, match=says):
        edited(unet, **arguments)
