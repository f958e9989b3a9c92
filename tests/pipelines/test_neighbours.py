"""A picture of a batch is what it is alone, bit for bit, however long its neighbours' prompts are.

Each prompt here has a length of its own, so that the network sees the same batch of one in both cases.
"""

from __future__ import annotations

import pytest
import torch

import langevin
from langevin import (
    AttendAndExcite,
    CFGPlusPlus,
    Control,
    ControlNetModel,
    SafeGuidance,
    SelfAttentionGuidance,
    Windows,
)

PROMPTS = ["a red circle", "a very long text that fills four windows and more", "the dog [runs:sits:2] in two"]
NEGATIVES = ["", "", "ugly"]


@pytest.fixture(scope="module")
def pipe(tiny_sd_folder):
    pipe = langevin.StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def control(pipe, prompts):
    torch.manual_seed(0)
    network = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16)).eval()
    for parameter in network.parameters():
        parameter.data += 0.01
    return [Control(network, torch.linspace(0, 1, 3 * 16 * 32).view(1, 3, 16, 32))]


CASES = {
    "nothing more": lambda pipe, prompts: [],
    "windows": lambda pipe, prompts: [Windows(size=8, stride=4, batch=2)],
    "self-attention guidance": lambda pipe, prompts: [SelfAttentionGuidance(0.75)],
    "both": lambda pipe, prompts: [SelfAttentionGuidance(0.75), Windows(size=8, stride=4)],
    "safe guidance": lambda pipe, prompts: [SafeGuidance("a concept of two windows", scale=1000, warmup_steps=0)],
    "attend-and-excite": lambda pipe, prompts: [AttendAndExcite([[2]] * prompts, attn_res=(4, 8))],
    "guidance on the manifold": lambda pipe, prompts: [CFGPlusPlus(0.6)],
    "control": control,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"clip_skip": 1, "guidance_scale": 1.0}])
def test_a_picture_does_not_depend_on_its_neighbours(pipe, case, options):

    def latents(prompts, negatives, seeds):
        torch.manual_seed(1)
        return pipe(
            prompts,
            negative_prompt=negatives,
            seed=seeds,
            guiders=CASES[case](pipe, len(prompts)),
            num_inference_steps=4,
            height=16,
            width=32,
            output_type="latent",
            **options,
        ).images

    together = latents(PROMPTS, NEGATIVES, [0, 1, 2])
    for k, prompt in enumerate(PROMPTS):
        assert torch.equal(together[k], latents([prompt], [NEGATIVES[k]], [k])[0])


def test_callbacks_see_one_tensor_and_may_put_another_in_its_place(pipe):
    seen = []

    def look(call, i, t, tensors):
        seen.append(tuple(tensors["prompt_embeds"].shape))
        return {"prompt_embeds": tensors["prompt_embeds"][:, :16]} if i == 0 else {}

    options = dict(num_inference_steps=3, output_type="latent", seed=0, guidance_scale=1.0)
    prompts = ["a", "a text of more than one window"]
    pipe(prompts, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["prompt_embeds"], **options)
    assert seen == [(2, 32, 24), (2, 16, 24), (2, 16, 24)]
