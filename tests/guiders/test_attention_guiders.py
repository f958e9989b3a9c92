"""Guiders that watch attention: what they see, what they cost, and what they leave alone."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import langevin
from langevin import (
    AttendAndExcite,
    ClassifierFreeGuidance,
    Control,
    ControlNetModel,
    Guider,
    ImageStart,
    SelfAttentionGuidance,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    Windows,
)
from langevin.guiders import attention_maps
from langevin.guiders.attend_and_excite import highest_attention
from langevin.guiders.attention_maps import map_size, watching
from langevin.guiders.self_attention import blur, lowest_self_attention
from langevin.models.layers.attention import Attention
from tests.helpers import in_threads

STEPS = dict(num_inference_steps=4)
EXCITE = dict(attn_res=(8, 8), thresholds={})
EULER = langevin.EulerDiscreteScheduler(timestep_spacing="trailing")
DDIM = langevin.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)


@pytest.fixture(scope="module")
def pipe(tiny_sd_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(pipe, *guiders, prompt="a cat", **options):
    call = {"seed": 3, "output_type": "np", **STEPS, **options}
    return pipe(prompt, guiders=guiders, **call).images


@contextmanager
def rows_of(network):
    """How many rows each call of a network has, whether or not it comes to its end."""
    rows: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    yield rows
    hook.remove()


def apart(a, b):
    return float(abs(a - b).max())


# -- watching


def test_watching_changes_nothing_and_sees_what_attention_is():
    torch.manual_seed(0)
    layer = Attention(8, heads=2, head_dim=4, context_dim=6)
    x, text, mask = torch.randn(3, 5, 8), torch.randn(3, 7, 6), torch.zeros(3, 1, 1, 7)
    mask[1, ..., 4:] = -1e4
    seen = []
    function = watching(lambda q, k, layer, views: True, lambda p, *_, **where: seen.append((p, where)))

    def attention(*args):
        return function(*args, names=("positive",), views=None)

    torch.testing.assert_close(layer(x, text, mask, attention), layer(x, text, mask))
    ((probabilities, where),) = seen
    assert where == {"names": ("positive",), "views": None}
    assert probabilities.shape == (3, 2, 5, 7)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2, 5))
    assert probabilities[1, ..., 4:].max() == 0
    layer.upcast = True
    assert layer.bfloat16()(x.bfloat16(), text.bfloat16(), None, attention).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("tokens", "size", "found"),
    [(64, (64, 64), (8, 8)), (15, (9, 17), (3, 5)), (6, (3, 2), (3, 2)), (7, (8, 8), None), (1, (9, 5), (1, 1))],
)
def test_sizes_of_maps(tokens, size, found):
    assert map_size(tokens, *size) == found


@pytest.mark.parametrize(
    ("guiders", "seen"),
    [
        ([], 0),
        ([SelfAttentionGuidance(0.0)], 0),
        ([SelfAttentionGuidance()], 4),  # one layer, in the step's own call, not in the second one
        ([AttendAndExcite([1], 3, **EXCITE)], 9),  # the three layers at 8 x 8
        ([AttendAndExcite([1], 3, attn_res=(4, 4), thresholds={})], 3),
        ([AttendAndExcite([1], 3, scale_factor=0, **EXCITE)], 0),
    ],
)
def test_only_what_is_watched_leaves_the_fused_attention(pipe, monkeypatch, guiders, seen):
    calls = []
    usual = attention_maps.probabilities_of
    monkeypatch.setattr(attention_maps, "probabilities_of", lambda *args: calls.append(args) or usual(*args))
    made(pipe, *guiders)
    assert len(calls) == seen


class LooksElsewhere(Guider):
    """Another guider's attention function: every layer looks at everything alike."""

    rows: list[int] = []

    def attention(self, step):
        def everywhere(q, k, v, mask, layer, **where):
            self.rows.append(len(q))
            return v.mean(2, keepdim=True).expand_as(q)

        return everywhere


def test_attention_functions_compose(pipe):
    """With the other first and self-attention guidance behind it, both have their effect."""
    plain, other, own = made(pipe), made(pipe, LooksElsewhere()), made(pipe, SelfAttentionGuidance())
    other_guider = LooksElsewhere()
    other_guider.rows = []
    both = made(pipe, other_guider, SelfAttentionGuidance())
    assert other_guider.rows == ([2] * 8 + [1] * 8) * 4  # in the second call of a step too, which differs in x alone
    assert min(apart(both, one) for one in (plain, other, own)) > 1e-3
    np.testing.assert_array_equal(made(pipe, LooksElsewhere(), SelfAttentionGuidance(0.0)), other)
    halves = made(pipe, SelfAttentionGuidance(0.3), SelfAttentionGuidance(0.45))
    np.testing.assert_allclose(halves, own, atol=1e-5)


