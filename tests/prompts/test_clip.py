"""Texts to embeddings: the reference's numbers, and honest words about what is lost."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.helpers import reference_parts
from tests.prompts.encoding import encode_prompts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return reference_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def reference(parts):
    import diffusers

    # the reference looks for the final norm where older versions of transformers had it
    parts["text_encoder"].__dict__.setdefault("text_model", parts["text_encoder"])
    return diffusers.StableDiffusionPipeline(
        **parts, scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False
    )


@pytest.fixture(scope="module")
def encode(parts):
    def encode(*args, **kwargs):
        with torch.no_grad():
            encoding = encode_prompts(parts["tokenizer"], parts["text_encoder"], *args, **kwargs)
        return encoding.positive, encoding.negative

    return encode


@pytest.mark.parametrize("clip_skip", [None, 1, 2])
@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("negative", [None, "ugly", ["ugly", "bad"]])
def test_embeddings_are_the_reference_ones(encode, reference, clip_skip, pictures, negative):
    prompts = ["a cat", "a dog!"]
    with torch.no_grad():
        same = [negative] * 2 if isinstance(negative, str) else negative  # it wants the prompt's type
        theirs = reference.encode_prompt(prompts, "cpu", pictures, True, same, clip_skip=clip_skip)
    ours = encode(prompts, negative, pictures=pictures, clip_skip=clip_skip)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_clip_skip_for_the_negative_prompt_too_is_an_option(encode):
    plain = encode("a", "b", clip_skip=1)[1]
    skipped = encode("a", "b", clip_skip=1, clip_skip_negative=True)[1]
    swapped = encode("b", "a", clip_skip=1)[0]
    assert not torch.allclose(plain, skipped)
    torch.testing.assert_close(skipped, swapped)


def test_clip_skip_zero_is_the_last_layer_normed(parts, encode):
    torch.testing.assert_close(encode("a cat", clip_skip=0)[0], encode("a cat")[0])
    with pytest.raises(ValueError, match="3 layers"):
        encode("a cat", clip_skip=4)


def test_given_embeddings_are_repeated_interleaved(encode):
    embeds = torch.arange(2.0).view(2, 1, 1).expand(2, 16, 24)
    positive, negative = encode(None, prompt_embeds=embeds, negative_prompt_embeds=-embeds, pictures=2)
    assert positive[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert negative[:, 0, 0].tolist() == [0, 0, -1, -1]


def test_counts_and_shapes_that_do_not_fit_are_refused(encode):
    with pytest.raises(ValueError, match="3 negative prompts for 2 prompts"):
        encode(["a", "b"], ["x", "y", "z"])
    with pytest.raises(ValueError, match="same shape"):
        encode(None, prompt_embeds=torch.zeros(1, 16, 24), negative_prompt_embeds=torch.zeros(1, 8, 24))


def test_a_cut_prompt_is_said_with_the_words_lost(parts, caplog):
    with caplog.at_level(logging.WARNING), torch.no_grad():
        texts = ["abcdefghijklmnopqrstuvwxyz", "short"]
        encode_prompts(parts["tokenizer"], parts["text_encoder"], texts, with_negative=False, long_prompts="cut")
    (record,) = caplog.records
    assert "16 tokens" in record.message
    assert "opqrstuvwxyz" in record.message
    assert "abc" not in record.message
