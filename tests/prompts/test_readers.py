"""Readers of every kind of encoder: the reference's numbers, and all that prompts can do in each of them."""

from __future__ import annotations

import copy
import functools
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.models.encoders.twin import twin
from langevin.prompts.lengths import LENGTHS
from langevin.prompts.readers.base import TextReader
from langevin.prompts.readers.bert import BertReader
from langevin.prompts.readers.clip import CLIPReader, UnitReader
from langevin.prompts.readers.pooled import AlignedReader, PooledReader
from langevin.prompts.readers.t5 import T5Reader
from langevin.prompts.readers.vision import VisionReader
from langevin.prompts.readers.xlm_r import XLMRReader
from langevin.prompts.textual_inversion import TextualInversionLoaderMixin
from tests.helpers import in_threads, tiny_tokenizer
from tests.prompts import readers_parts as tiny

close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
PROMPTS = ["a cat", "two dogs, wet!"]
LONG = "many words in a long long prompt. " * 4


@pytest.fixture(scope="module")
def clip_tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), window=24)


POOLED = {"hidden": "tokens", "embeds": "text_embeds", "mask": "filled"}


@pytest.fixture(scope="module")
def readers(clip_tokenizer):
    projecting = tiny.clip_encoder(clip_tokenizer, projection=10)
    return {
        "clip": CLIPReader(clip_tokenizer, tiny.clip_encoder(clip_tokenizer)),
        "unit": UnitReader(clip_tokenizer, tiny.clip_encoder(clip_tokenizer)),
        "pooled": PooledReader(clip_tokenizer, projecting, outputs=POOLED),
        "unnormed": PooledReader(
            clip_tokenizer,
            tiny.clip_encoder(clip_tokenizer),
            outputs={"hidden": "tokens", "pooled": "pooler_output"},
            normed=False,
        ),
        "aligned": AlignedReader(clip_tokenizer, projecting),
        "t5": T5Reader(tiny.t5_tokenizer(), tiny.t5_encoder()),
        "xlm_r": XLMRReader(tiny.xlm_r_tokenizer(), tiny.xlm_r()),
        "xlm_r_pre": XLMRReader(tiny.xlm_r_tokenizer(), tiny.xlm_r({"has_pre_transformation": True})),
        "bert": BertReader(tiny.bert_tokenizer(), tiny.bert()),
    }


