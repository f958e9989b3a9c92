"""Attend-and-excite: Chefer, Alaluf, Vinker, Wolf & Cohen-Or 2023 (2301.13826)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.guiders.attention_maps import map_size, watching
from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Conditions, Step
from langevin.guiders.windows import Box
from langevin.models.layers.attention import Attention

MOST_REFINEMENTS = 20
"""How often a step at which a threshold is set moves x at most, before its own move."""


@dataclass
class AttendAndExcite(Guider):
    """Move x so that no named word of the prompt is left without a place in the picture.

    Algorithm 1 of the paper. Before a step the network is asked with the prompt, and of each named token the map of
    who looks at it is smoothed. The loss is 1 - its highest value, of the token that is looked at least (equation 1),
    and x moves down its gradient (equation 2). At the steps in ``thresholds`` it is moved up to 20 times, until each
    token's highest value is above the threshold (section 3.2).

    Pictures are moved one at a time, so that the gradient takes the memory of one. Gradients flow through control
    networks. With :class:`~langevin.Windows` a token needs a place in one of the windows; the gradient then keeps
    all of them in memory. The network is left as soon as the last map has been seen.

    Args:
        token_indices: places of the tokens in the tokenised prompt, where 0 is its beginning; or a list of places for
            each prompt. :meth:`langevin.StableDiffusionAttendAndExcitePipeline.get_indices` tells them.
        max_iter_to_alter: how many steps (network calls) move x; the others, but for those in ``thresholds``, cost
            nothing.
        thresholds: step -> the highest value that each token is to have, 0 to 1.
        scale_factor: of the gradient; it falls to its square root of a half over the run. 0 is off, and costs nothing.
        attn_res: rows and columns of the maps that count. None: a quarter of x's, or of a window's, rounded up: 16 x 16
            for Stable Diffusion's 512 pixels.
        scaled_input: show the network x as its scheduler scales it, and move it there. False shows and moves x itself,
            as the reference does: the same with most schedulers, but with those that count in σ (Euler, LMS, …) the
            network sees what it was not made for, and x hardly moves.

    Raises:
        ValueError: settings that mean nothing, tokens outside the prompt, or no map of the size asked for.

    Example:
        >>> pipe("a red circle and a blue star", guiders=[AttendAndExcite([3, 7], attn_res=(8, 8))])
    """

    pictures_only = True

    token_indices: Sequence[int] | Sequence[Sequence[int]]
    max_iter_to_alter: int = 25
    thresholds: Mapping[int, float] = field(default_factory=lambda: {0: 0.05, 10: 0.5, 20: 0.8})
    scale_factor: float = 20
    attn_res: tuple[int, int] | None = None
    scaled_input: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = isinstance(self.token_indices, Sequence) and not isinstance(self.token_indices, str)
        per_prompt = [*self.token_indices] if listed else []
        if per_prompt and all(isinstance(k, int) for k in per_prompt):
            per_prompt = [per_prompt]
        self._per_prompt: list[list[int]] = [[*ks] if isinstance(ks, Sequence) else [] for ks in per_prompt]
        if not self._per_prompt or not all(ks and all(isinstance(k, int) for k in ks) for ks in self._per_prompt):
            raise ValueError(
                f"token_indices is {self.token_indices!r}; whole numbers in a list, or one such list per prompt"
            )
        if not self.scale_factor >= 0:
            raise ValueError(f"scale_factor is {self.scale_factor}; it must be at least 0, which is off")
        if self.attn_res is not None and (len(self.attn_res) != 2 or min(self.attn_res) < 2):
            raise ValueError(f"attn_res is {self.attn_res}; (rows, columns) of at least 2 each is needed")
        if not all(0 <= value <= 1 for value in self.thresholds.values()):
            raise ValueError(f"thresholds is {dict(self.thresholds)}; each step's must be in 0..1")

    def prepare(self, setup: Setup) -> None:
        if torch.is_inference_mode_enabled():
            raise ValueError("attend-and-excite needs gradients, which torch.inference_mode forbids; leave it out")
        self._size = setup.picture_places("attend-and-excite")
        self._last: Attention | None = None  # the last layer in a pass whose map counts
        self._stops = not getattr(setup.network, "is_gradient_checkpointing", False)  # which passes layers twice
        prompts = setup.shape[0] // setup.pictures
        if len(self._per_prompt) != prompts:
            raise ValueError(
                f"token_indices has {len(self._per_prompt)} lists for {prompts} prompts; give one list for each"
            )
        self._tokens = [ks for ks in self._per_prompt for _ in range(setup.pictures)]
        if "encoder_hidden_states" not in setup.branches["positive"]:
            raise ValueError("attend-and-excite needs a text, and this pipeline has none")
        told = setup.branches["positive"]
        counts = torch.full((setup.shape[0],), told["encoder_hidden_states"].shape[1])
        counts = told.get("lengths", {}).get("encoder_hidden_states", counts)  # where prompts differ
        for count, places in zip(counts.tolist(), self._tokens, strict=True):
            wrong = [k for k in places if not 0 < k < count - 1]
            if wrong:
                raise ValueError(
                    f"token_indices has {wrong[0]}; places 1 to {count - 2} can be named: the first and the last of "
                    f"the {count} tokens do not count"
                )

    def before(self, x: Tensor, step: Step) -> Tensor:
        done, calls = step.index - step.start, step.total - step.start
        threshold = self.thresholds.get(done)
        moves = done < self.max_iter_to_alter
        if self.scale_factor == 0 or (threshold is None and not moves):
            return x
        size = self.scale_factor * math.sqrt(1 - 0.5 * done / max(calls - 1, 1))
        told, batch = step.conditions(["positive"])["positive"], len(x)
        shown, scale = x, torch.ones(())
        if self.scaled_input:  # schedulers multiply by a number
            shown, scale = (step.run.scale_model_input(t, step.index) for t in (x, scale))
        with torch.enable_grad():
            moved = [
                self._excited(shown[k : k + 1], _row(told, k, batch), tokens, step, size, threshold, moves)
                for k, tokens in enumerate(self._tokens)
            ]
        return torch.cat(moved) / float(scale)

    def _excited(
        self,
        x: Tensor,
        told: Conditions,
        tokens: list[int],
        step: Step,
        size: float,
        threshold: float | None,
        moves: bool,
    ) -> Tensor:
        """Move one picture's x as the network sees it, ``(1, channels, height, width)``."""
        x = x.detach().requires_grad_()
        loss = self._loss(x, told, tokens, step)
        if threshold is not None and loss > 1 - threshold:
            for _ in range(MOST_REFINEMENTS):
                enough = loss <= 1 - threshold
                x = _down(x, loss, size).requires_grad_()
                loss = self._loss(x, told, tokens, step)
                if enough:
                    break
        return _down(x, loss, size) if moves else x.detach()

    def _loss(self, x: Tensor, told: Conditions, tokens: list[int], step: Step) -> Tensor:
        """1 - the highest value in the smoothed map of the token that is looked at least."""
        maps = _Maps(self._size, self.attn_res)
        latest: list[Attention] = []

        def seen(probabilities: Tensor, layer: Attention, views: Sequence[Box] | None = None, **_: Any) -> None:
            maps.add(probabilities, views)
            if layer is self._last:
                raise _SeenAll
            if views is None:
                latest[:] = [layer]

        try:
            step.denoiser(x, step, {"positive": told}, watching(maps.wants, seen))
            self._last = latest[0] if latest and self._stops else None
        except _SeenAll:  # the rest of the network says nothing more about them
            pass
        highest = torch.stack([highest_attention(one, tokens) for one in maps.means()]).amax(0)
        return (1 - highest).clamp(min=0).max()