# -- self-attention guidance


@pytest.mark.parametrize(
    ("guidance", "scale", "rows"),
    [
        (ClassifierFreeGuidance(7.5), 0.75, [2, 1] * 4),
        (ClassifierFreeGuidance(1.0), 0.75, [1, 1] * 4),
        (ClassifierFreeGuidance(7.5, 0.0, 0.5), 0.75, [2, 1, 2, 1, 1, 1, 1, 1]),
        (ClassifierFreeGuidance(7.5), 0.0, [2] * 4),
        (ClassifierFreeGuidance(1.0), 0.0, [1] * 4),
    ],
)
def test_self_attention_guidance_asks_once_more_and_at_scale_0_never(pipe, guidance, scale, rows):
    with rows_of(pipe.unet) as seen:
        picture = made(pipe, guidance, SelfAttentionGuidance(scale))
    assert seen == rows
    if scale == 0:
        np.testing.assert_array_equal(picture, made(pipe, guidance))


def test_self_attention_guidance_does_not_care_which_rows_go_together(pipe):
    class Apart(Guider):
        """Makes the branches' conditions unlike, so that each goes through the network alone."""

        def prepare(self, setup):
            told = setup.branches["negative"]
            ones = torch.ones(told["encoder_hidden_states"].shape[:2])
            setup.branches["negative"] = {**told, "encoder_attention_mask": ones}

    with rows_of(pipe.unet) as seen:
        alone = made(pipe, Apart(), SelfAttentionGuidance())
    assert seen == [1, 1, 1] * 4
    np.testing.assert_allclose(alone, made(pipe, SelfAttentionGuidance()), atol=1e-5)


@pytest.mark.parametrize("circular", [False, True])
def test_self_attention_guidance_through_windows(pipe, circular):
    size = dict(height=16, width=32, prompt=["a cat", "a dog"])
    pictures = [made(pipe, Windows(8, 4, batch, circular), SelfAttentionGuidance(2.0), **size) for batch in (1, 2, 8)]
    for picture in pictures[1:]:
        np.testing.assert_allclose(picture, pictures[0], atol=1e-4)
    assert apart(pictures[0], made(pipe, Windows(8, 4, 1, circular), **size)) > 1e-3
    one_window = made(pipe, Windows(16, 8, circular=circular), SelfAttentionGuidance(2.0), **size)
    assert apart(one_window, pictures[0]) > 1e-3


def test_masks_of_windows_are_stitched_where_they_belong(pipe):
    """Each half of x has a window; only in the right one is there anything that stands out."""
    guider = SelfAttentionGuidance()
    guider._places = (8, 16)
    guider._seen = {}
    looks = torch.full((2, 1, 16, 16), 1 / 16)  # two windows, seen as 4 x 4
    looks[1, ..., :2] += 1 / 32
    looks[1, ..., 2:4] -= 1 / 32
    guider._see(looks, None, names=("positive",), views=[(0, 8, 0, 8), (0, 8, 8, 16)])
    left, right = guider._seen["positive"].items()
    assert (left[0], right[0]) == ((0, 8, 0, 8), (0, 8, 8, 16))
    assert left[1].sum() == 0
    expected = torch.zeros(8, 8)
    expected[:2, :4] = 1
    torch.testing.assert_close(right[1][0, 0], expected)


def test_unconditional_networks_can_guide_themselves():
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    network = UNet2DModel(8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks).eval()
    pipe = langevin.DDIMPipeline(network, langevin.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    call = dict(batch_size=2, seed=1, output_type="np", num_inference_steps=3)
    with rows_of(network) as rows:
        picture = pipe(**call, guiders=[SelfAttentionGuidance()]).images
    assert rows == [2, 2] * 3
    assert apart(picture, pipe(**call).images) > 1e-3


def tiny_unet(**config):
    parts = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8)
    stages = dict(down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2)
    return UNet2DConditionModel(**{**parts, **stages, "attention_head_dim": 2, **config})