KINDS = ["clip", "unit", "pooled", "unnormed", "aligned", "t5", "xlm_r", "xlm_r_pre", "bert"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def read(readers):
    def read(kind, *args, **kwargs):
        with torch.no_grad():
            return readers[kind].read(*args, **kwargs)

    return read


def main(reading, branch="positive"):
    return reading.branches[branch][reading.embeds_key]


# -- the reference's numbers


def asking(**parts):
    """A stand-in for a pipeline of the reference that is asked about prompts and nothing else."""
    return SimpleNamespace(**{"_execution_device": "cpu", "device": "cpu", "unet": None, **parts})


@pytest.mark.parametrize("negative", [None, ["ugly", "bad"]])
@pytest.mark.parametrize("config", [{}, {"feed_forward_proj": "gated-gelu", "num_layers": 3}])
def test_t5_is_read_as_deepfloyd_reads_it(negative, config):
    import diffusers

    tokenizer, encoder = tiny.t5_tokenizer(), tiny.t5_encoder(**config)
    reference = asking(tokenizer=tokenizer, text_encoder=encoder)
    reference._text_preprocessing = functools.partial(diffusers.IFPipeline._text_preprocessing, reference)
    with torch.no_grad():
        theirs = diffusers.IFPipeline.encode_prompt(reference, PROMPTS, True, 2, "cpu", negative)
        ours = T5Reader(tokenizer, encoder, clean=lambda text: text.lower().strip()).read(PROMPTS, negative, pictures=2)
    for branch, embeds in zip(("positive", "negative"), theirs, strict=True):
        assert embeds.shape == (4, 77, 16)
        close(main(ours, branch), embeds)


@pytest.mark.parametrize("negative", [None, ["ugly", "bad"]])
@pytest.mark.parametrize(
    "config", [{}, {"has_pre_transformation": True}, {"use_attention_mask": False}, {"num_hidden_layers": 1}]
)
def test_xlm_r_is_read_as_altdiffusion_reads_it(negative, config):
    from diffusers.pipelines.deprecated.alt_diffusion import modeling_roberta_series as theirs_of
    from diffusers.pipelines.deprecated.alt_diffusion.pipeline_alt_diffusion import AltDiffusionPipeline

    tokenizer, encoder = tiny.xlm_r_tokenizer(), tiny.xlm_r(config)
    other = theirs_of.RobertaSeriesModelWithTransformation(
        theirs_of.RobertaSeriesConfig(**tiny.xlm_r_sizes(**config))
    ).eval()
    other.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        reference = asking(tokenizer=tokenizer, text_encoder=other)
        theirs = AltDiffusionPipeline.encode_prompt(reference, PROMPTS, "cpu", 2, True, negative)
        ours = XLMRReader(tokenizer, encoder).read(PROMPTS, negative, pictures=2)
    for branch, embeds in zip(("positive", "negative"), theirs, strict=True):
        assert embeds.shape == (4, 24, 12)
        close(main(ours, branch), embeds)


@pytest.mark.parametrize("config", [{}, {"activation_function": "relu", "encoder_layers": 1, "head_dim": 7}])
def test_bert_is_read_as_latent_diffusion_reads_it(config):
    from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion as theirs_of

    tokenizer, encoder = tiny.bert_tokenizer(), tiny.bert(config)
    other = theirs_of.LDMBertModel(theirs_of.LDMBertConfig(**tiny.bert_sizes(**config))).eval()
    other.load_state_dict(encoder.state_dict())
    options = dict(padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        ours = BertReader(tokenizer, encoder).read(PROMPTS)
        for branch, texts in (("positive", PROMPTS), ("negative", ["", ""])):
            close(main(ours, branch), other(tokenizer(texts, **options).input_ids)[0])


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": 1, "hidden_act": "gelu"}, {"eos_token_id": 2}])
def test_pooled_and_projected_clip_is_read_as_unclip_reads_it(clip_tokenizer, config):
    import diffusers

    encoder = tiny.clip_encoder(clip_tokenizer, projection=10, **config)
    with torch.no_grad():
        reference = asking(tokenizer=clip_tokenizer, text_encoder=encoder)
        theirs = diffusers.UnCLIPPipeline._encode_prompt(reference, PROMPTS, "cpu", 2, True)
        reference = asking(prior_tokenizer=clip_tokenizer, prior_text_encoder=encoder)
        stable = diffusers.StableUnCLIPPipeline._encode_prior_prompt(reference, PROMPTS, "cpu", 2, True)
        ours = PooledReader(clip_tokenizer, encoder, outputs=POOLED).read(PROMPTS, pictures=2).branches
    for expected in (theirs, stable):
        for name, both in zip(("embeds", "hidden", "mask"), expected, strict=True):
            close(torch.cat([ours["negative"][name], ours["positive"][name]]), both)
    assert ours["positive"]["mask"].dtype == torch.bool


@pytest.mark.parametrize("negative", [None, ["ugly", "bad"]])
def test_clip_before_its_norm_is_read_as_the_latent_upscaler_reads_it(clip_tokenizer, negative):
    import diffusers

    encoder = tiny.clip_encoder(clip_tokenizer)
    outputs = {"hidden": "tokens", "pooled": "pooler_output"}
    with torch.no_grad():
        ours = PooledReader(clip_tokenizer, encoder, outputs=outputs, normed=False).read(PROMPTS, negative).branches
        reference = asking(tokenizer=clip_tokenizer, text_encoder=encoder)
        theirs = diffusers.StableDiffusionLatentUpscalePipeline.encode_prompt(reference, PROMPTS, "cpu", True, negative)
    for embeds, (branch, name) in zip(
        theirs, [(b, n) for n in ("hidden", "pooled") for b in ("positive", "negative")], strict=True
    ):
        close(ours[branch][name], embeds)


def test_clip_is_aligned_as_versatile_diffusion_does(clip_tokenizer):
    import diffusers

    encoder = tiny.clip_encoder(clip_tokenizer, projection=10)
    with torch.no_grad():
        reference = asking(tokenizer=clip_tokenizer, text_encoder=encoder)
        kind = diffusers.VersatileDiffusionTextToImagePipeline
        theirs = kind._encode_prompt(reference, PROMPTS, "cpu", 2, True, ["ugly", "bad"])
        ours = AlignedReader(clip_tokenizer, encoder).read(PROMPTS, ["ugly", "bad"], pictures=2)
    close(torch.cat([main(ours, "negative"), main(ours)]), theirs)


def test_learned_words_are_aligned_by_the_prompts_end_in_old_models_too(clip_tokenizer):
    tokenizer = copy.deepcopy(clip_tokenizer)
    tokenizer.add_tokens("<toy>")  # of a higher number than the mark of the end
    now = tiny.clip_encoder(tokenizer, projection=10)
    old = type(now)(type(now.config)(**{**now.config.to_dict(), "eos_token_id": 2})).eval()
    old.load_state_dict(now.state_dict())
    with torch.no_grad():
        wanted, given = (main(AlignedReader(tokenizer, one).read("a <toy> of wood")) for one in (now, old))
        wrong = old(torch.tensor([tokenizer("a <toy> of wood").input_ids])).text_embeds
        right = now(torch.tensor([tokenizer("a <toy> of wood").input_ids])).text_embeds
    assert (right - wrong).abs().max() > 1e-3
    close(given, wanted)


def test_clip_is_brought_to_length_1_as_vq_diffusion_does(clip_tokenizer):
    from diffusers import VQDiffusionPipeline

    encoder = tiny.clip_encoder(clip_tokenizer)
    learned = SimpleNamespace(learnable=False)
    with torch.no_grad():
        reference = asking(
            tokenizer=clip_tokenizer, text_encoder=encoder, learned_classifier_free_sampling_embeddings=learned
        )
        theirs = VQDiffusionPipeline._encode_prompt(reference, PROMPTS, 2, True)
        ours = UnitReader(clip_tokenizer, encoder).read(PROMPTS, pictures=2)
    close(torch.cat([main(ours, "negative"), main(ours)]), theirs)


def test_a_network_with_room_for_one_window_gets_one(clip_tokenizer, caplog):
    reader = CLIPReader(clip_tokenizer, tiny.clip_encoder(clip_tokenizer), one_window=True)
    with torch.no_grad():
        assert main(reader.read(["a", LONG], LONG)).shape == (2, 24, 24)
        assert "not seen" in caplog.text
        with pytest.raises(ValueError, match=r"gives 48 tokens, and this model takes 24; leave \.and"):
            reader.read('("a", "b").and()')


# -- what prompts can do, in every kind


@every_kind
def test_weights_long_prompts_and_editing_work(read, kind):
    plain = read(kind, "a red cat")
    window = main(plain).shape[1]
    for prompt in ("a (red)1.5 cat", "a red- cat", '("a red cat", "a dog").blend(0.5, 0.5)'):
        assert main(read(kind, prompt)).shape == main(plain).shape
        assert (main(read(kind, prompt)) - main(plain)).abs().max() > 1e-3
    long = read(kind, LONG, "b")
    assert main(long).shape[1] > window
    assert main(long).shape[1] % window == 0
    assert main(long).shape == main(long, "negative").shape
    assert torch.isfinite(main(long)).all()
    edited = read(kind, "a [red:blue:0.5] cat", steps=10)
    entries = edited.guider.branches["positive"]
    assert [first for first, _ in entries] == [0, 5]
    for (_, told), text in zip(entries, ("a red cat", "a blue cat"), strict=True):
        for name, value in read(kind, text).branches["positive"].items():
            close(told[name], value)


@every_kind
def test_a_long_prompt_ends_its_windows_between_words(readers, kind):
    from langevin.prompts.chunks import part_at_sentence
    from langevin.prompts.tree import Fragment, Text
    from langevin.prompts.weighting import chunk_text

    encoder = readers[kind].encoder()
    chunks = chunk_text(encoder, Text((Fragment(" ".join(["abcde fgh ijklm"] * 9)),)), part_at_sentence)
    assert len(chunks.tokens) > 1
    words = [encoder.decode([token.id for token in chunk]).split() for chunk in chunks.tokens]
    assert {word for row in words for word in row} == {"abcde", "fgh", "ijklm"}


@every_kind
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_leaving_layers_out_leaves_the_encoder_as_it_was(readers, read, kind, clip_skip):
    encoder = readers[kind].text_encoder
    before = pickle.dumps(encoder)
    skipped = read(kind, "a cat", clip_skip=clip_skip)
    assert pickle.dumps(encoder) == before
    assert (main(skipped) - main(read(kind, "a cat"))).abs().max() > 1e-3
    close(main(skipped, "negative"), main(read(kind, "a cat"), "negative"))
    both = read(kind, "", clip_skip=clip_skip, clip_skip_negative=True)
    close(main(both, "negative"), main(both))
    with pytest.raises(ValueError, match=r"clip_skip is 99; this text encoder has \d layers"):
        read(kind, "a cat", clip_skip=99)


def test_an_encoder_whose_config_hands_out_states_is_left_as_it_was_too(clip_tokenizer):
    encoder = tiny.clip_encoder(clip_tokenizer, output_hidden_states=True)
    before = pickle.dumps(encoder)
    with torch.no_grad():
        for skip in (None, 1, 1):
            main(CLIPReader(clip_tokenizer, encoder).read("a cat", clip_skip=skip))
    assert pickle.dumps(encoder) == before


@every_kind
def test_every_picture_of_a_batch_is_read_as_if_alone(read, kind):
    prompts = ["a cat", LONG, "a [dog:cat:2]"]
    together = read(kind, prompts, ["", "n", ""], steps=4, pictures=2)
    lengths = next(iter(together.branches["positive"][LENGTHS].values())).tolist()
    for k, prompt in enumerate(prompts):
        alone = read(kind, prompt, ["", "n", ""][k], steps=4, pictures=2)
        for branch in ("positive", "negative"):
            for name, value in alone.branches[branch].items():
                own = together.branches[branch][name][2 * k : 2 * k + 2]
                if value.ndim == 3 or value.dtype == torch.bool:
                    assert value.shape[1] == lengths[2 * k]
                    own = own[:, : lengths[2 * k]]
                close(own, value)


@every_kind
def test_another_text_is_read_for_the_same_pictures(read, kind):
    with torch.no_grad():
        told = read(kind, ["a", "b"], pictures=2).again("a cat")
    for name, value in read(kind, ["a cat"] * 2, pictures=2).branches["positive"].items():
        close(told[name], value)


class Speaker(TextualInversionLoaderMixin):
    def __init__(self, reader):
        self.tokenizer, self.text_encoder = reader.tokenizer, reader.text_encoder


@every_kind
def test_learned_words_are_read(readers, read, kind):
    width = readers[kind].text_encoder.get_input_embeddings().weight.shape[1]
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    speaker = Speaker(readers[kind])
    plain = main(read(kind, "a cat"))
    unknown = main(read(kind, "a <toy>"))
    speaker.load_textual_inversion(vectors, token="<toy>")
    try:
        assert (main(read(kind, "a <toy>")) - unknown).abs().max() > 1e-3
        ids = readers[kind].encoder().tokenise(["a <toy>"])[0]
        assert ids[-2:] == speaker.tokenizer.convert_tokens_to_ids(["<toy>", "<toy>_1"])
        assert (main(read(kind, "a <toy>++")) - main(read(kind, "a <toy>"))).abs().max() > 1e-3
        close(main(read(kind, "a cat")), plain)
    finally:
        speaker.unload_textual_inversion("<toy>")
    close(main(read(kind, "a <toy>")), unknown)


# -- vectors


def test_a_prompts_vector_is_that_of_its_first_window_whatever_words_weigh(read):
    def embeds(prompt, **options):
        return read("pooled", prompt, **options).branches["positive"]["embeds"]

    close(embeds("a (red)1.5 cat"), embeds("a red cat"))
    close(embeds("a red cat", clip_skip=1), embeds("a red cat"))
    close(embeds('("a red cat", "dogs").and(1, 0.5)'), embeds("a red cat"))
    close(embeds('("a cat", "dogs").blend(1, 3)'), embeds("a cat") * 0.25 + embeds("dogs") * 0.75)
    fills_a_window = "abcdefghijklm nopqrstuv"
    close(embeds(fills_a_window + " more of it"), embeds(fills_a_window))
    assert (embeds("a red cat") - embeds("a blue cat")).abs().max() > 1e-3


@pytest.mark.parametrize("normed", [True, False])
def test_a_learned_word_does_not_pass_for_the_prompts_end(clip_tokenizer, normed):
    # configs of before transformers 4.31 say that 2 is the end
    pairs = [tiny.clip_encoder(clip_tokenizer, **more) for more in ({}, {"eos_token_id": 2})]
    vectors = torch.randn(1, 24, generator=torch.Generator().manual_seed(1))
    told = []
    for encoder in pairs:
        outputs = {"hidden": "tokens", "pooled": "pooler_output"}
        reader = PooledReader(clip_tokenizer, encoder, outputs=outputs, normed=normed)
        Speaker(reader).load_textual_inversion(vectors, token="<toy>")
        try:
            with torch.no_grad():
                told.append(reader.read("a <toy> cat").branches["positive"])
        finally:
            Speaker(reader).unload_textual_inversion("<toy>")
    for name in told[0]:
        close(told[0][name], told[1][name])
    assert pairs[1].eos_token_id == 2


def test_a_mask_says_where_padding_is_in_every_window(read):
    told = read("pooled", ["ab", LONG], ["c", ""]).branches
    mask = told["positive"]["mask"]
    length = mask.shape[1]
    assert mask[0].tolist() == ([True] * 4 + [False] * 20) + ([True] * 2 + [False] * 22) * (length // 24 - 1)
    assert mask[1].sum() > 100
    assert told["negative"]["mask"][0].sum() == 3 + 2 * (length // 24 - 1)
    (both,) = read("pooled", '("ab", "c").and()').branches["positive"]["mask"]
    assert both.tolist() == [True] * 4 + [False] * 20 + [True] * 3 + [False] * 21
    (mixed,) = read("pooled", '("ab", "c").blend(1, 1)').branches["positive"]["mask"]
    assert mixed.tolist() == [True] * 4 + [False] * 20


def test_given_conditions_take_the_place_of_texts(read):
    told = read("pooled", PROMPTS, ["x", "y"]).branches
    again = read("pooled", None, prompt_embeds=told["positive"], negative_prompt_embeds=told["negative"], pictures=2)
    for branch, each in again.branches.items():
        for name, value in each.items():
            assert torch.equal(value, told[branch][name].repeat_interleave(2, 0))
    half = read("pooled", None, ["x", "y"], prompt_embeds=told["positive"])
    for name, value in half.branches["negative"].items():
        close(value, told["negative"][name])
    with pytest.raises(ValueError, match="prompt_embeds has hidden; hidden, embeds, mask are needed"):
        read("pooled", None, prompt_embeds=told["positive"]["hidden"])
    with pytest.raises(ValueError, match="rows of different number: 2 of hidden, 1 of embeds"):
        read("pooled", None, prompt_embeds={**told["positive"], "embeds": told["positive"]["embeds"][:1]})


def test_what_cannot_be_read_is_refused_in_one_line(read):
    for options, message in [
        (dict(prompt=[]), "prompt is an empty list; give one text per picture"),
        (dict(prompt=None), "neither prompt nor prompt_embeds given"),
        (dict(prompt="a", prompt_embeds=torch.zeros(1, 24, 24)), "both prompt and prompt_embeds given; give exactly"),
        (
            dict(prompt="a", negative_prompt="b", negative_prompt_embeds=torch.zeros(1, 24, 24)),
            "both negative_prompt and negative_prompt_embeds given; give at most one",
        ),
        (dict(prompt=7), "prompt is a int; a text or a list of texts is needed"),
        (dict(prompt=["a", None]), "prompt is a list; a text or a list of texts is needed"),
        (dict(prompt="a", negative_prompt=b"b"), "negative_prompt is a bytes; a text or a list of texts is needed"),
        (dict(prompt=["a", "b \ud83d"]), r"the text 'b \\ud83d' has half a character, U\+D83D at place 2; take it out"),
        (dict(prompt="a", long_prompts="drop"), "long_prompts is 'drop'; allowed: 'chunk', 'cut'"),
        (dict(prompt="a", prompt_weighting="mine"), "prompt_weighting is 'mine'; allowed"),
        (dict(prompt=["a", "b"], negative_prompt=["a", "b", "c"]), "3 negative prompts for 2 prompts"),
        (dict(prompt=["[a:b:1]"], steps=2, negative_prompt_embeds=torch.zeros(1, 24, 24)), "as text"),
        (dict(prompt=LONG, negative_prompt_embeds=torch.zeros(1, 20, 24)), "both need the same shape"),
        (
            dict(prompt=None, negative_prompt=["a", LONG], prompt_embeds=torch.zeros(2, 40, 24)),
            "both need the same shape",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as raised:
            read("clip", **options)
        assert "\n" not in str(raised.value)


def test_a_reader_of_vectors_alone_has_no_lengths(clip_tokenizer):
    reader = TextReader(clip_tokenizer, tiny.clip_encoder(clip_tokenizer, projection=10), outputs={"y": "text_embeds"})
    with torch.no_grad():
        reading = reader.read(["a", LONG], pictures=2)
    assert list(reading.branches["negative"]) == ["y"]
    assert (reading.batch, reading.embeds_key, reading.dtype) == (4, "y", torch.float32)


def test_conditions_come_in_the_dtype_asked_for_and_masks_stay_masks(clip_tokenizer):
    encoder = tiny.clip_encoder(clip_tokenizer, projection=10)
    with torch.no_grad():
        told = PooledReader(clip_tokenizer, encoder, outputs=POOLED, dtype=torch.bfloat16).read("a").branches
    assert [value.dtype for value in told["positive"].values()] == [torch.bfloat16, torch.bfloat16, torch.bool]


# -- networks that share all but a part


@every_kind
@pytest.mark.parametrize("offload", ["whole", "piece by piece"])
def test_layers_are_left_out_of_an_offloaded_encoder_too(readers, read, kind, offload):
    accelerate = pytest.importorskip("accelerate")
    encoder = copy.deepcopy(readers[kind].text_encoder)
    other = copy.copy(readers[kind])
    other.text_encoder = encoder
    if offload == "whole":
        accelerate.cpu_offload_with_hook(encoder, "cpu")
    else:
        accelerate.cpu_offload(encoder, "cpu")
    for options in ({}, {"clip_skip": 1}, {"clip_skip": 1}, {}):
        with torch.no_grad():
            got = other.read(["a cat", LONG], **options)
        for name, value in read(kind, ["a cat", LONG], **options).branches["positive"].items():
            if name != LENGTHS:
                close(got.branches["positive"][name], value)


def test_a_twin_shares_its_weights_and_leaves_a_compiled_network_behind(clip_tokenizer):
    encoder = tiny.clip_encoder(clip_tokenizer)
    shorter = twin(SimpleNamespace(_orig_mod=encoder), {"encoder.layers": encoder.encoder.layers[:1]})
    assert len(encoder.encoder.layers) == 3
    assert len(shorter.encoder.layers) == 1
    assert set(map(id, shorter.parameters())) < set(map(id, encoder.parameters()))


def test_readers_serve_many_threads(readers, read):
    jobs = [("a cat", None), ("a [dog:cat:2]", 1), (LONG, 2), ("(a)1.5 b-", 1)] * 4

    def job(k):
        prompt, skip = jobs[k]
        return [main(read(kind, prompt, steps=4, clip_skip=skip)) for kind in ("unnormed", "xlm_r_pre")]

    alone = list(map(job, range(4)))
    for k, made in enumerate(in_threads(job, len(jobs))):
        for a, b in zip(made, alone[k % 4], strict=True):
            close(a, b)


def test_texts_without_an_encoder_are_refused_and_embeddings_are_taken():
    reader, embeds = T5Reader(None, None), torch.zeros(1, 77, 16)
    assert reader.read(None, prompt_embeds=embeds, negative_prompt_embeds=embeds, pictures=2).batch == 2
    for options in (dict(prompt="a"), dict(prompt=None, prompt_embeds=embeds)):
        with pytest.raises(ValueError, match="there is no tokenizer to read texts with; give prompt_embeds"):
            reader.read(**options)


# -- pictures


@pytest.fixture(scope="module")
def eyes():
    return tiny.clip_vision()


def pictures(count=2):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("given", ["pictures", "prepared"])
def test_pictures_are_read_as_image_variation_reads_them(eyes, given):
    import diffusers

    encoder, extractor = eyes
    image = pictures() if given == "pictures" else torch.randn(2, 3, 32, 32)
    reference = asking(image_encoder=encoder, feature_extractor=extractor)
    with torch.no_grad():
        kind = diffusers.StableDiffusionImageVariationPipeline
        theirs = kind._encode_image(reference, image, "cpu", 3, True)
        vectors = diffusers.UnCLIPImageVariationPipeline._encode_image(reference, image, "cpu", 3)
        ours = VisionReader(encoder, extractor).read(image, pictures=3)
        both = VisionReader(encoder, extractor, outputs={"a": "image_embeds", "b": "token"}).read(image, pictures=3)
    close(torch.cat([main(ours, "negative"), main(ours)]), theirs)
    close(both.branches["positive"]["a"], vectors)
    assert ours.batch == 6
    assert not main(ours, "negative").any()


def test_pictures_are_aligned_as_versatile_diffusion_does(eyes):
    import diffusers

    encoder, extractor = eyes
    image, other = pictures(4)[:2], pictures(4)[2:]
    reference = asking(image_encoder=encoder, image_feature_extractor=extractor)
    reader = VisionReader(encoder, extractor, outputs={"encoder_hidden_states": "aligned"})
    with torch.no_grad():
        kind = diffusers.VersatileDiffusionImageVariationPipeline
        theirs = kind._encode_prompt(reference, image, "cpu", 2, True, other)
        ours = reader.read(image, other, pictures=2)
    close(torch.cat([main(ours, "negative"), main(ours)]), theirs)
    assert main(ours).shape == (4, 17, 8)


def test_a_picture_is_read_the_same_in_every_form(eyes):
    encoder, extractor = eyes
    reader = VisionReader(encoder, extractor)
    image = pictures(1)[0]
    array = np.asarray(image)
    fractions = array.astype("float32") / 255
    tensor = torch.from_numpy(fractions).permute(2, 0, 1)
    with torch.no_grad():
        expected = main(reader.read(image))
        for form in ([image], array, array[None], fractions, [fractions], tensor, tensor[None], [tensor]):
            torch.testing.assert_close(main(reader.read(form)), expected, atol=2e-2, rtol=1e-2)
        grey = main(reader.read(image.convert("L")))
        assert torch.equal(grey, main(reader.read(image.convert("L").convert("RGB"))))
        ready = extractor(images=image, return_tensors="pt").pixel_values
        assert torch.equal(main(reader.read(ready, prepared=True)), expected)
        assert torch.equal(main(VisionReader(encoder).read(ready, prepared=True)), expected)


def test_embeddings_of_pictures_may_be_given(eyes):
    reader = VisionReader(*eyes)
    embeds = torch.randn(2, 8)
    for given in (embeds, embeds[:, None], {"encoder_hidden_states": embeds}):
        assert torch.equal(main(reader.read(image_embeds=given, pictures=2))[:, 0], embeds.repeat_interleave(2, 0))
    assert list(reader.read(image_embeds=embeds, with_negative=False).branches) == ["positive"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(), "neither of image and image_embeds"),
        (dict(image=torch.zeros(1, 3, 8, 8), image_embeds=torch.zeros(1, 8)), "both of image and image_embeds"),
        (dict(image=[]), "empty list"),
        (dict(image=torch.zeros(1, 4, 8, 8)), r"\(1, 4, 8, 8\); \(n, 3, height, width\)"),
        (dict(image=np.full((8, 8, 3), 7.0)), r"7.0..7.0; \[0, 1\] is needed"),
        (dict(image=["cat.png"]), "image is a str; a PIL image"),
        (dict(image=np.zeros((8, 8))), r"image is a ndarray \(8, 8\); a PIL image"),
        (dict(image_embeds={"x": torch.zeros(1, 8)}), "image_embeds has x; encoder_hidden_states are needed"),
        (dict(image=torch.zeros(3, 3, 8, 8), negative_image=torch.zeros(2, 3, 8, 8)), "2 negative pictures for 3"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(eyes, options, message):
    with pytest.raises(ValueError, match=message) as raised, torch.no_grad():
        VisionReader(*eyes).read(**options)
    assert "\n" not in str(raised.value)


def test_pictures_without_an_extractor_are_refused(eyes):
    with pytest.raises(ValueError, match="need a feature_extractor"):
        VisionReader(eyes[0]).read(pictures(1))
