"""What a reader is: texts or pictures in, branches of conditions out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from langevin.guiders.base import Guider
from langevin.guiders.step import Conditions
from langevin.prompts.edited import edited_conditions
from langevin.prompts.encoder import PromptEncoder
from langevin.prompts.lengths import LENGTHS, settle
from langevin.prompts.tree import And, Blend, Text
from langevin.prompts.weighting import Embedded, Encoding, encode_trees, grammar

Texts = str | Sequence[str] | None
Given = Tensor | Mapping[str, Tensor] | None
"""Conditions that a caller has already: a tensor for the reader's first output, or a tensor for each by name."""


_AXES = {"tokens": 3}  # of others 2


@dataclass(frozen=True)
class Reading:
    """What a reader gives a call.

    Attributes:
        branches: ``{"positive": {argument of the network: tensor}, "negative": …}``, the negative one only where it was
            asked for. A tensor has a row for each picture, those of one prompt next to each other. Where prompts differ
            in length there is an entry ``LENGTHS`` too: see :mod:`langevin.prompts.lengths`.
        guider: what changes the branches on the way, where a prompt says so (``[red:blue:0.4]``), else None.
        again: ``again(text) -> conditions`` for the same pictures with another text, one for all or one for each
            prompt. None where no texts are read.
        embeds_key: the argument that callbacks know as ``prompt_embeds``.
    """

    branches: dict[str, Conditions]
    guider: Guider | None
    again: Callable[[str | Sequence[str]], Conditions] | None
    embeds_key: str

    @property
    def batch(self) -> int:
        """How many pictures there are."""
        return len(self.branches["positive"][self.embeds_key])

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings."""
        return self.branches["positive"][self.embeds_key].dtype


@dataclass(frozen=True)
class How:
    """How texts are read; see :meth:`TextReader.read`."""

    clip_skip: int | None = None
    clip_skip_negative: bool = False
    prompt_weighting: str = "compel"
    long_prompts: Literal["chunk", "cut"] = "chunk"

    def __post_init__(self) -> None:
        grammar(self.prompt_weighting)
        if self.long_prompts not in ("chunk", "cut"):
            raise ValueError(f"long_prompts is {self.long_prompts!r}; allowed: 'chunk', 'cut'")


class TextReader:
    """Reads texts with a tokenizer and a text encoder of transformers.

    Weights, long prompts, learned words and prompts that change on the way are the same for all kinds. A kind is a
    subclass that says what it takes of its encoder.

    Args:
        outputs: the network's arguments, and what each gets: ``"tokens"``, ``(rows, tokens, dim)``; ``"filled"``,
            ``(rows, tokens)``, False at padding; or the name of a vector in the encoder's output, ``"text_embeds"`` or
            ``"pooler_output"``, ``(rows, dim)``: see :class:`langevin.prompts.weighting.Embedded`. The first is what
            callbacks see.
        window, mask_padding: see :class:`langevin.prompts.encoder.PromptEncoder`.
        one_window: for networks that take as many tokens as the encoder's window has and no more: longer prompts lose
            their end, and a warning names it, whatever ``long_prompts`` says.
        clean: is given each part of a prompt that has one weight, and returns what is read instead.
        device, dtype: of the conditions.

    Example:
        >>> reading = CLIPReader(pipe.tokenizer, pipe.text_encoder).read("a (red)1.3 circle", "ugly", pictures=2)
        >>> reading.branches["negative"]["encoder_hidden_states"].shape
        torch.Size([2, 77, 768])
    """

    outputs: Mapping[str, str] = {"encoder_hidden_states": "tokens"}
    window: int | None = None
    mask_padding: bool | None = None

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        *,
        outputs: Mapping[str, str] | None = None,
        window: int | None = None,
        mask_padding: bool | None = None,
        one_window: bool = False,
        clean: Callable[[str], str] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.outputs = dict(self.outputs if outputs is None else outputs)
        self.window = self.window if window is None else window
        self.mask_padding = self.mask_padding if mask_padding is None else mask_padding
        self.one_window, self.clean = one_window, clean
        self.device, self.dtype = device, dtype

    def read(
        self,
        prompt: Texts,
        negative_prompt: Texts = None,
        *,
        pictures: int = 1,
        steps: int = 1,
        with_negative: bool = True,
        prompt_embeds: Given = None,
        negative_prompt_embeds: Given = None,
        clip_skip: int | None = None,
        clip_skip_negative: bool = False,
        prompt_weighting: str = "compel",
        long_prompts: Literal["chunk", "cut"] = "chunk",
    ) -> Reading:
        """Read the prompts of a call, or take embeddings that were given.

        Prompt and negative prompt of a picture get the same number of windows of the encoder: what is shorter is filled
        up with the empty prompt, given embeddings too if they are whole windows.

        Args:
            prompt, negative_prompt: one text, or one for each prompt. No negative prompt is an empty one.
            pictures: rows for each prompt.
            steps: of the run, for prompts that change on the way; see :mod:`langevin.prompts.editing`.
            with_negative: whether there is a negative branch.
            prompt_embeds, negative_prompt_embeds: instead of texts, a row for each prompt.
            clip_skip: how many of the encoder's last layers to leave out.
            clip_skip_negative: leave them out for the negative prompt too. Right, but not what users' existing
                pictures were made with, so off by default.
            prompt_weighting: how prompts are read, and what weights do: a name in
                :data:`langevin.prompts.weighting.GRAMMARS`.
            long_prompts: "chunk" encodes a prompt longer than the encoder's window in several, "cut" only its
                beginning, as the reference does, and names the words lost in a warning.

        Raises:
            ValueError: if counts or shapes do not fit together, or a choice is none.
            PromptSyntaxError: if the grammar does not allow a prompt; a ValueError too.
        """
        how = How(clip_skip, clip_skip_negative, prompt_weighting, long_prompts)
        _check("prompt", prompt, prompt_embeds)
        _check("negative_prompt", negative_prompt, negative_prompt_embeds, needed=False)

        def encode(prompt: Texts, negative_prompt: Texts) -> dict[str, Conditions]:
            given = prompt_embeds, negative_prompt_embeds
            return self.encode(prompt, negative_prompt, how, *given, pictures=pictures, with_negative=with_negative)

        branches, guider = edited_conditions(
            encode,
            prompt,
            negative_prompt,
            steps,
            prompt_weighting,
            negative_is_given=negative_prompt_embeds is not None,
        )
        main = next(iter(self.outputs))
        prompts = len(branches["positive"][main]) // pictures
        ragged = LENGTHS in branches["positive"]

        def again(text: str | Sequence[str]) -> Conditions:
            texts = [text] * prompts if isinstance(text, str) else list(text)
            if len(texts) != prompts:
                raise ValueError(f"{len(texts)} texts for {prompts} prompts; give one, or one each")
            told = self.encode(texts, None, how, pictures=pictures, with_negative=False)["positive"]
            return told if ragged else settle([[told]])[0][0]

        return Reading(branches, guider, again, main)

    def encode(
        self,
        prompt: Texts,
        negative_prompt: Texts,
        how: How,
        prompt_embeds: Given = None,
        negative_prompt_embeds: Given = None,
        *,
        pictures: int = 1,
        with_negative: bool = True,
    ) -> dict[str, Conditions]:
        """The branches of prompts that do not change on the way, all of one length.

        Under ``LENGTHS`` stands what each row's own text needs, which :func:`~langevin.prompts.lengths.settle` turns
        into what its picture needs.
        """
        texts = [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
        own = self._given(prompt_embeds, "prompt_embeds")
        negatives = self._given(negative_prompt_embeds, "negative_prompt_embeds") if with_negative else []
        vectors = [kind for kind in self.outputs.values() if kind not in ("tokens", "filled")]
        apart = how.clip_skip is not None and not how.clip_skip_negative
        rows = {"positive": own, "negative": negatives} if with_negative else {"positive": own}
        encodings: dict[str, Encoding] = {}
        if not all(rows.values()) or self._may_be_padded(rows):
            encoder = self.encoder(self._length(own[0]) if own else None)
            encode = Encoding(encoder, how.clip_skip, vectors)
            encodings = {"positive": encode, "negative": Encoding(encoder, None, vectors) if apart else encode}
        counted = {name: [self._counted(row, encodings.get(name)) for row in each] for name, each in rows.items()}
        if not all(rows.values()):
            count = len(own) if own else len(texts)
            unread = _match_negative(negative_prompt, count) if with_negative and not negatives else []
            texts = [] if own else texts
            if apart:
                read = [*self._rows(encodings["negative"], unread, how), *self._rows(encodings["positive"], texts, how)]
            else:
                read = self._rows(encodings["positive"], unread + texts, how)
            rows = {"positive": own or read[len(unread) :]}
            if with_negative:
                rows["negative"] = negatives or read[: len(unread)]
        lengths = {name: counted[name] or [self._length(row) for row in each] for name, each in rows.items()}
        return self._told(rows, lengths, encodings, pictures)

    def encoder(self, most: int | None = None) -> PromptEncoder:
        """The encoder for one call, with a window of at most so many tokens."""
        if self.tokenizer is None or self.text_encoder is None:
            missing = "tokenizer" if self.tokenizer is None else "text_encoder"
            raise ValueError(f"there is no {missing} to read texts with; give prompt_embeds and negative_prompt_embeds")
        window = self.window or self.tokenizer.model_max_length
        return PromptEncoder(
            self.tokenizer,
            self.text_encoder,
            window=window if most is None else min(window, most),  # given embeddings may be shorter than the window
            mask_padding=self.mask_padding,
            tokens_of=self.tokens_of,
            device=self.device,
        )

    def tokens_of(self, output: Any) -> Tensor:
        """The tokens' embeddings in what the encoder returns, ``(windows, window, dim)``."""
        return output.last_hidden_state

    def _rows(self, encode: Encoding, texts: Sequence[str], how: How) -> list[dict[str, Tensor]]:
        """What each text is told as, one row each."""
        parse, arithmetic = grammar(how.prompt_weighting)
        trees = [_cleaned(parse(text), self.clean) for text in texts]
        embedded = encode_trees(encode, trees, arithmetic, cut=self.one_window or how.long_prompts == "cut")
        for text, one in zip(texts, embedded, strict=True):
            if self.one_window and one.tokens.shape[1] > encode.encoder.window:
                most = encode.encoder.window
                raise ValueError(
                    f"{text[:40]!r} gives {one.tokens.shape[1]} tokens, and this model takes {most}; leave .and() out"
                )
        return [{name: _output(one, kind) for name, kind in self.outputs.items()} for one in embedded]

    def _given(self, given: Given, said: str) -> list[dict[str, Tensor]]:
        """Conditions that a caller has, row by row."""
        if given is None:
            return []
        tensors = {next(iter(self.outputs)): given} if isinstance(given, Tensor) else dict(given)
        if set(tensors) != set(self.outputs):
            wanted, there = ", ".join(self.outputs), ", ".join(tensors) or "nothing"
            raise ValueError(f"{said} has {there}; {wanted} are needed, in a dict where they are several")
        for name, value in tensors.items():
            if value.ndim != _AXES.get(self.outputs[name], 2) or 0 in value.shape:
                axes = "(prompts, tokens, dim)" if self.outputs[name] == "tokens" else "(prompts, numbers)"
                what = said if len(tensors) == 1 else f"{name} in {said}"
                raise ValueError(f"{what} has the shape {tuple(value.shape)}; {axes} is needed")
        if len(set(map(len, tensors.values()))) > 1:
            sizes = ", ".join(f"{len(value)} of {name}" for name, value in tensors.items())
            raise ValueError(f"{said} has rows of different number: {sizes}")
        count = len(next(iter(tensors.values())))
        return [{name: value[k : k + 1] for name, value in tensors.items()} for k in range(count)]

    def _told(
        self,
        rows: Mapping[str, Sequence[dict[str, Tensor]]],
        counted: Mapping[str, Sequence[int]],
        encodings: Mapping[str, Encoding],
        pictures: int,
    ) -> dict[str, Conditions]:
        """Rows put together to branches; ``counted`` are how many tokens of each count."""
        long = [name for name, kind in self.outputs.items() if kind in ("tokens", "filled")]
        if not all(rows.values()):
            raise ValueError("there is no prompt; give at least one text, or embeddings")
        longest = max(self._length(row) for each in rows.values() for row in each)
        branches: dict[str, Conditions] = {}
        for branch, each in rows.items():
            told: dict[str, Any] = {}
            for name, kind in self.outputs.items():
                parts = [self._padded(row[name], kind, longest, encodings.get(branch)) for row in each]
                wrong = next((part for part in parts if part.shape[1:] != parts[0].shape[1:]), None)
                if wrong is not None:
                    _refuse(tuple(wrong.shape), tuple(parts[0].shape))
                told[name] = self._ready(torch.cat(parts)).repeat_interleave(pictures, dim=0)
            lengths = torch.tensor(list(counted[branch])).repeat_interleave(pictures)
            branches[branch] = {**told, LENGTHS: dict.fromkeys(long, lengths)} if long else told
        if "negative" in branches:
            for name in self.outputs:
                shapes = [tuple(branches[branch][name].shape) for branch in ("negative", "positive")]
                if shapes[0] != shapes[1]:
                    _refuse(*shapes)
        return branches

    def _length(self, row: Mapping[str, Tensor]) -> int:
        """Tokens of a row; 0 where it has only vectors."""
        return next((row[name].shape[1] for name, kind in self.outputs.items() if kind in ("tokens", "filled")), 0)

    def _may_be_padded(self, rows: Mapping[str, Sequence[dict[str, Tensor]]]) -> bool:
        """Whether given rows are longer than a window, of an encoder that is there to ask."""
        if self.tokenizer is None or self.text_encoder is None:
            return False
        window = self.window or self.tokenizer.model_max_length
        return any(self._length(row) > window for each in rows.values() for row in each)

    def _counted(self, row: Mapping[str, Tensor], encode: Encoding | None) -> int:
        """Tokens of a row, but not those of empty prompts at its end, with which somebody made it as long as others."""
        name = next((name for name, kind in self.outputs.items() if kind == "tokens"), "")
        tokens = self._length(row)
        if encode is None or not name or tokens % encode.encoder.window:
            return tokens
        while tokens > encode.encoder.window and _is_nearly(row[name][:, :tokens], encode.empty):
            tokens -= encode.encoder.window
        return tokens

    @staticmethod
    def _padded(value: Tensor, kind: str, tokens: int, encode: Encoding | None) -> Tensor:
        if encode is None or kind not in ("tokens", "filled"):
            return value
        return encode.padded(value, tokens) if kind == "tokens" else encode.padded_filled(value, tokens)

    def _ready(self, value: Tensor) -> Tensor:
        return value.to(device=self.device, dtype=self.dtype if value.is_floating_point() else None)


