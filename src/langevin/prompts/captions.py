"""Captions cleaned as those were on which DeepFloyd IF was trained, and as its publishers clean prompts: what the web
leaves in captions, addresses, tags, names of files, numbers of articles, offers, is taken out.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

logger = logging.getLogger(__name__)

Rule = tuple["re.Pattern[str]", str]

_ENDINGS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_SITE = r"[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_BYTE = r"\d{1,3}"
_LETTERS = "[a-zA-Z]+"  # anything may be upper case again once tags have been read
# hyphens, dashes and what looks like them in other scripts
_DASHES = "֊־᐀᠆‐-―⸗⸚⸺⸻⹀〜〰゠︱︲﹘﹣－-"


def _rules(*pairs: tuple[str, str]) -> list[Rule]:
    return [(re.compile(pattern), instead) for pattern, instead in pairs]


# what is done before tags are read, where all is lower case
_ADDRESSES = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_SITE})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_SITE})", ""),
)
_SIGNS = _rules(
    (r"@\w+\b", ""),  # somebody's name
    ("[\u31c0-\u9fff]+", ""),  # strokes, syllables, squared words and ideographs of East Asia
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?|&amp", ""),
    (r"\.".join([_BYTE] * 4), " "),  # a computer's address
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (rf"#{_BYTE}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_ENDINGS})", ""),  # a file
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[]#®•©™&@·º½¾¿¡§~()[{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_WEB = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # numbers of articles: jc6640,
    (rf"\b{_LETTERS}\d+{_LETTERS}\b", ""),  # jc6640vc,
    (rf"\b\d+{_LETTERS}\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_ENDINGS})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (rf"\b\d*{_LETTERS}\d+{_LETTERS}\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # a size; the second of these is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
_ENDS = _rules(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),  # a text all in quotes
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
_JOINTS = re.compile("[-_]")
_MOST_JOINTS = 3  # words-that-hang-together are names of files


def _apply(text: str, rules: list[Rule]) -> str:
    for pattern, instead in rules:
        text = pattern.sub(instead, text)
    return text


def cleaned_once(text: str, read_tags: Callable[[str], str], mend: Callable[[str], str]) -> str:
    """One pass over a caption.

    Args:
        read_tags: the text of a piece of HTML.
        mend: undoes what wrong encodings did.
    """
    text = _apply(unquote_plus(text).strip().lower(), _ADDRESSES)
    text = _apply(read_tags(text), _SIGNS)
    if len(_JOINTS.findall(text)) > _MOST_JOINTS:
        text = _JOINTS.sub(" ", text)
    text = html.unescape(html.unescape(mend(text)))
    return _apply(_apply(text, _WEB), _ENDS).strip()


def clean_caption(text: str) -> str:
    """A caption in lower case without what is no description: two passes, since the first may lay bare more.

    Without ftfy and BeautifulSoup (``pip install langevin[captions]``) the text is put in lower case and stripped, as
    :func:`plain_caption` does, with a warning.
    """
    try:
        import bs4
        import ftfy
    except ImportError as error:
        logger.warning("clean_caption needs %s: pip install langevin[captions]; captions stay as they are.", error.name)
        return plain_caption(text)

    def read_tags(piece: str) -> str:
        if not {"<", "&"} & set(piece):  # nothing to read; and what looks like an address or a file is warned of
            return piece
        soup: Any = bs4.BeautifulSoup(piece, features="html.parser")
        return soup.text

    for _ in range(2):
        text = cleaned_once(text, read_tags, ftfy.fix_text)
    return text


def plain_caption(text: str) -> str:
    """What captions are without cleaning: in lower case, without spaces around them."""
    return text.lower().strip()
