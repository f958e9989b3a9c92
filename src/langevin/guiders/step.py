"""One network call's place in a run, and what its branches are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from langevin.latest import Latest

if TYPE_CHECKING:
    from langevin.schedulers.run import Run

Conditions = Mapping[str, Any]
"""What a branch is told: keyword arguments of the network, as ``{"encoder_hidden_states": (batch, tokens, dim)}``.

Two names are not the network's. ``"channels"`` is a dict of tensors that are joined to x, one after the other: a mask,
the picture to be edited. ``"maps"``, a dict, is for the :attr:`Setup.inputs` that put it there. A tensor with x's
height and width is a map of x's places: wrappers that cut x into windows cut it alike.
"""

Denoiser = Callable[..., "dict[str, Tensor]"]
"""``denoiser(x, step, branches, attention=None) -> {branch: prediction}``: see :mod:`langevin.denoiser`."""

Input = Callable[..., "dict[str, Any]"]
"""``input(x, step, names, told) -> told``: see :attr:`Setup.inputs`."""


class Told(dict[str, Any]):
    """Conditions of every branch of a call, those that guiders add later among them.

    A branch's own entries win, in dicts (``"channels"``, ``"maps"``) entry by entry. Put another object in an entry's
    place to change it, ``told["channels"] = {**told["channels"], "mask": mask}``: what was made of the old one is
    known by it. :meth:`put` does that.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._joined: dict[str, Latest[Conditions]] = {}

    def put(self, entry: str, name: str, value: Any) -> None:
        """Set one name in a dict that is an entry, such as ``put("channels", "mask", mask)``."""
        self[entry] = {**self.get(entry, {}), name: value}

    def to(self, branch: str, own: Conditions) -> Conditions:
        """All that a branch is told. The same object as the last time, where nothing has been changed."""
        latest = self._joined.setdefault(branch, Latest())
        return latest([own, *self.values()], lambda: _joined(self, own))


def _joined(common: Conditions, own: Conditions) -> Conditions:
    both = {**common, **own}
    for name in common.keys() & own.keys():
        if isinstance(common[name], Mapping) and isinstance(own[name], Mapping):
            both[name] = {**common[name], **own[name]}
    return both


@dataclass(slots=True)
class Step:
    """One network call's place in a run, as guiders see it.

    Attributes:
        index: 0, 1, … up to ``total - 1``.
        total: network calls in the run.
        timestep: what the network is told.
        run: the scheduler's run; ``run.add_noise(x0, noise, index)`` brings a clean x to this step's level.
        branches: conditions by branch name, "positive" among them. A guider may replace entries.
        denoiser: the network and its wrappers; see :meth:`predict`.
        noise: ``noise(like)`` draws fresh noise from the call's generators. A guider may put another in its place,
            which this step's solver then uses.
        start: the network call at which the loop began (image to image begins late).
        attention: what the guiders asked so far want called in this step's attention layers; None: the usual one.
        told: conditions of all branches.
        variance: what the network said of the positive branch's variance, ``(batch, channels, …)``, where it has twice
            x's channels; guiders see the prediction alone.
        shown: what single branches are shown in x's place at this step, as the network sees it (scaled), by name.
    """

    index: int
    total: int
    timestep: float
    run: Run
    branches: dict[str, Conditions]
    denoiser: Denoiser
    noise: Callable[[Tensor], Tensor]
    start: int = 0
    attention: Callable[..., Tensor] | None = None
    told: Told = field(default_factory=Told)
    variance: Tensor | None = None
    shown: dict[str, Tensor] = field(default_factory=dict)

    def conditions(self, names: Iterable[str]) -> dict[str, Conditions]:
        """All that the named branches are told.

        Raises:
            ValueError: this call has no such branch.
        """
        own, told = self.branches, self.told
        try:
            return {name: told.to(name, own[name]) for name in names} if told else {name: own[name] for name in names}
        except KeyError as error:
            raise ValueError(
                f"a guider asks for the branch {error}, which this call does not have; it has: {', '.join(own)}. "
                "Guidance needs a pipeline with a negative branch"
            ) from None

    def ask(self, x: Tensor, names: Sequence[str], attention: Callable | None = None) -> dict[str, Tensor]:
        """What the network says of this step's x (scaled), or of what a branch is :attr:`shown` in its place."""
        said = {}
        if alike := [name for name in names if name not in self.shown]:
            said = self.denoiser(x, self, self.conditions(alike), attention)
        for name in (name for name in names if name in self.shown):
            said.update(self.denoiser(self.shown[name], self, self.conditions([name]), attention))
        return said

    def predict(self, x: Tensor, names: Iterable[str], attention: Callable | None = None) -> dict[str, Tensor]:
        """Ask the network at this step about any x (unscaled), for the named branches."""
        shown = self.run.scale_model_input(x, self.index)
        return without_variance(self.denoiser(shown, self, self.conditions(names), attention), x)[0]

    @property
    def progress(self) -> float:
        """Share of the run that lies behind this step, 0 ≤ progress < 1."""
        return self.index / self.total


def without_variance(said: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    """Predictions with x's channels, and what the network says of the positive branch's variance, where it has twice as
    many (Nichol & Dhariwal 2021, 2102.09672, section 3.1); else None.
    """
    one = next(iter(said.values()))
    if one.shape == x.shape:
        return said, None
    if one.ndim != x.ndim or one.shape[1:2] != (2 * x.shape[1],) or one.shape[2:] != x.shape[2:]:
        return said, None
    halves = {name: both.chunk(2, dim=1) for name, both in said.items()}
    variance = halves["positive"][1] if "positive" in halves else None
    return {name: prediction for name, (prediction, _) in halves.items()}, variance


def add_branch(branches: dict[str, Conditions], name: str, told: Conditions) -> str:
    """Add a branch that differs from "positive" in what it is told here.

    Returns:
        Its name: ``name``, with a number where that is taken.
    """
    numbers = (f"{name} {k}" if k else name for k in range(len(branches) + 1))
    free = next(number for number in numbers if number not in branches)
    branches[free] = {**branches["positive"], **told}
    return free
