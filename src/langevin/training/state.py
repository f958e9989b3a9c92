"""A run's state: written into checkpoints, and taken up from them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin.training import checkpoints
from langevin.training.flags import BadFlags

if TYPE_CHECKING:
    from langevin.training.loop import Run

logger = logging.getLogger(__name__)


def keep(run: Run, done: int) -> Path:
    """Write a checkpoint."""
    accelerator, recipe = run.accelerator, run.recipe
    path = checkpoints.partial(run.folder, done)
    if accelerator.is_main_process:
        checkpoints.begin(run.folder, done)
    accelerator.wait_for_everyone()
    with OwnFiles(run, path):
        accelerator.save_state(str(path))
    if accelerator.is_main_process:
        for name, average in run.averages.items():
            recipe.keep(name, average.network, path / f"{name}_ema")
    accelerator.wait_for_everyone()
    whole = run.folder / f"checkpoint-{done}"
    if accelerator.is_main_process:
        state = {
            "seed": run.seed,
            "averaged": {name: average.updates for name, average in run.averages.items()},
            "pictures_per_step": run.plan.pictures,
            "rows": run.plan.rows,
            "flags": run.flags.record(),
        }
        whole = checkpoints.finish(run.folder, done, state, run.flags.checkpoints_total_limit)
    accelerator.wait_for_everyone()
    return whole


def take_up(run: Run, path: Path) -> None:
    """Go on from a checkpoint."""
    state = checkpoints.state_of(path)
    if state["rows"] != run.plan.rows or state["pictures_per_step"] != run.plan.pictures:
        logger.warning(
            "%s was made with %s pictures, %s a step; now there are %s, %s a step: the run goes on, and is not "
            "the one that it would have been",
            path, state["rows"], state["pictures_per_step"], run.plan.rows, run.plan.pictures,
        )  # fmt: skip
    with OwnFiles(run, path):
        run.accelerator.load_state(str(path))
    for name, average in run.averages.items():
        if not (path / f"{name}_ema").is_dir():
            raise BadFlags(f"{path} has no average of {name}; resume without --use_ema, as it was begun")
        run.recipe.take_up(name, average.network, path / f"{name}_ema")
        average.updates = state["averaged"][name]
    run.first = state["step"]


class OwnFiles:
    """Within it, accelerate writes and reads networks as their recipe does, not as one file of its own."""

    def __init__(self, run: Run, path: Path) -> None:
        self.run, self.path = run, path

    def __enter__(self) -> None:
        accelerator, recipe = self.run.accelerator, self.run.recipe
        names = {id(accelerator.unwrap_model(network)): name for name, network in self.run.networks.items()}

        def write(models: list, weights: list, folder: str) -> None:
            for model in models:
                name = names.get(id(accelerator.unwrap_model(model)))
                if name is not None and accelerator.is_main_process:
                    recipe.keep(name, accelerator.unwrap_model(model), Path(folder) / name)
            weights.clear()

        def read(models: list, folder: str) -> None:
            while models:
                model = models.pop()
                name = names[id(accelerator.unwrap_model(model))]
                recipe.take_up(name, accelerator.unwrap_model(model), Path(folder) / name)

        self.hooks = [
            accelerator.register_save_state_pre_hook(write),
            accelerator.register_load_state_pre_hook(read),
        ]

    def __exit__(self, *exception: Any) -> None:
        for hook in self.hooks:
            hook.remove()
