"""Several directions at once: semantic guidance (SEGA), Brack et al. 2023 (2301.12247)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from langevin.checks import Range, Share
from langevin.guiders.base import Guider, Setup
from langevin.guiders.classifier_free import ClassifierFreeGuidance, guidance_in
from langevin.guiders.step import Conditions, Step, add_branch

Steps = Annotated[int, Range(0)]


@dataclass
class SemanticGuidance(Guider):
    """Push pictures towards what some texts name, or away from it, each only where it matters most.

    It is added to classifier-free guidance (equation 4), so it is idle where that is. Every setting is one value, or a
    list with one for each edit; of longer lists the rest is not read.

    Args:
        editing_prompt: a text for each edit, or one alone.
        reverse: away from it instead of towards it (ψ of equation 5).
        scale: s_e of equation 6.
        warmup_steps, cooldown_steps: δ, how many network calls leave the picture alone at first, and from which on they
            do again; None is never. Edits that are through with their warm-up begin while others are not, but then
            without momentum.
        threshold: λ of equation 6: the share of places that an edit leaves alone, in each channel; 0 to 1.
        momentum_scale, momentum_beta: s_m and β_m of equations 8 and 9: places that were changed go on being changed.
            Momentum builds up during the warm-up too; with ``momentum_scale`` 0 edits are not computed there.
        weights: g of equation 7, how much each edit counts; 1 each if None, and 0 where they are negative. As long as
            only some edits are through with their warm-up, theirs are shared out anew to a sum of 1.
        embeddings: of edits in the texts' place, ``(edits, tokens, dim)``.
        given: what is added at each network call, a tensor like x each, ready made: :attr:`added` of another call. It
            needs no edits.

    Attributes:
        added: what was added at each network call, ``(batch, channels, …)``, or None: of the copy that served the call,
            which stands among ``setup.guiders``.
        masks: where each edit changed something, ``(edits, batch, channels, …)`` of bools for each call, or None.

    Raises:
        ValueError: both texts and embeddings are given, numbers are out of range, or a list is too short.

    Example:
        >>> edits = SemanticGuidance(["red", "a star"], reverse=[True, False], warmup_steps=2)
        >>> pipe("a circle", guiders=[edits])
    """

    editing_prompt: str | Sequence[str] | None = None
    reverse: bool | Sequence[bool] = False
    scale: float | Sequence[float] = 5.0
    warmup_steps: Steps | Sequence[Steps] = 10
    cooldown_steps: Steps | Sequence[Steps] | None = None
    threshold: Share | Sequence[Share] = 0.9
    momentum_scale: Annotated[float, Range(0)] = 0.1
    momentum_beta: Share = 0.4
    weights: Sequence[float] | None = None
    embeddings: Tensor | None = None
    given: Sequence[Tensor | None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.editing_prompt is not None and self.embeddings is not None:
            raise ValueError("both editing_prompt and editing_prompt_embeddings given; give at most one")
        if self.embeddings is not None and self.embeddings.ndim != 3:
            raise ValueError(f"embeddings of edits are {tuple(self.embeddings.shape)}; (edits, tokens, dim) is needed")
        texts = [self.editing_prompt] if isinstance(self.editing_prompt, str) else self.editing_prompt
        self._edits: list[Any] = [*(self.embeddings if self.embeddings is not None else texts or ())]
        count = len(self._edits)
        for name in ("reverse", "scale", "warmup_steps", "cooldown_steps", "threshold", "weights"):
            listed = getattr(self, name)
            if isinstance(listed, Sequence) and len(listed) < count:
                raise ValueError(f"{name} has {len(listed)} entries for {count} edits; give one value, or one for each")
        self._guidance: ClassifierFreeGuidance | None = None
        self._branches: list[str] = []

    def _of(self, name: str, edit: int) -> Any:
        """An edit's own value of a setting."""
        value = getattr(self, name)
        return value[edit] if isinstance(value, Sequence) else value

    def prepare(self, setup: Setup) -> None:
        self._momentum: Tensor | None = None
        self._branches = []
        self.added: list[Tensor | None] = []
        self.masks: list[Tensor | None] = []
        if not self._edits and self.given is None:
            return
        self._guidance = guidance_in(setup, "SemanticGuidance")
        if self._guidance is None:
            return
        for edit in self._edits:
            if isinstance(edit, Tensor):
                told = _embedded(edit, setup)
            elif setup.encode_text is None:
                raise ValueError("SemanticGuidance needs a pipeline that reads texts, or embeddings in their place")
            else:
                told = setup.encode_text(edit)
            self._branches.append(add_branch(setup.branches, "edit", told))

    # -- which edits when

    def _warm(self, step: Step) -> list[int]:
        """Edits that are through with their warm-up."""
        done = step.index - step.start
        return [k for k in range(len(self._branches)) if done >= self._of("warmup_steps", k)]

    def _asked(self, step: Step) -> list[int]:
        """Edits that this step needs: not those that have cooled down; in the warm-up those that momentum counts."""
        done = step.index - step.start
        warm = self._warm(step)
        ends = [self._of("cooldown_steps", k) for k in range(len(self._branches))]
        return [k for k, end in enumerate(ends) if (end is None or done < end) and (k in warm or self.momentum_scale)]

    def _acts(self, step: Step) -> bool:
        return self._guidance is not None and bool(self._guidance.needs(step))

    def needs(self, step: Step) -> Collection[str]:
        return ("negative", *(self._branches[k] for k in self._asked(step))) if self._acts(step) else ()

    # -- what they add

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        if not self._acts(step):
            return prediction
        done = step.index - step.start
        added = self._guide(predictions, step) if self._branches else None
        _put(self.added, done, added)
        ready = self.given[done] if self.given and len(self.given) > done else None
        for more in (added, ready):
            if more is not None:
                prediction = prediction + more.to(prediction.device, prediction.dtype)
        return prediction

    def _guide(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor | None:
        """γ: what all edits together add (equations 5 to 9); None before the first is through with its warm-up."""
        exact = torch.promote_types(predictions["negative"].dtype, torch.float32)
        negative = predictions["negative"].to(exact)
        edits = torch.zeros(len(self._branches), *negative.shape, dtype=exact, device=negative.device)
        weights = torch.zeros(len(self._branches), dtype=exact, device=negative.device)
        asked, warm = self._asked(step), self._warm(step)
        for k in asked:
            towards = (predictions[self._branches[k]].to(exact) - negative) * self._of("scale", k)
            edits[k] = strongest(-towards if self._of("reverse", k) else towards, self._of("threshold", k))
            weights[k] = 1.0 if self.weights is None else max(self.weights[k], 0.0)
        _put(self.masks, step.index - step.start, (edits != 0).cpu())

        together = torch.einsum("e,e...->...", weights, edits)
        if self.momentum_scale:
            before = torch.zeros_like(together) if self._momentum is None else self._momentum
            together = together + self.momentum_scale * before
            self._momentum = together.lerp(before, self.momentum_beta)
        if len(warm) == len(self._branches):
            return together
        shared = weights[warm].sum()
        return torch.einsum("e,e...->...", weights[warm] / shared, edits[warm]) if shared > 0 else None


def strongest(direction: Tensor, threshold: float) -> Tensor:
    """A direction where it is largest in each channel of each picture, 0 elsewhere: equation 6.

    Args:
        direction: ``(batch, channels, …)``.
        threshold: the share of places that become 0.
    """
    size = direction.abs()
    least = size.flatten(2).quantile(threshold, dim=2).reshape(*size.shape[:2], *[1] * (size.ndim - 2))
    return torch.where(size >= least, direction, 0)


def _put(kept: list[Tensor | None], place: int, value: Tensor | None) -> None:
    """Set an entry of a list that grows with a run, of whose calls some are passed over."""
    kept += [None] * (place + 1 - len(kept))
    kept[place] = value


def _embedded(edit: Tensor, setup: Setup) -> Conditions:
    """An edit's embeddings for each row of x."""
    rows = edit.to(setup.device, setup.dtype)[None].expand(setup.shape[0], *edit.shape)
    return {"encoder_hidden_states": rows}
