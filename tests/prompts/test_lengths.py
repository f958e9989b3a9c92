"""Prompts of different lengths in one batch: no picture depends on its neighbours."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import langevin
from langevin.denoiser import NetworkDenoiser
from langevin.guiders.windows import Windows
from langevin.prompts.lengths import LENGTHS, by_length, replaced, settle, shown
from langevin.prompts.readers.clip import CLIPReader
from tests.helpers import reference_parts

LONG = "a very long text that fills windows"
STEP = SimpleNamespace(timestep=7.0, index=0, start=0, total=1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return reference_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def unet(parts):
    network = langevin.UNet2DConditionModel.from_config(dict(parts["unet"].config)).eval()
    network.load_state_dict(parts["unet"].state_dict())
    return network


@pytest.fixture(scope="module")
def read(parts):
    reader = CLIPReader(parts["tokenizer"], parts["text_encoder"])

    def read(*args, **kwargs):
        with torch.no_grad():
            return reader.read(*args, **kwargs)

    return read


def lengths(reading, branch="positive"):
    return reading.branches[branch].get(LENGTHS, {}).get("encoder_hidden_states")


def predicted(unet, reading, x, attention=None):
    denoiser = by_length(NetworkDenoiser(unet))
    with torch.no_grad():
        return denoiser(x, STEP, reading.branches, attention)


@pytest.mark.parametrize(
    ("prompts", "negatives"),
    [
        (["a cat", LONG], None),
        ([LONG, "a cat", "b", LONG + LONG], None),
        (["a cat", "b"], ["", LONG]),
        (["a cat", LONG, "b"], [LONG, "x", "y"]),
        (["(a)1.3 cat- ", f"({LONG})0.7"], None),
        (["a cat", '("a", "b").and()'], None),
        (["a cat", "b [c:" + LONG + ":2]"], None),
    ],
)
def test_a_picture_is_what_it_is_alone(read, unet, prompts, negatives):
    torch.manual_seed(0)
    x = torch.randn(2 * len(prompts), 4, 8, 8)
    together = predicted(unet, read(prompts, negatives, pictures=2, steps=4), x)
    for k, prompt in enumerate(prompts):
        rows = x[2 * k : 2 * k + 2]
        alone = predicted(unet, read(prompt, negatives and [negatives[k]], pictures=2, steps=4), rows)
        for branch in ("positive", "negative"):
            torch.testing.assert_close(together[branch][2 * k : 2 * k + 2], alone[branch], atol=1e-5, rtol=1e-5)


def test_one_length_is_one_plain_tensor(read):
    for prompts in (["a", "b"], [LONG, LONG[::-1]], "a"):
        reading = read(prompts, steps=3)
        assert all(list(told) == ["encoder_hidden_states"] for told in reading.branches.values())


def test_prompt_and_negative_prompt_of_a_picture_have_one_length(read):
    reading = read(["a", "b", LONG], ["", LONG, ""])
    assert lengths(reading).tolist() == lengths(reading, "negative").tolist() == [16, 48, 48]
    assert reading.branches["positive"]["encoder_hidden_states"].shape == (3, 48, 24)


def test_a_prompt_that_changes_has_one_length_all_the_way(read):
    reading = read(["[a:b:2]", f"[c:{LONG}:2]", "[d|e]"], steps=4)
    assert lengths(reading).tolist() == [16, 48, 16]
    for entries in reading.guider.branches.values():
        assert all(told[LONG_KEY].shape == (3, 48, 24) for _, told in entries)
        assert all(told[LENGTHS]["encoder_hidden_states"].tolist() == [16, 48, 16] for _, told in entries)


LONG_KEY = "encoder_hidden_states"


def test_another_text_for_the_same_pictures_brings_its_own_length(read):
    plain, ragged = read(["a", "b"]), read(["a", LONG])
    with torch.no_grad():
        assert LENGTHS not in plain.again(LONG)
        assert ragged.again("c")[LENGTHS][LONG_KEY].tolist() == [16, 16]
        assert ragged.again(LONG)[LENGTHS][LONG_KEY].tolist() == [48, 48]
        assert plain.again(["c", LONG])[LENGTHS][LONG_KEY].tolist() == [16, 48]
        with pytest.raises(ValueError, match="3 texts for 2 prompts"):
            plain.again(["a", "b", "c"])


def test_attention_is_told_which_pictures_it_sees(read, unet):
    seen = []

    def attention(q, k, v, mask, layer, **where):
        if layer.is_cross_attention:
            seen.append((where.get("pictures"), where["names"], len(q), k.shape[2]))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    predicted(unet, read(["a", LONG, "b"]), torch.zeros(3, 4, 8, 8), attention)
    both = ("positive", "negative")
    assert set(seen) == {((0, 2), both, 4, 16), ((1,), both, 2, 48)}
    seen.clear()
    predicted(unet, read(["a", "b"]), torch.zeros(2, 4, 8, 8), attention)
    assert set(seen) == {(None, both, 4, 16)}


def test_what_is_cut_is_remembered(read):
    asked = []
    denoiser = by_length(lambda x, step, branches, attention: asked.append(branches) or {"positive": x})
    branches = read(["a", LONG]).branches
    x = torch.arange(2.0).view(2, 1, 1, 1)
    assert torch.equal(denoiser(x, STEP, branches)["positive"], x)
    denoiser(x, STEP, branches)
    assert asked[0]["positive"] is asked[2]["positive"]
    assert asked[1]["positive"] is asked[3]["positive"]
    denoiser(x, STEP, dict(branches, positive=dict(branches["positive"])))
    assert asked[4]["positive"] is not asked[0]["positive"]
    assert all(LENGTHS not in told for branches in asked for told in branches.values())


def test_a_tensor_that_takes_the_place_of_another_keeps_the_lengths_if_it_is_as_long(read):
    told = read(["a", LONG]).branches["positive"]
    same, other = torch.zeros(2, 48, 24), torch.zeros(2, 32, 24)
    assert replaced(told, LONG_KEY, same)[LENGTHS] is told[LENGTHS]
    assert list(replaced(told, LONG_KEY, other)) == [LONG_KEY]
    assert replaced({LONG_KEY: same}, LONG_KEY, other) == {LONG_KEY: other}
    both = {"a": same, "b": same, LENGTHS: dict.fromkeys("ab", torch.tensor([16, 48]))}
    assert list(replaced(both, "a", other)[LENGTHS]) == ["b"]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_picture_seen_through_windows_is_what_it_is_alone(read, unet, batch):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 8, 20)

    def predicted(reading, x):
        setup = SimpleNamespace(denoiser=NetworkDenoiser(unet), codec=None, picture_places=lambda who: x.shape[-2:])
        Windows(size=8, stride=4, batch=batch).prepare(setup)
        with torch.no_grad():
            return by_length(setup.denoiser)(x, STEP, reading.branches)

    prompts = ["a cat", LONG, "b"]
    together = predicted(read(prompts), x)
    for k, prompt in enumerate(prompts):
        for branch, alone in predicted(read(prompt), x[k : k + 1]).items():
            torch.testing.assert_close(together[branch][k : k + 1], alone, atol=1e-5, rtol=1e-5)


def test_rows_are_taken_out_of_all_that_has_rows():
    told = {
        "text": torch.arange(12.0).view(2, 6, 1),
        "maps": {"hint": torch.zeros(2, 3, 4, 4), "same": torch.zeros(1, 3)},
        "note": "x",
        LENGTHS: {"text": torch.tensor([4, 6])},
    }
    one = shown(told, [0], 2)
    assert one["text"].flatten().tolist() == [0, 1, 2, 3]
    assert (len(one["maps"]["hint"]), len(one["maps"]["same"]), one["note"]) == (1, 1, "x")
    assert LENGTHS not in one


@pytest.mark.parametrize("prompts", [["a cat", LONG], [LONG, "a cat", "b", LONG + LONG], ["a", "b"], [LONG], ["a"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embeddings_are_shown_as_the_texts_they_come_from(read, unet, prompts, dtype):
    """What encode_prompt gives for several texts is filled up to the longest; that padding does not count."""
    torch.manual_seed(0)
    x = torch.randn(len(prompts), 4, 8, 8)
    reading = read(prompts)
    whole = {branch: told["encoder_hidden_states"].to(dtype).float() for branch, told in reading.branches.items()}
    given = read(None, prompt_embeds=whole["positive"], negative_prompt_embeds=whole["negative"])
    texts, embeddings = predicted(unet, reading, x), predicted(unet, given, x)
    close = dict(atol=1e-5, rtol=1e-5) if dtype is torch.float32 else dict(atol=2e-2, rtol=2e-2)
    for branch in ("positive", "negative"):
        torch.testing.assert_close(embeddings[branch], texts[branch], **close)
    assert (lengths(given) is None) == (lengths(reading) is None)
    alone = read(None, prompt_embeds=whole["positive"][:1], negative_prompt_embeds=whole["negative"][:1])
    torch.testing.assert_close(predicted(unet, alone, x[:1])["positive"], embeddings["positive"][:1], **close)


def test_embeddings_without_an_encoder_are_shown_as_they_are(unet):
    torch.manual_seed(0)
    given = torch.randn(2, 48, 24)
    reading = CLIPReader(None, None).read(None, prompt_embeds=given, negative_prompt_embeds=-given)
    assert list(reading.branches["positive"]) == ["encoder_hidden_states"]
    assert torch.equal(reading.branches["positive"]["encoder_hidden_states"], given)


def test_embeddings_shorter_than_a_window_are_shown_as_they_are(read):
    given = torch.randn(2, 1, 24)
    reading = read(None, prompt_embeds=given, negative_prompt_embeds=-given)
    assert torch.equal(reading.branches["positive"]["encoder_hidden_states"], given)


@pytest.mark.parametrize("shape", [(), (3,), (2, 16), (2, 16, 24, 1), (0, 16, 24), (2, 0, 24)])
def test_embeddings_of_a_wrong_shape(read, shape):
    for given in ({"prompt_embeds": torch.zeros(shape)}, {"negative_prompt_embeds": torch.zeros(shape)}):
        with pytest.raises(ValueError, match=r"prompts, tokens, dim"):
            read("a" if "prompt_embeds" not in given else None, **given)


def test_lengths_that_are_all_the_same_go():
    told = {"text": torch.zeros(2, 4, 1), LENGTHS: {"text": torch.tensor([4, 2])}}
    other = {"text": torch.zeros(2, 4, 1), LENGTHS: {"text": torch.tensor([2, 4])}}
    assert [list(entry) for branch in settle([[told], [other]]) for entry in branch] == [["text"], ["text"]]
    (((one,)),) = settle([[told]])
    assert one[LENGTHS]["text"].tolist() == [4, 2]
