"""Learned words: the reference's files and state, AUTOMATIC1111's files, and words of several vectors."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file

import langevin
from langevin.prompts.encoder import PromptEncoder
from langevin.prompts.textual_inversion import TextualInversionLoaderMixin, expand_words
from tests.helpers import reference_parts

WIDTH = 24


class Words(TextualInversionLoaderMixin):
    """The least that can learn a word."""

    def __init__(self, tokenizer, text_encoder):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder

    @property
    def table(self):
        return self.text_encoder.get_input_embeddings().weight.detach()

    @property
    def words(self):
        return {t.content: n for n, t in self.tokenizer.added_tokens_decoder.items() if not t.special}

    def vector(self, word):
        return self.table[self.tokenizer.convert_tokens_to_ids(word)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return reference_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def pipe(parts):
    return Words(*copy.deepcopy((parts["tokenizer"], parts["text_encoder"])))


@pytest.fixture
def reference(parts):
    import diffusers

    tokenizer, text_encoder = copy.deepcopy((parts["tokenizer"], parts["text_encoder"]))
    return diffusers.StableDiffusionPipeline(
        **{**parts, "tokenizer": tokenizer, "text_encoder": text_encoder},
        scheduler=diffusers.DDIMScheduler(),
        requires_safety_checker=False,
    )


def vectors(count, seed=0, width=WIDTH):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def same_state(ours, theirs):
    """Whether two pipelines have the same words under the same ids, and the same vectors."""
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    table = theirs.text_encoder.get_input_embeddings().weight
    assert torch.equal(ours.table, table)
    text = "a <cat>, <cat>_1 <dog>s and <one>"
    assert ours.tokenizer(text).input_ids == theirs.tokenizer(text).input_ids


SOURCES = {
    "one vector": ({"<cat>": vectors(1)[0]}, None),
    "one vector in a row": ({"<cat>": vectors(1)}, None),
    "three vectors": ({"<cat>": vectors(3)}, None),
    "renamed": ({"<other>": vectors(2)}, "<cat>"),
    "web ui": ({"string_to_param": {"*": vectors(2)}, "name": "<cat>", "step": 7}, None),
    "web ui renamed": ({"string_to_param": {"*": vectors(2)}, "name": "old"}, "<cat>"),
    "web ui, new": ({"emb_params": vectors(2)}, "<cat>"),
    "tensor": (vectors(2), "<cat>"),
    "list": ([{"<cat>": vectors(2)}, {"<dog>": vectors(1)}], None),
    "list with names": ([{"x": vectors(2)}, vectors(1)], ["<cat>", "<dog>"]),
    "tensor for many": (vectors(3), ["<cat>", "<dog>", "<one>"]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_tokenizer_and_encoder_are_left_as_the_reference_leaves_them(pipe, reference, name):
    source, token = SOURCES[name]
    pipe.load_textual_inversion(copy.deepcopy(source), token=token)
    reference.load_textual_inversion(copy.deepcopy(source), token=token)
    same_state(pipe, reference)
    assert pipe.text_encoder.config.vocab_size == reference.text_encoder.config.vocab_size == len(pipe.tokenizer)
    for prompt in ("a <cat> and <cat>!", "none", ["<dog>", "<cat><cat>"]):
        assert pipe.maybe_convert_prompt(prompt, pipe.tokenizer) == reference.maybe_convert_prompt(
            prompt, reference.tokenizer
        )


@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".pt"])
def test_files_are_read_as_the_reference_reads_them(pipe, reference, tmp_path, ending):
    (tmp_path / "folder").mkdir()
    save = save_file if ending == ".safetensors" else torch.save
    file = tmp_path / "folder" / f"word{ending}"
    save({"<cat>": vectors(2)}, file)
    if ending != ".pt":
        save({"<dog>": vectors(1)}, tmp_path / "folder" / f"learned_embeds{ending}")
        for one in (pipe, reference):
            one.load_textual_inversion(str(tmp_path / "folder"))
    for one in (pipe, reference):
        one.load_textual_inversion(str(tmp_path / "folder"), weight_name=f"word{ending}")
    same_state(pipe, reference)
    pipe.unload_textual_inversion()
    pipe.load_textual_inversion([file])
    assert list(pipe.words) == ["<cat>", "<cat>_1"]


def test_files_of_the_web_ui(pipe, tmp_path):
    save_file({"emb_params": vectors(2)}, tmp_path / "styleword.safetensors")
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(1, 1)}, "name": "named"}, tmp_path / "x.pt"
    )
    # the first ones, of the paper's own code, held parameters in a module
    held = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors(2, 2))})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": held}, tmp_path / "oldest.pt")
    pipe.load_textual_inversion([tmp_path / "styleword.safetensors", tmp_path / "x.pt", tmp_path / "oldest.pt"])
    assert list(pipe.words) == ["styleword", "styleword_1", "named", "oldest", "oldest_1"]
    assert torch.equal(pipe.vector("styleword_1"), vectors(2)[1])
    assert torch.equal(pipe.vector("named"), vectors(1, 1)[0])
    assert torch.equal(pipe.vector("oldest_1"), vectors(2, 2)[1])


WRONG = {
    "taken": ({"a</w>": vectors(1)}, None, "already in"),
    "twice the same token": ([{"x": vectors(1)}, {"y": vectors(1)}], ["<cat>", "<cat>"], "duplicates"),
    "tokens and files": ([{"x": vectors(1)}, {"y": vectors(1)}], ["<cat>"], "2"),
    "two entries": ({"<cat>": vectors(1), "<dog>": vectors(1)}, None, "string_to_param"),
    "nameless": (vectors(2), None, "token="),
    "width": ({"<cat>": vectors(2, width=32)}, None, "shape|32.*24 wide"),
    "vectors and tokens": (vectors(3), ["<cat>", "<dog>"], "3 .*2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_reference_refuses_is_refused_in_one_line_and_changes_nothing(pipe, reference, name):
    source, token, said = WRONG[name]
    before = pipe.tokenizer.get_vocab(), pipe.table.clone()
    for one in (pipe, reference):
        with pytest.raises(ValueError, match=f"(?s){said}") as caught:
            one.load_textual_inversion(copy.deepcopy(source), token=token)
        assert one is reference or "\n" not in str(caught.value)
    assert pipe.tokenizer.get_vocab() == before[0]
    assert torch.equal(pipe.table, before[1])


def test_other_wrong_embeddings_are_refused(pipe, tmp_path):
    pipe.load_textual_inversion({"<cat>": vectors(2)})
    for source, said in [
        ({"<cat>": vectors(1)}, "already"),
        ({"<cat>_2": vectors(1)}, "mixed up"),
        ([{"<dog>": vectors(1)}, {"<dog>": vectors(1)}], "already"),
        ({"<dog>": vectors(2)[None]}, r"\(1, 2, 24\)"),
        ({"<dog>": "text"}, "single entry"),
        ({"clip_l": vectors(1), "clip_g": vectors(1)}, "clip_l"),
        ({"string_to_param": {}, "name": "<dog>"}, "NoneType"),
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path, "learned_embeds.safetensors or learned_embeds.bin"),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            pipe.load_textual_inversion(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="tokens"):
        pipe.load_textual_inversion(vectors(1), tokens=["<dog>"])
    assert list(pipe.words) == ["<cat>", "<cat>_1"]
    for name in ("tokenizer", "text_encoder"):
        half = Words(*(None if n == name else getattr(pipe, n) for n in ("tokenizer", "text_encoder")))
        with pytest.raises(ValueError, match=name):
            half.load_textual_inversion({"<dog>": vectors(1)})


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


def test_nothing_in_a_file_is_run(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")
    torch.save({"<cat>": vectors(1), "x": Harmful()}, "bad.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "torn.bin").write_bytes(b"PK\x03\x04")
    for name in ("bad.pt", "old.pt", "torn.bin"):
        with pytest.raises(ValueError, match="not opened") as caught:
            pipe.load_textual_inversion(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize("gone", [None, "<dog>", ["<one>", "<dog>"]])
def test_words_are_forgotten_as_the_reference_forgets_them(pipe, reference, gone):
    for one in (pipe, reference):
        one.load_textual_inversion(
            [{"<cat>": vectors(2)}, {"<dog>": vectors(1, 1)}, {"<one>": vectors(1, 2)}, {"<end>": vectors(1, 3)}]
        )
        one.unload_textual_inversion(gone)
    same_state(pipe, reference)
    assert pipe.text_encoder.config.vocab_size == len(pipe.tokenizer)  # which the reference forgets
    if gone:
        assert torch.equal(pipe.vector("<end>"), vectors(1, 3)[0])
    with pytest.raises(ValueError, match="No tokens to remove"):
        pipe.unload_textual_inversion("<dog>")
    pipe.load_textual_inversion({"<dog>": vectors(1, 4)})
    assert torch.equal(pipe.vector("<dog>"), vectors(1, 4)[0])


def test_a_word_of_several_vectors_is_forgotten_whole(pipe):
    before = pipe.tokenizer.get_vocab(), pipe.table.clone()
    pipe.load_textual_inversion([{"<cat>": vectors(3)}, {"<dog>": vectors(1)}])
    pipe.unload_textual_inversion("<cat>")
    assert list(pipe.words) == ["<dog>"]
    assert torch.equal(pipe.vector("<dog>"), vectors(1)[0])
    pipe.unload_textual_inversion()
    pipe.unload_textual_inversion()
    assert pipe.tokenizer.get_vocab() == before[0]
    assert torch.equal(pipe.table, before[1])


def test_words_are_expanded_once_wherever_the_tokenizer_finds_them(pipe):
    pipe.load_textual_inversion([{"<cat>": vectors(3)}, {"Sty": vectors(2)}, {"<dog>": vectors(1)}])
    whole = "<cat> <cat>_1 <cat>_2"
    for text, expanded in {
        "a <cat>!": f"a {whole}!",
        "<cat><cat>": whole * 2,
        "<cat>_1": "<cat>_1",
        "<dog>": "<dog>",
        "": "",
        "my Style, STY": "my Sty Sty_1le, Sty Sty_1",
        whole: whole,
        f"{whole} <cat>": f"{whole} {whole}",
    }.items():
        assert expand_words(pipe.tokenizer, text) == expanded
        assert expand_words(pipe.tokenizer, expanded) == expanded
    ids = pipe.tokenizer(expand_words(pipe.tokenizer, "<CAT>")).input_ids[1:-1]
    assert ids == [pipe.words[w] for w in whole.split()]


def test_vectors_take_the_encoders_dtype(pipe):
    pipe.text_encoder.to(torch.bfloat16)
    pipe.load_textual_inversion({"<cat>": vectors(2).double()})
    assert pipe.table.dtype == torch.bfloat16
    assert torch.equal(pipe.vector("<cat>_1"), vectors(2)[1].bfloat16())


# -- in a pipeline

in_all_grammars = pytest.mark.skipif(
    "word_expander" not in inspect.getsource(PromptEncoder.tokenise), reason="the encoder does not expand words yet"
)


@pytest.fixture
def sd(tiny_sd_folder):
    sd = langevin.StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    sd.set_progress_bar_config(disable=True)
    return sd


def paint(sd, prompt, **options):
    return sd(prompt, num_inference_steps=2, seed=1, guidance_scale=3.0, output_type="latent", **options).images


def test_a_learned_word_paints_and_is_forgotten(sd):
    before = paint(sd, "a <cat>")
    sd.load_textual_inversion({"<cat>": 3 * vectors(1)})
    learned = paint(sd, "a <cat>")
    assert (learned - before).abs().max() > 1e-3
    sd.unload_textual_inversion()
    assert torch.equal(paint(sd, "a <cat>"), before)


def test_saved_pipelines_keep_their_words_here_and_in_the_reference(sd, tmp_path):
    import diffusers

    sd.load_textual_inversion([{"<cat>": vectors(2)}, {"<dog>": vectors(1, 1)}])
    sd.save_pretrained(tmp_path / "saved")
    again = langevin.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(paint(again, "a <cat> <dog>"), paint(sd, "a <cat> <dog>"))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved", safety_checker=None)
    for one in (again, theirs):
        assert one.maybe_convert_prompt("<cat>", one.tokenizer) == "<cat> <cat>_1"
        assert one.tokenizer("<cat>_1 <dog>").input_ids == sd.tokenizer("<cat>_1 <dog>").input_ids
        assert torch.equal(
            one.text_encoder.get_input_embeddings().weight, sd.text_encoder.get_input_embeddings().weight
        )
    again.unload_textual_inversion("<cat>")
    again.save_pretrained(tmp_path / "fewer")
    fewer = langevin.DiffusionPipeline.from_pretrained(tmp_path / "fewer")
    assert len(fewer.tokenizer) == len(fewer.text_encoder.get_input_embeddings().weight) == len(sd.tokenizer) - 2


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_words_are_learned_while_networks_are_offloaded(sd, way):
    sd.load_textual_inversion({"<cat>": vectors(1)})
    expected = paint(sd, "a <cat>")
    sd.unload_textual_inversion()
    getattr(sd, way)(device="cpu")
    sd.load_textual_inversion({"<cat>": vectors(1)})
    assert sd._offload_device is not None
    torch.testing.assert_close(paint(sd, "a <cat>"), expected)
    sd.unload_textual_inversion()
    assert sd._offload_device is not None


@in_all_grammars
@pytest.mark.parametrize(
    ("grammar", "short", "written_out"),
    [
        ("none", "a <cat>!", "a <one> <two>!"),
        ("compel", "a <cat>!", "a <one> <two>!"),
        ("compel", "a <cat>++ b", "a (<one> <two>)++ b"),
        ("compel", "a (x <CAT>)0.5", "a (x <one> <two>)0.5"),
        ("compel", '("<cat>", "b").blend(1, 2)', '("<one> <two>", "b").blend(1, 2)'),
        ("a1111", "a (<cat>:1.5) [b]", "a (<one> <two>:1.5) [b]"),
        ("comfyui", "a (<cat>:1.5) b", "a (<one> <two>:1.5) b"),
        ("compel", "[b:<cat>:1]", "[b:<one> <two>:1]"),
    ],
)
def test_all_tokens_of_a_word_stand_where_the_word_is_in_every_grammar(sd, grammar, short, written_out):
    sd.load_textual_inversion([{"<cat>": vectors(2)}, {"<one>": vectors(2)[:1]}, {"<two>": vectors(2)[1:]}])
    pictures = [paint(sd, prompt, prompt_weighting=grammar) for prompt in (short, written_out)]
    assert torch.equal(*pictures)
