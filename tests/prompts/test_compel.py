"""compel's grammar and numbers, against the package compel over a few hundred prompts."""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path

import compel
import pytest
import torch
from compel.prompt_parser import PromptParser

import langevin
from langevin.prompts.compel import parse_compel
from langevin.prompts.encoder import PromptEncoder
from langevin.prompts.tree import And, Blend, Fragment, PromptSyntaxError, Text
from langevin.prompts.weighting import GRAMMARS, Encoding, embed_trees, weigh_and_hide
from tests.helpers import reference_parts
from tests.prompts.encoding import encode_prompts

BOX = Path(langevin.__file__).parent / "zoo" / "weights" / "shapes"
WRITTEN = r"""
a red cat
a red cat+
cat++ dog-- fish
(a red cat)1.3
(a red) cat
(a red cat
a red cat)
a (b (c d)++ e)1.2 f
a (b "c d"++ e)1.2 f
"c d"+
"c d" e
"c d
a "b c
a \(b c\)
a \(b c\)+
(a \(b\) c)+
\(a\)+
\\(a b\\)
a \"b\" c+
a \+ b+
a\+ b-
a\++
a,b+
a , b+
a.b+
a.b.c++
cat+,dog
cat+. dog
cat+.dog
(cat)+.dog
(cat),dog
c++ code
x-ray
x-ray+
well-known-fact--
- a+
-- a+
a - b+
a -b+
a+b
a++b
1+1 a-
3.5 a+
3.5+
(a)-1
(a)0
(a)0.5
(a).5
(a)1.
(a)1.5b
(a)1e3
(a)1.5e-1
(a) 1.5
(a)1.2.3
(a)1.2, b
(a)++-
(a)+-
a+-
a-+
a+-+ b
(a+)+
(a++ b-)1.3
()+ a
((a))
((a)+)+
((a)1.2 (b)1.3)1.1
(a - b)1.3 c
(a b +)1.3 c
(a =b)1.3 c
(a b)1.3(c d)0.7
(a)(b)-
"a (b) c"+
"a (b c"+
a"b"
"a"b-
cat .attend(+) b
cat.attend(1.5) b
cat.attend(0.3) b
(a b) .attend( 1.2 ) b
(a b).attend(+-)
(a b).attend(+1.5)
(a cat).attend(-0.5) b
(a b).attend(abc)
"a b".attend(1.2)
"a"1.5 b
"a" 1.5 b
"a"-- b
a,,b+ c+
,a+
(a,b)+
(a,+)1.1
(a:1.3)+
((a:1.3) b)-
[a|b]+
a (b c)1.3. d
a (b.c)1.3
(a...)1.3
(3.5 x 1,5)+
a'b+ "x's"-
cat---dog
cat+++ --- dog
(a)01.20
(a b)0.01 c
(a b)0.99 c
(a b)7 c
a- b-- c--- d+
(a- b)0.5 c
word+1.5
(word)1.5+
("a", "b").blend(0.7, 0.3)
("a", "b").blend(0.7, 0.3, no_normalize)
("a","b").blend(0.7,0.3)
("a", "b").blend()
("a").blend(1)
(a, b).blend(1,2)
(a b, c).blend(1,2)
(a+, b).blend(1,2)
("a+ c", "b (d e)1.3").blend(1,2)
("a- c", "b (d e)0.3").blend(1,2)
("a", "b").blend(1,-0.5)
("a", "b").blend(1,-1,no_normalize)
("a", "b") .blend(1,2)
( "a" , "b" ) .blend ( 1 , 2 )
("a", "b"). blend(1,2)
c ("a", "b").blend(1,2)
("a", "b", "c").blend(1,1,1)
("a, c", "b. d").blend(1,1)
("a \"q\" c", "b").blend(1,1)
("", "b").blend(1,1)
("a", (b c)+).blend(1,1)
("a", (b c)).blend(1,1)
("a" "b", "c").blend(1,1)
("a", "b",).blend(1,1)
("a", "b").blend(1,1,)
("a", "b").blend(1e3,1)
("a", "b").blend(+1,1)
("a", "b").blend(+1.5,1)
("a", "b").blend(no_normalize)
("a - b", "c").blend(1,1)
("a (b", "c").and()
("a (b", "c")
("a", "b").and()
("a", "b").and(1, 2)
("a", "b").and(1, 0.5)
("a+", "b-").and(0.9, 1.4)
("a", "b").add(1,0.5)
("", "").and()
((), b).and(1,2)
("a", "b").and(-1, .5)
("(a b)1.3 c", "b").and()
(("a b")+, "b").and()
("(\"a\",\"b\").blend(1,1)", "c").and()
(("a","b").blend(1,1), "c").and()
("a", "b").foo(1)
("a", "b").blend
("a", "b").blend(1,1
("a", "b").AND()
""".strip().split("\n")
LONG = [
    "the quick brown fox. jumps over the lazy dog, again and again",
    "the quick brown (fox. jumps over)1.3 the lazy dog, again and again",
    "the quick brown (fox. jumps over)0.4 the lazy dog, again and again",
    "(the quick brown fox. jumps over the lazy dog, again and again)0.7 and (again)0.3 twice",
    "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
    "abcdefghijklmnopqrstuvwxyz+ abcdefghijklmnopqrstuvwxyz--",
    "abc,def-- ghi,jkl; mno pqr (s t u v w)0.2 xyz",
    "abcdefghijklmn",
    "abcdefghijklmn- o",
    "abcdefghijkl mn- op-- q",
    '("the quick brown fox jumps", "over- it").and(0.6, 1)',
    '("the quick brown fox jumps", "over- it").blend(0.6, 1)',
]
ATOMS = ["a", "b c", "dog", "(c d)1.2", '"e f"-', "(", ")", '"', "+", "-", "--", ",", ".", "1.3", "0.5", " ", " ", " "]
ATOMS += ["\\(", "\\)", '\\"', "\\", "=", "x-y", ".attend(+)", "(g (h)0.5 i)-", "j++", "k-", "[l:0.5]", "'s", "\n"]