def highest_attention(maps: Tensor, tokens: Sequence[int]) -> Tensor:
    """How much a token is looked at where it is looked at most.

    Attention is made sharper, and shared out anew among the tokens without the first, whose part is large everywhere,
    and the last; then smoothed with a Gaussian over 3 x 3 places.

    Args:
        maps: who looks at what, ``(rows, columns, all tokens)``, each place's sum 1.
        tokens: places of the tokens asked for.

    Returns:
        0 to 1, ``(len(tokens),)``.
    """
    shares = (100 * maps[..., 1:-1]).softmax(-1)[..., [k - 1 for k in tokens]]
    # exp(-d²): of "σ = 0.5" in the published code, which has 2σ where a Gaussian has √2·σ
    bell = torch.tensor([-1.0, 0.0, -1.0], device=maps.device).softmax(0)
    around = F.pad(shares.permute(2, 0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(around, torch.outer(bell, bell)[None, None]).amax((1, 2, 3))


class _SeenAll(Exception):
    """Ends a pass through the network."""


class _Maps:
    """What cross-attention looks at in one pass, at one resolution, summed over layers and heads, by window."""

    def __init__(self, size: Sequence[int], resolution: tuple[int, int] | None) -> None:
        self._whole: Box = (0, size[0], 0, size[1])
        self._resolution = resolution
        self._asked = self._rows_and_columns(self._whole)
        self._sums: dict[Box, tuple[Tensor, int]] = {}
        self._others: dict[int, tuple[int, int] | None] = {}

    def wants(self, q: Tensor, k: Tensor, layer: Attention, views: Sequence[Box] | None) -> bool:
        """Whether a layer's map is of the resolution."""
        if not layer.is_cross_attention:
            return False
        box = top, bottom, left, right = views[0] if views else self._whole
        places, self._asked = q.shape[2], self._rows_and_columns(box)
        self._others[places] = map_size(places, bottom - top, right - left)
        return places == math.prod(self._asked)

    def add(self, probabilities: Tensor, views: Sequence[Box] | None) -> None:
        """``(windows, heads, places, tokens)`` of one picture."""
        for box, heads in zip(views or [self._whole], probabilities, strict=True):
            total, count = self._sums.get(box, (0, 0))
            self._sums[box] = total + heads.sum(0), count + len(heads)

    def means(self) -> Iterator[Tensor]:
        """Each window's, ``(rows, columns, tokens)``."""
        if not self._sums:
            sides = [f"{size[0]} x {size[1]}" if size else f"{places}" for places, size in self._others.items()]
            asked = " x ".join(map(str, self._asked))
            raise ValueError(
                f"no cross-attention here sees {asked} places (attn_res); there are {', '.join(sides) or 'none at all'}"
            )
        for box, (total, count) in self._sums.items():
            yield (total / count).unflatten(0, self._rows_and_columns(box))

    def _rows_and_columns(self, box: Box) -> tuple[int, int]:
        top, bottom, left, right = box
        return self._resolution or (-(-(bottom - top) // 4), -(-(right - left) // 4))


def _row(told: Conditions, k: int, batch: int) -> Conditions:
    """What picture k of the batch is told."""
    if batch == 1:
        return told

    def own(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: own(inner) for name, inner in value.items()}
        return value[k : k + 1] if isinstance(value, Tensor) and value.shape[:1] == (batch,) else value

    return own(told)


def _down(x: Tensor, loss: Tensor, size: float) -> Tensor:
    """x moved down the loss's gradient. Only x's gradient is asked for: none is left on the network's weights."""
    if loss == 0:
        return x.detach()
    return (x - size * torch.autograd.grad(loss, x)[0]).detach()