def _check(name: str, texts: Any, embeds: Given, needed: bool = True) -> None:
    """Raises ValueError unless there is a text, a list of them, or embeddings."""
    said = name.replace("prompt", "prompt_embeds")
    if texts is not None and embeds is not None:
        raise ValueError(f"both {name} and {said} given; give {'exactly' if needed else 'at most'} one")
    if needed and texts is None and embeds is None:
        raise ValueError(f"neither {name} nor {said} given; give exactly one")
    if texts is None or isinstance(texts, str):
        return
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} is a {type(texts).__name__}; a text or a list of texts is needed")
    if not texts:
        raise ValueError(f"{name} is an empty list; give one text per picture")


def _output(embedded: Embedded, kind: str) -> Tensor:
    if kind == "tokens":
        return embedded.tokens
    return embedded.filled if kind == "filled" else embedded.vectors[kind]


def _is_nearly(tokens: Tensor, empty: Tensor) -> bool:
    """Whether tokens end like this, but for rounding to half precision on the way."""
    last = tokens[:, -empty.shape[1] :]
    if last.shape[2] != empty.shape[2]:
        return False
    last, empty = last.float(), empty.to(last.device).float()
    return torch.allclose(last, empty, rtol=0.01, atol=0.01 * float(empty.abs().mean()))


def _refuse(negative: tuple[int, ...], positive: tuple[int, ...]) -> None:
    raise ValueError(f"negative_prompt_embeds is {negative} and prompt_embeds {positive}; both need the same shape")


def _match_negative(negative_prompt: Texts, count: int) -> list[str]:
    """One negative text per prompt."""
    if negative_prompt is None or isinstance(negative_prompt, str):
        return [negative_prompt or ""] * count
    negatives = list(negative_prompt)
    if len(negatives) == 1:
        negatives *= count
    if len(negatives) != count:
        raise ValueError(f"{len(negatives)} negative prompts for {count} prompts; give one, or one each")
    return negatives


def _cleaned(tree: Any, clean: Callable[[str], str] | None) -> Any:
    """A tree with its fragments' texts cleaned."""
    if clean is None:
        return tree
    if isinstance(tree, Text):
        return replace(tree, fragments=tuple(replace(f, text=clean(f.text)) for f in tree.fragments))
    assert isinstance(tree, And | Blend)
    return replace(tree, parts=tuple(_cleaned(part, clean) for part in tree.parts))