def generated(count: int) -> list[str]:
    rng = random.Random(7)
    prompts = ["".join(rng.choice(ATOMS) for _ in range(rng.randint(2, 9))) for _ in range(count)]
    return [f"({p})0.{k % 9}" if k % 3 == 0 else p for k, p in enumerate(prompts)]


PROMPTS = WRITTEN + LONG + generated(120)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return reference_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def encoder(parts):
    return PromptEncoder(parts["tokenizer"], parts["text_encoder"])


@pytest.fixture(scope="module", autouse=True)
def quick_oracle():
    """The oracle's parser is built once and every prompt read once, which changes nothing but the time it takes."""
    patch = pytest.MonkeyPatch()
    read = functools.cache(PromptParser().parse_conjunction)
    patch.setattr(compel.Compel, "parse_prompt_string", staticmethod(read))
    yield
    patch.undo()


def oracle(parts, **options):
    return compel.Compel(parts["tokenizer"], parts["text_encoder"], **options)


def ours(encoder, prompt, *, cut=False, downweight="mask"):
    arithmetic = GRAMMARS["compel"].arithmetic._replace(weigh=functools.partial(weigh_and_hide, downweight=downweight))
    with torch.no_grad():
        return embed_trees(Encoding(encoder), [parse_compel(prompt)], arithmetic, cut=cut)[0]


def agree(got, expected):
    return got.shape == expected.shape and torch.allclose(got, expected, atol=1e-5, rtol=1e-5)


def told_apart(prompt):
    """A prompt without grammar keeps the characters it has; compel puts a blank behind its commas, which some
    tokenizers can tell from none before another sign."""
    return parse_compel(prompt) == verbatim(prompt) and re.search(r",[^\w\s]", prompt)


def verbatim(prompt):
    return And((Text((Fragment(prompt),)),), (1.0,))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("downweight", ["mask", "remove"])
def test_embeddings_are_those_of_compel(parts, encoder, cut, downweight):
    mode = compel.DownweightMode[downweight.upper()]
    theirs = oracle(parts, truncate_long_prompts=cut, downweight_mode=mode)
    compared, different, crashed = 0, [], []
    for prompt in PROMPTS:
        got = ours(encoder, prompt, cut=cut, downweight=downweight)
        try:
            expected = theirs(prompt)
        except (TypeError, RuntimeError):  # it crashes where a word taken out leaves fewer windows
            crashed.append(prompt)
            continue
        if not told_apart(prompt):
            compared += 1
            different += [] if agree(got, expected) else [prompt]
    assert not different
    assert compared >= 250
    assert len(crashed) <= (12 if downweight == "remove" and not cut else 0)


@pytest.mark.parametrize("kind", ["penultimate", "padding"])
def test_clip_skip_and_batches_are_those_of_compel(parts, encoder, kind):
    parts["text_encoder"].__dict__.setdefault("text_model", parts["text_encoder"])  # where it looks for the norm
    prompts = ["a (red cat)0.4 with+ hat", "a cat", '("a", "b-").and()']
    last = compel.ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NORMALIZED
    options = {"returned_embeddings_type": last} if kind == "penultimate" else {}
    expected = oracle(parts, truncate_long_prompts=False, **options)(prompts)
    skip = 1 if kind == "penultimate" else None
    with torch.no_grad():
        got = encode_prompts(
            parts["tokenizer"], parts["text_encoder"], prompts, "", clip_skip=skip, clip_skip_negative=True
        )
    torch.testing.assert_close(got.positive, expected, atol=1e-5, rtol=1e-5)
    assert got.negative.shape == expected.shape


