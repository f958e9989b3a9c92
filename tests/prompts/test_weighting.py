"""From trees to embeddings: the arithmetics, long prompts, and encoders of other kinds."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers

from langevin.prompts.chunks import chunk_text, part_at_comma, part_at_sentence, part_at_word
from langevin.prompts.encoder import PromptEncoder
from langevin.prompts.tree import And, Fragment, Text
from langevin.prompts.weighting import GRAMMARS, Encoding, embed_trees, grammar
from tests.helpers import reference_parts
from tests.prompts.encoding import encode_prompts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return reference_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def encoder(parts):
    return PromptEncoder(parts["tokenizer"], parts["text_encoder"])


@pytest.fixture(scope="module")
def encode(parts):
    def encode(*args, **kwargs):
        with torch.no_grad():
            encoding = encode_prompts(parts["tokenizer"], parts["text_encoder"], *args, **kwargs)
        return encoding.positive, encoding.negative

    return encode


def today(parts, texts, window=16):
    """What one window gave before there was any grammar."""
    tokens = parts["tokenizer"](texts, padding="max_length", max_length=window, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return parts["text_encoder"](tokens.input_ids)[0]


def embedded(encoder, text, name, cut=False):
    with torch.no_grad():
        return embed_trees(Encoding(encoder), [And((text,), (1.0,))], GRAMMARS[name].arithmetic, cut=cut)[0]


def weighted(*pairs, breaks=()):
    return Text(tuple(Fragment(text, weight) for text, weight in pairs), breaks)


PLAIN = ["a cat", "", "a,b c.", "don't - 3.5", "[x] {y}", "  two  blanks ", "fourteenletter"]


@pytest.mark.parametrize("name", ["compel", "none"])
@pytest.mark.parametrize("long_prompts", ["chunk", "cut"])
def test_plain_prompts_are_bit_for_bit_what_one_window_gives(parts, encode, name, long_prompts):
    positive, negative = encode(PLAIN, "ugly", prompt_weighting=name, long_prompts=long_prompts)
    expected = today(parts, ["ugly"] * len(PLAIN) + PLAIN)
    assert torch.equal(torch.cat([negative, positive]), expected)


@pytest.mark.parametrize("name", ["a1111", "comfyui"])
def test_plain_prompts_are_the_same_to_the_web_uis(encode, name):
    prompts = ["a cat", "a dog, and more"]
    torch.testing.assert_close(encode(prompts, "ugly", prompt_weighting=name), encode(prompts, "ugly"))


def test_none_takes_grammar_literally(parts, encode):
    prompts = ["(a b)1.3", "a+ (b:2)"]
    positive, _ = encode(prompts, with_negative=False, prompt_weighting="none")
    assert torch.equal(positive, today(parts, prompts))
    assert not torch.allclose(encode(prompts, with_negative=False)[0], positive)


def test_comfyui_scales_the_way_from_the_empty_prompt(parts, encoder):
    z, empty = today(parts, ["ab c", ""])
    got = embedded(encoder, weighted(("ab", 1.5), ("c", -0.5)), "comfyui")[0]
    expected = z.clone()
    expected[1:3] = empty[1:3] + 1.5 * (z[1:3] - empty[1:3])
    expected[3] = empty[3] - 0.5 * (z[3] - empty[3])
    torch.testing.assert_close(got, expected)
    assert torch.equal(got[4:], z[4:])


def test_a1111_scales_and_keeps_each_chunks_mean(parts, encoder):
    (z,) = today(parts, ["ab c"])
    got = embedded(encoder, weighted(("ab", 1.5), ("c", 0.7)), "a1111")[0]
    expected = z.clone()
    expected[1:3] *= 1.5
    expected[3] *= 0.7
    torch.testing.assert_close(got, expected * (z.mean() / expected.mean()))


def test_compel_draws_light_words_towards_their_absence(parts, encoder):
    """At weight 0 nothing of the word is left but its place: the prompt with the word hidden."""
    gone = embedded(encoder, weighted(("a", 1), ("x", 0), ("b", 1)), "compel")[0]
    ids = torch.tensor([encoder.fill(encoder.tokenise(["a x b"])[0])])
    mask = torch.ones_like(ids)
    mask[0, 2] = 0
    with torch.no_grad():
        hidden = encoder.embed(ids, mask)[0]
    kept = [k for k in range(16) if k != 2]
    torch.testing.assert_close(gone[kept], hidden[kept], atol=1e-4, rtol=1e-4)
    half = embedded(encoder, weighted(("a", 1), ("x", 0.5), ("b", 1)), "compel")[0]
    (z,) = today(parts, ["a x b"])
    torch.testing.assert_close(half[kept], (z[kept] + hidden[kept]) / 2)


def test_long_prompts_are_read_in_windows(parts, encode):
    positive, negative = encode("abcdefghijklmn opqrst", "ugly")
    assert positive.shape == negative.shape == (1, 32, 24)
    torch.testing.assert_close(positive.reshape(2, 16, 24), today(parts, ["abcdefghijklmn", "opqrst"]))
    torch.testing.assert_close(negative.reshape(2, 16, 24), today(parts, ["ugly", ""]))


def test_every_text_of_a_call_gets_the_windows_of_the_longest(encode):
    positive, negative = encode(["a", "b " * 40], ["c " * 50, "d"], pictures=2)
    assert positive.shape == negative.shape == (4, 64, 24)
    torch.testing.assert_close(encode("a", "c " * 50)[0][0], positive[0])


def test_cut_prompts_name_the_words_lost(parts, encode, caplog):
    with caplog.at_level(logging.WARNING):
        positive, _ = encode("abcdefg+ hijklmnopq", "ugly", long_prompts="cut")
    assert [record.message for record in caplog.records] == [
        "The prompt is longer than the text encoder's 16 tokens; not seen: 'opq'"
    ]
    assert positive.shape == (1, 16, 24)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        encode("abcdefg+ hijklmnopq", "ugly")
    assert not caplog.records


def test_given_embeddings_are_filled_up_too(parts, encode):
    given = today(parts, ["a cat"])
    positive, negative = encode(None, "n " * 20, prompt_embeds=given)
    assert positive.shape == negative.shape == (1, 32, 24)
    torch.testing.assert_close(positive, encode("a cat", "n " * 20)[0])
    positive, negative = encode("n " * 20, negative_prompt_embeds=given)
    torch.testing.assert_close(negative, encode("n " * 20, "a cat")[1])
    short = given[:, :8]
    assert encode(None, "x", prompt_embeds=short)[1].shape == (1, 8, 24)


def test_filling_uses_each_sides_own_clip_skip(encode):
    plain = encode("a", "n " * 20, clip_skip=1)[0]
    assert torch.equal(plain[:, 16:], encode("", clip_skip=1)[0])
    assert torch.equal(encode("n " * 20, "a", clip_skip=1)[1][:, 16:], encode("")[0])


def test_wrong_choices_are_refused(encode):
    with pytest.raises(ValueError, match="prompt_weighting is 'loud'; allowed: 'compel', 'a1111', 'comfyui', 'none'"):
        encode("a", prompt_weighting="loud")
    with pytest.raises(ValueError, match="long_prompts is 'fold'; allowed: 'chunk', 'cut'"):
        encode("a", long_prompts="fold")


def test_web_ui_prompts_are_read_and_weighed(encode, encoder):
    text = weighted(("a ", 1), ("b", 1.3), (" c", 1))
    for name in ("a1111", "comfyui"):
        got, _ = encode("a (b:1.3) c", with_negative=False, prompt_weighting=name)
        torch.testing.assert_close(got, embedded(encoder, text, name))


def sizes(encoder, text, part, words=None):
    options = {} if words is None else {"words": words}
    return [len(chunk) for chunk in chunk_text(encoder, text, part, **options).tokens]


def test_where_long_texts_are_parted(encoder):
    plain = weighted(("ab. cd, ef ghijklmnopqrstuvwxyz", 1))
    # after the full stop; else after the comma; else after a word; else anywhere
    assert sizes(encoder, plain, part_at_sentence) == [3, 3, 2, 14, 6]
    assert sizes(encoder, plain, part_at_comma) == [6, 14, 8]
    assert sizes(encoder, weighted(("ab, cdefghijklm, x", 1)), part_at_comma) == [14, 2]  # a comma comes next
    words = grammar("comfyui").arithmetic.words
    assert sizes(encoder, plain, part_at_word, words) == [14, 14]  # a long word is parted
    assert sizes(encoder, weighted(("abcdefg hijklm opqrs", 1)), part_at_word, words) == [13, 5]  # a short one is not
    assert sizes(encoder, weighted(("abcdefg hijklm opqrs", 1)), part_at_comma) == [14, 4]


def test_break_begins_a_new_chunk(encoder):
    text = weighted(("a b", 1), ("c", 1.2), ("", 1), ("d", 1), breaks=(1, 2, 3))
    assert sizes(encoder, text, part_at_comma) == [2, 1, 0, 1]


def test_a_weight_does_not_depend_on_the_other_prompts_of_the_batch(encode):
    for name, prompt in [("compel", "a (b)0.4 c+"), ("a1111", "a (b:1.4) c"), ("comfyui", "a (b:1.4) c")]:
        alone, _ = encode(prompt, with_negative=False, prompt_weighting=name)
        both, _ = encode(["(x) " * 9, prompt], with_negative=False, prompt_weighting=name)
        torch.testing.assert_close(both[1:, : alone.shape[1]], alone)


def test_hundreds_of_weights_are_encoded_in_small_batches(parts, encoder):
    text = weighted(*(("ab", 0.3 + 0.1 * (k % 2)) for k in range(100)))
    rows = []
    hook = parts["text_encoder"].register_forward_pre_hook(
        lambda module, args, kwargs: rows.append((args or [kwargs["input_ids"]])[0].shape[0]), with_kwargs=True
    )
    try:
        embedded(encoder, text, "compel")
    finally:
        hook.remove()
    assert len(rows) > 6
    assert max(rows[1:]) <= 16


# --- encoders of other kinds


def test_sd2_pads_with_an_exclamation_mark(parts, tmp_path):
    from tests.helpers import tiny_tokenizer

    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.pad_token = "!"
    encoder = PromptEncoder(tokenizer, parts["text_encoder"])
    assert encoder.pad == tokenizer.convert_tokens_to_ids("!") == 0
    ids = encoder.fill(encoder.tokenise(["a"])[0])
    assert ids == tokenizer("a", padding="max_length").input_ids
    assert ids[3:] == [0] * 13


def test_encoders_that_want_it_get_the_mask_of_padding(tmp_path):
    parts = reference_parts(tmp_path, text={"use_attention_mask": True})
    tokens = parts["tokenizer"](["a cat"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = parts["text_encoder"](tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    with torch.no_grad():
        got = encode_prompts(parts["tokenizer"], parts["text_encoder"], "a cat", with_negative=False).positive
    assert torch.equal(got, expected)


class Pieces:
    """A tokenizer like T5's or XLM-R's: letters are tokens, "▁" begins a word, and no beginning mark for T5."""

    added_tokens_encoder: dict[str, int] = {}

    def __init__(self, begins: bool) -> None:
        self.pad_token_id, self.eos_token_id = (1, 2) if begins else (0, 1)
        self.bos, self.model_max_length = ([0] if begins else []), 12

    def __call__(self, texts, add_special_tokens=True, **_):
        one = isinstance(texts, str)
        ids = [[3 + ord(c) % 90 for word in text.split() for c in "▁" + word] for text in ([texts] if one else texts)]
        if add_special_tokens:
            ids = [[*self.bos, *row, self.eos_token_id] for row in ids]
        return transformers.BatchEncoding({"input_ids": ids[0] if one else ids})

    def convert_ids_to_tokens(self, ids):
        blank = 3 + ord("▁") % 90
        return ["▁" if id == blank else "x" for id in ids]


def t5():
    config = transformers.T5Config(
        vocab_size=93, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return Pieces(begins=False), transformers.T5EncoderModel(config).eval()


def xlm_roberta():
    config = transformers.XLMRobertaConfig(
        vocab_size=93, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, pad_token_id=1
    )
    return Pieces(begins=True), transformers.XLMRobertaModel(config).eval()


@pytest.mark.parametrize("make", [t5, xlm_roberta])
def test_t5_and_xlm_roberta_are_encoded_by_the_same_interface(make):
    torch.manual_seed(0)
    tokenizer, text_encoder = make()
    encoder = PromptEncoder(tokenizer, text_encoder)
    assert (len(encoder.bos), len(encoder.eos)) == (len(tokenizer.bos), 1)
    assert encoder.room == 11 - len(tokenizer.bos)
    ids = encoder.fill(encoder.tokenise(["ab c"])[0])
    mask = [int(k < len(tokenizer.bos) + 6) for k in range(12)]
    with torch.no_grad():
        expected = text_encoder(torch.tensor([ids]), attention_mask=torch.tensor([mask])).last_hidden_state
        got = encode_prompts(tokenizer, text_encoder, "ab c", "d")
        light = encode_prompts(tokenizer, text_encoder, "(ab)1.5 c-", "a long negative prompt")
        skipped = encode_prompts(tokenizer, text_encoder, "ab c", with_negative=False, clip_skip=1).positive
        exact = encode_prompts(tokenizer, text_encoder, "ab c", with_negative=False, clip_skip=0).positive
    torch.testing.assert_close(got.positive, expected)
    torch.testing.assert_close(exact, expected)
    assert not torch.allclose(skipped, expected)
    assert light.positive.shape == light.negative.shape == (1, 36, 16)
    assert not torch.allclose(light.positive[:, :12], expected, atol=1e-3)
    # padding is hidden: what stands there changes nothing
    other = torch.tensor([[id if seen else 50 for id, seen in zip(ids, mask, strict=True)]])
    with torch.no_grad():
        same = encoder.embed(other, torch.tensor([mask]))
    torch.testing.assert_close(same[:, : sum(mask)], expected[:, : sum(mask)])


def test_sentencepiece_texts_are_parted_between_words():
    encoder = PromptEncoder(*t5())
    assert sizes(encoder, weighted(("abc def ghijk l", 1)), part_at_sentence) == [8, 8]


def test_a_tokenizer_without_a_window_needs_one(parts):
    tokenizer, text_encoder = t5()
    tokenizer.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="give the window"):
        PromptEncoder(tokenizer, text_encoder)
    with pytest.raises(ValueError, match="a window of 1 tokens leaves no room for text; at least 2"):
        PromptEncoder(tokenizer, text_encoder, window=1)
