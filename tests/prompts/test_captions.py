"""Captions are cleaned as DeepFloyd IF's reference cleans them."""

from __future__ import annotations

import logging
import random
import sys

import pytest

from langevin.prompts.captions import clean_caption, plain_caption

PIECES = """a|red|Cat|http://foo.com/x?y=1|https://t.co/AbC|www.site.org|www:abc|foo.net/bar-baz@x|
user@mail.com|@nick|@nick_name.|<person>|<b>bold</b>|<img src=x>|&amp;|&quot;|&quot|&lt;p&gt;|猫|㋀|—|
–|“hi”|‘x’|«q»|192.168.0.1|12:30 |5:45|\\n|#12|#1234|#12345|1234567|123456|12345|img_001.jpg|x.PNG|
photo.mp4.|''|"\""|...|..|•|©2020|(2019)|[x]|{y}|a/b|a\\b|*star*|~| . |this-is-my-cute-cat|a_b_c|-|
_|jc6640|JC6640VC|6640vc231|abc12def34|free shipping|worldwide free shipping|Free Download|
download free|click on this|click for more|png images|jpg|page 12|10x20|3.5×4|4х5| : |a:b|a,b|
e.g.this|3,4|3.5|,b|'quoted'|"quoted"|.hidden|:x|;|+|x+|don't|naïve|cafÃ©|â€œhi|½|100%|%20|a+b|
1,000|U.S.A.|mp4s|pages 3|sh1pp1ng|İ|ß|www.foo.co.uk|foo.comet|it.it/|http:a|https:///|1.2.3.4.5|
999.999.999.999|12345678abc|ab123|abcd123|a1b2c3|1a2|&nbsp;|&#39;|&amp;amp;lt;|<|>|<!-- c -->|
</p>""".replace("\n", "").split("|")
SIGNS = " .,-_:;'\"#@&/<>()%+0123456789abcXYZ"


@pytest.fixture(scope="module")
def reference():
    """The reference's cleaning, without a pipeline."""
    pytest.importorskip("ftfy")
    pytest.importorskip("bs4")
    import diffusers

    class Asked:
        bad_punct_regex = diffusers.IFPipeline.bad_punct_regex
        _clean_caption = diffusers.IFPipeline._clean_caption
        _text_preprocessing = diffusers.IFPipeline._text_preprocessing

    return lambda text, clean=True: Asked()._text_preprocessing(text, clean_caption=clean)[0]


def captions(seed, count=600):
    chance = random.Random(seed)
    for k in range(count):
        if k % 3 == 2:
            yield "".join(chance.choice([*PIECES, *SIGNS]) for _ in range(chance.randint(1, 14)))
        else:
            yield chance.choice([" ", "  ", ""]).join(chance.choice(PIECES) for _ in range(chance.randint(1, 9)))


@pytest.mark.parametrize("seed", range(3))
def test_captions_are_cleaned_as_in_the_reference(reference, seed):
    differ = [text for text in captions(seed) if clean_caption(text) != reference(text)]
    assert differ == []


def test_every_piece_alone_and_every_sign_are_cleaned_as_in_the_reference(reference):
    signs = [chr(k) for k in [*range(1, 0x250), *range(0x2000, 0x2300), *range(0x31B0, 0x3300), *range(0xFE30, 0xFF60)]]
    texts = [*PIECES, *(f"a{sign}b {sign} c" for sign in signs)]
    assert [text for text in texts if clean_caption(text) != reference(text)] == []


def test_what_is_no_description_is_taken_out():
    pytest.importorskip("ftfy")
    pytest.importorskip("bs4")
    text = "A <b>RED</b> cat by @someone, see http://cats.com/1234567.jpg — free shipping &amp; more… 猫 #12345"
    assert clean_caption(text) == "a red cat by , see - more…"
    assert clean_caption("this-is-my-cute-cat") == "this is my cute cat"
    assert clean_caption("a red circle left of a blue star") == "a red circle left of a blue star"


def test_without_cleaning_a_caption_is_in_lower_case(reference):
    for text in ("  A Red CAT ", "ÄÖ <b>"):
        assert plain_caption(text) == reference(text, clean=False)


@pytest.mark.parametrize("missing", ["ftfy", "bs4"])
def test_without_the_extra_a_warning_names_it_and_captions_stay(monkeypatch, caplog, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with caplog.at_level(logging.WARNING):
        assert clean_caption(" A <b>Cat</b> ") == "a <b>cat</b>"
    [record] = caplog.records
    assert f"clean_caption needs {missing}: pip install langevin[captions]" in record.message