def test_the_lowest_self_attention_is_watched():
    network = tiny_unet()
    assert lowest_self_attention(network) is network.mid_block.attentions[0].transformer_blocks[0].attn1
    network = tiny_unet(mid_block_type=None)
    assert lowest_self_attention(network) is network.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    network = tiny_unet(mid_block_type=None, down_block_types=("DownBlock2D",) * 2)
    assert lowest_self_attention(network) is network.up_blocks[0].attentions[0].transformer_blocks[0].attn1
    plain = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    network = tiny_unet(mid_block_type=None, **{**plain, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")})
    assert lowest_self_attention(network) is network.up_blocks[1].attentions[0].transformer_blocks[0].attn1
    with pytest.raises(ValueError, match="this UNet2DConditionModel has none") as caught:
        lowest_self_attention(tiny_unet(mid_block_type=None, **plain))
    assert "\n" not in str(caught.value)


def test_x_must_be_as_large_as_the_blur_reaches(pipe):
    with pytest.raises(ValueError, match="x has 4 x 8; make pictures with at least 5 x 5"):
        made(pipe, SelfAttentionGuidance(), height=8, width=16)
    made(pipe, SelfAttentionGuidance(0.0), height=8, width=16)


def test_the_blur_is_a_gaussian_of_one():
    dot = torch.zeros(2, 3, 21, 21)
    dot[1, 2, 10, 10] = 1
    blurred = blur(dot)
    assert blurred[0].abs().max() == 0
    places = torch.arange(21) - 10.0
    squares = (places[:, None] ** 2 + places**2)[6:15, 6:15]
    bell = torch.exp(-squares / 2)
    torch.testing.assert_close(blurred[1, 2, 6:15, 6:15], bell / bell.sum())
    torch.testing.assert_close(blur(torch.ones(1, 1, 5, 9)), torch.ones(1, 1, 5, 9))


# -- attend-and-excite


def test_the_highest_attention_of_a_token():
    maps = torch.full((4, 6, 8), 0.1)
    maps[..., 0] = 0.3  # the first token gets most everywhere, and does not count
    maps[2, 3, 5] += 0.02
    shares = (100 * maps[..., 1:-1]).softmax(-1)
    bell = torch.exp(torch.tensor([-1.0, 0.0, -1.0]))
    weight = (bell / bell.sum())[1] ** 2
    high, low = shares[2, 3, 4], shares[0, 0, 4]
    found = highest_attention(maps, [5, 1])
    torch.testing.assert_close(found, torch.stack([weight * high + (1 - weight) * low, shares[0, 0, 0]]))


def test_attend_and_excite_costs_nothing_when_it_does_nothing(pipe):
    plain = made(pipe)
    for idle in (AttendAndExcite([1, 3], scale_factor=0, **EXCITE), AttendAndExcite([1, 3], 0, **EXCITE)):
        with rows_of(pipe.unet) as rows:
            np.testing.assert_array_equal(made(pipe, idle), plain)
        assert rows == [2] * 4


def test_attend_and_excite_asks_once_a_picture_in_the_steps_that_move(pipe):
    with rows_of(pipe.unet) as rows:
        made(pipe, AttendAndExcite([[1], [1, 3]], 2, **EXCITE), prompt=["a cat", "a dog"], num_inference_steps=5)
    assert rows == [1, 1, 4, 1, 1, 4, 4, 4, 4]


def test_refinement_goes_on_until_it_is_enough_or_twenty_times(pipe):
    for threshold, calls in ((0.01, 1), (0.999, 21)):
        with rows_of(pipe.unet) as rows:
            made(pipe, AttendAndExcite([1, 3], 0, {2: threshold}, attn_res=(8, 8)))
        assert rows == [2] * 2 + [1] * calls + [2] * 2


def test_steps_are_counted_from_where_the_run_begins(pipe):
    picture = torch.zeros(1, 3, 16, 16)
    with rows_of(pipe.unet) as rows:
        made(pipe, ImageStart(picture, 0.5), AttendAndExcite([1], 1, **EXCITE))
    assert rows == [1, 2, 2]


def test_the_network_is_left_when_the_last_map_is_seen(pipe):
    """Only the first pass, which finds out where that is, comes to the network's end; and nothing changes by it."""
    ends = []
    hook = pipe.unet.conv_out.register_forward_hook(lambda *_: ends.append(1))
    guider = AttendAndExcite([1, 3], 4, attn_res=(4, 4), thresholds={})
    picture = made(pipe, guider)
    assert len(ends) == 4 + 1
    pipe.unet.enable_gradient_checkpointing()  # passes layers again, and must not be left
    try:
        ends.clear()
        np.testing.assert_allclose(made(pipe, guider), picture, atol=1e-5)
        assert len(ends) == 4 + 4
    finally:
        pipe.unet.disable_gradient_checkpointing()
        hook.remove()


def test_no_gradient_is_left_on_the_networks(pipe):
    weights = list(pipe.unet.parameters())
    assert all(weight.requires_grad for weight in weights)
    made(pipe, AttendAndExcite([1, 3], 2, {0: 0.9}, attn_res=(8, 8)))
    assert all(weight.grad is None for weight in weights)


def test_the_word_that_is_looked_at_least_is_looked_at_more(pipe, monkeypatch):
    losses = []
    usual = AttendAndExcite._loss
    monkeypatch.setattr(AttendAndExcite, "_loss", lambda *args: losses.append(usual(*args)) or losses[-1])
    made(pipe, AttendAndExcite([1, 3], 0, {0: 0.5}, attn_res=(8, 8)))
    assert len(losses) == 21
    assert max(losses[-3:]) < losses[0] - 0.005


def test_pictures_of_a_batch_are_what_they_are_alone(pipe):
    call = dict(num_images_per_prompt=2)
    both = made(pipe, AttendAndExcite([[1], [1, 3]], 2, **EXCITE), prompt=["a cat", "a dog"], **call)
    alone = made(pipe, AttendAndExcite([1, 3], 2, **EXCITE), prompt="a dog", seed=5, **call)
    np.testing.assert_allclose(both[2:], alone, atol=1e-4)


@pytest.mark.parametrize("guider", [AttendAndExcite([1, 3], 4, **EXCITE), SelfAttentionGuidance(2.0)])
def test_solvers_that_count_in_sigma_get_the_same_as_the_others(pipe, guider):
    """DDIM and Euler walk one path, which is bent alike."""
    other = langevin.StableDiffusionPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    pictures = []
    for scheduler in (DDIM, EULER):
        other.scheduler = scheduler
        pictures.append((made(other, num_inference_steps=12), made(other, guider, num_inference_steps=12)))
    effects = [with_ - without for without, with_ in pictures]
    assert apart(*effects) < 0.05 * abs(effects[0]).max()


def test_attend_and_excite_through_windows(pipe):
    size = dict(height=16, width=24)
    guider = AttendAndExcite([1, 3], 2, {1: 0.9}, attn_res=(4, 4))
    pictures = [made(pipe, Windows(8, 4, batch), guider, **size) for batch in (1, 2)]
    np.testing.assert_allclose(*pictures, atol=1e-4)
    assert apart(pictures[0], made(pipe, Windows(8, 4), **size)) > 1e-3
    quarter = AttendAndExcite([1, 3], 2, {1: 0.9})  # of a window, 2 x 2, which this network does not have
    with pytest.raises(ValueError, match="sees 2 x 2 places"):
        made(pipe, Windows(8, 4), quarter, **size)


def test_gradients_flow_through_control_networks(pipe):
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8)).eval()
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.3)
    control = Control(net, torch.rand(3, 16, 16))
    guider = AttendAndExcite([1, 3], 2, **EXCITE)
    both = made(pipe, control, guider)
    assert apart(both, made(pipe, control)) > 1e-3
    assert apart(both, made(pipe, guider)) > 1e-3

    class Blind(Control):
        """Says the same, but hides that it comes from x."""

        def _tell(self, x, step, names, told):
            return super()._tell(x.detach(), step, names, told)

    assert apart(both, made(pipe, Blind(net, torch.rand(3, 16, 16)), guider)) > 1e-3
    assert all(weight.grad is None for weight in net.parameters())


def test_many_threads_share_one_pipeline_and_one_guider(pipe):
    guiders = [SelfAttentionGuidance(), AttendAndExcite([1, 3], 2, **EXCITE)]
    prompts = ["a cat", "a dog", "the sea", "a red hat"]
    alone = [made(pipe, *guiders, prompt=prompt) for prompt in prompts]
    for picture, at_once in zip(alone, in_threads(lambda k: made(pipe, *guiders, prompt=prompts[k]), 4), strict=True):
        np.testing.assert_allclose(at_once, picture, atol=1e-5)
    assert not {"_seen", "_last", "_tokens"} & {name for guider in guiders for name in vars(guider)}
