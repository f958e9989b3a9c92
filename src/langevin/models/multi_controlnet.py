"""Several ControlNets for one UNet, as one network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from langevin.checkpoints import folders
from langevin.checkpoints.errors import CheckpointError
from langevin.models.base import ModelMixin
from langevin.models.controlnet import ControlNetModel
from langevin.outputs import ControlNetOutput
from langevin.signatures import also_takes


class MultiControlNetModel(ModelMixin):
    """Several ControlNets, whose maps are summed.

    Args:
        controlnets: they must be made for the same UNet, and may read different hints.
    """

    def __init__(self, controlnets: Sequence[ControlNetModel]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(controlnets)

    def embed_condition(self, controlnet_cond: Sequence[Tensor]) -> list[Tensor]:
        """Each net's :meth:`ControlNetModel.embed_condition` of its hint."""
        hints = self._one_each("controlnet_cond", controlnet_cond)
        nets: Any = self.nets
        return [net.embed_condition(hint) for net, hint in zip(nets, hints, strict=True)]

    @also_takes(ControlNetModel.forward)
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None,
        controlnet_cond: Sequence[Tensor] | None = None,
        conditioning_scale: float | Sequence[float | Tensor] = 1.0,
        *,
        embedded_cond: Sequence[Tensor] | None = None,
        return_dict: bool = True,
        **common: Any,
    ) -> ControlNetOutput | tuple[Sequence[Tensor], Tensor]:
        """As :meth:`ControlNetModel.forward`, with a list of hints and one of scales (or one number for all nets).

        Raises:
            ValueError: there is not one hint and one scale for each net, or the nets give maps for different UNets.
        """
        hints = self._one_each("controlnet_cond", controlnet_cond)
        embedded = self._one_each("embedded_cond", embedded_cond)
        each = isinstance(conditioning_scale, (list, tuple))
        scales = self._one_each(
            "conditioning_scale", conditioning_scale if each else [conditioning_scale] * len(self.nets)
        )
        down: list[Tensor] = []
        mid: Any = None
        for i, (net, *own) in enumerate(zip(self.nets, hints, scales, embedded, strict=True)):
            told = dict(zip(("controlnet_cond", "conditioning_scale", "embedded_cond"), own, strict=True))
            more, last = net(sample, timestep, encoder_hidden_states, return_dict=False, **told, **common)
            if i and len(more) != len(down):
                raise ValueError(f"net {i} gives {len(more)} maps and net 0 {len(down)}: they are for different UNets")
            down = [a + b for a, b in zip(down, more, strict=True)] if i else list(more)
            mid = mid + last if i else last
        return ControlNetOutput(down, mid) if return_dict else (down, mid)

    def _one_each(self, name: str, values: Any) -> Sequence[Any]:
        """``values``, one per net; None for each where there are none."""
        if values is None:
            return [None] * len(self.nets)
        if not isinstance(values, (list, tuple)) or len(values) != len(self.nets):
            given = f"{len(values)} entries" if isinstance(values, (list, tuple)) else f"a {type(values).__name__}"
            raise ValueError(f"{name} is {given}; give a list with one for each of the {len(self.nets)} ControlNets")
        return values

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: str | int | None = None,
    ) -> None:
        """Save the first net into ``save_directory``, the others beside it: ``save_directory_1``, ``…_2`` and so on.

        The arguments are those of :meth:`~langevin.models.base.ModelMixin.save_pretrained`.

        Raises:
            CheckpointError: an earlier save left more nets there than this one has: they would be read back too.
        """
        if not is_main_process:
            return
        self.refuse_leftovers(save_directory)
        options: dict[str, Any] = {"safe_serialization": safe_serialization, "variant": variant}
        if max_shard_size is not None:
            options["max_shard_size"] = max_shard_size
        for i, net in enumerate(self.nets):
            net.save_pretrained(_beside(save_directory, i), **options)  # type: ignore[operator]

    def refuse_leftovers(self, save_directory: str | os.PathLike) -> None:
        """Raises CheckpointError if there are more nets beside ``save_directory`` than this one has."""
        left_over = _beside(save_directory, len(self.nets))
        if left_over.is_dir():
            raise CheckpointError(
                f"{left_over} is there already and would be read as one more ControlNet; "
                f"remove it, or save the {len(self.nets)} nets elsewhere."
            )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_path: str | os.PathLike, *, subfolder: str | None = None, **options: Any
    ) -> Any:
        """Read what :meth:`save_pretrained` wrote: a folder, and those beside it with ``_1``, ``_2``, … at their end.

        ``options`` are those of :meth:`~langevin.models.base.ModelMixin.from_pretrained`.

        Raises:
            CheckpointError: there is no such folder, or one of them cannot be read.
        """
        hub = folders.take_options(options)
        root = folders.resolve(pretrained_model_path, **hub)
        nets: list[ControlNetModel] = []
        while not nets or _beside(root / (subfolder or ""), len(nets)).is_dir():
            if subfolder:
                net = ControlNetModel.from_pretrained(root, subfolder=str(_beside(subfolder, len(nets))), **options)
            else:
                net = ControlNetModel.from_pretrained(_beside(root, len(nets)), **options)
            nets.append(net)
        return cls(nets)


def _beside(folder: str | os.PathLike, i: int) -> Path:
    """The folder of net ``i``."""
    place = Path(folder).expanduser()
    return Path(f"{place}_{i}") if i else place