def test_the_model_in_the_box_gets_the_embeddings_of_compel():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(BOX / "tokenizer")
    text_encoder = transformers.CLIPTextModel.from_pretrained(BOX / "text_encoder").eval()
    encoder = PromptEncoder(tokenizer, text_encoder)
    theirs = compel.Compel(tokenizer, text_encoder, truncate_long_prompts=False)
    long = "a large red circle above a small blue square, a green triangle on the left. a yellow star on the right "
    prompts = [
        "a (red)1.4 circle",
        "a red- circle above a (blue square)0.3",
        '("a red circle", "a blue square").blend(0.7, 0.3)',
        '("a red circle", "a blue square--").and(1, 0.6)',
        long * 3,
        f"({long})1.2 and a (purple ring)0.5, {long}",
        f"{long} (a purple ring, {long} a pink moon)0.4 {long}",
    ]
    with torch.no_grad():
        for prompt in prompts:
            torch.testing.assert_close(ours(encoder, prompt), theirs(prompt), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "  ",
        "a cat",
        "a,b ,c",
        "a  cat\n",
        "(a cat",
        "3.5+ b)",
        "[a|b] {c}",
        "a - b",
        '"',
        "¿naïve?\u00a0日本 🎉",
        '("(b)1.2=").blend  x',
    ],
)
def test_a_prompt_without_grammar_is_taken_character_for_character(prompt):
    assert parse_compel(prompt) == verbatim(prompt)


@pytest.mark.parametrize("prompt", ["a (red cat)1.3 b", "x,y (red cat)1.3 b", "x,y,z,(red, cat)+", '"a, \\"b" (red)+'])
def test_fragments_say_where_they_stand(prompt):
    (text,) = parse_compel(prompt).parts
    for fragment in text.fragments:
        first = fragment.text.split()[0]
        assert prompt[fragment.start :].lstrip('("').startswith(first), (fragment, first)


def test_blends_keep_their_weights_and_whether_they_are_normalised():
    blend = Blend((Text((Fragment("a", start=2),)), Text((Fragment("b", 1.1, 7),))), (0.7, 0.3), False)
    assert parse_compel('("a", "b+").blend(0.7, 0.3, no_normalize)') == And((blend,), (1.0,))


@pytest.mark.parametrize(
    ("prompt", "at", "says"),
    [
        ('("a", "b").blend(1)', "blend(1)", "1 weights for 2 prompts"),
        ('("a", "b").and(1, 2, 3)', "and(1", "3 weights for 2 prompts"),
        ('("a", "b").blend(1, x)', "x)", "'x' is no weight"),
        ('("a", "b").blend(nan, 1)', "nan", "'nan' is no weight"),
        ('("a", "b").blend(1, -1)', "1, -1", "sum to 0"),
        ('("a", "b").blend(1, 2) c', "c", "nothing may follow .blend()"),
        ('x, (a), ("a,b", "c").and() d', None, None),
        ('("a,b", "c").and() d', "d", "nothing may follow .and()"),
        ("a cat.swap(dog)", ".swap", ".swap() is not supported"),
        ("a cat, withLora(x, 0.5)", "withLora", "load_lora_weights"),
    ],
)
def test_errors_point_at_the_character(prompt, at, says):
    if at is None:
        assert isinstance(parse_compel(prompt), And)
        return
    with pytest.raises(PromptSyntaxError, match=re.escape(says)) as caught:
        parse_compel(prompt)
    assert prompt[caught.value.position :].startswith(at)
    line, caret = str(caught.value).split("\n")[-2:]
    assert line[caret.index("^") :].startswith(at)


@pytest.mark.parametrize(
    "prompt", ['("a", "b").blend(1)', '("a", "b").and(1)', '("a", "b").blend(1, x)', '("a", "b").blend(1, 2) c']
)
def test_what_is_an_error_here_is_one_in_compel_too(parts, prompt):
    with pytest.raises(Exception, match=r"mismatched|convert|Expected end"):
        oracle(parts)(prompt)


def test_thousands_of_signs_and_brackets_stay_finite(encoder):
    for prompt in ("a" + "+" * 5000, "a" + "-" * 5000, "(" * 2000 + "a" + ")2" * 2000, '"a"' + "9" * 500):
        assert torch.isfinite(ours(encoder, prompt)).all()
