"""The training loop: every recipe's, on one process or many.

What is drawn at a step is a function of the run's seed and the place of a row in the run, never of what was drawn
before. So a run that was killed goes on bit for bit from its last checkpoint, and two processes do what one does with
twice the batch.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from langevin.training import checkpoints, hub, optimisers, rates, report, state
from langevin.training.average import Average
from langevin.training.data import Places, Some, Stream, collate, mixed, order
from langevin.training.flags import BadFlags
from langevin.training.machine import DTYPES, Signals, accelerator_for, checkpoint_activations, memory_used
from langevin.training.recipe import Recipe

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A run that was told to stop, and has saved a checkpoint."""

    def __init__(self, number: int, path: Path) -> None:
        super().__init__(f"stopped; {path} is where --resume_from_checkpoint=latest goes on")
        self.exit_code = 128 + number


@dataclass
class Plan:
    """How long a run is, in steps of the optimiser."""

    rows: int
    batch: int
    processes: int
    accumulation: int
    asked: int | None
    epochs: int

    @property
    def per_epoch(self) -> int:
        """Steps in which every picture is used once, the last one perhaps with some of the next epoch's."""
        return max(1, math.ceil(math.ceil(self.rows / (self.batch * self.processes)) / self.accumulation))

    @property
    def total(self) -> int:
        return self.asked or self.epochs * self.per_epoch

    @property
    def pictures(self) -> int:
        """Of a step, in all processes."""
        return self.batch * self.processes * self.accumulation


class Run:
    """One run of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.flags = recipe, recipe.flags
        self.folder = Path(self.flags.output_dir).expanduser()

    def __call__(self) -> None:
        """Train, and write the result.

        Raises:
            BadFlags: what was asked for cannot be done; nothing was written.
            Stopped: by a signal; a checkpoint was written.
        """
        flags, recipe = self.flags, self.recipe
        recipe.check()
        trackers = report.trackers(flags.report_to)
        if flags.push_to_hub:
            self.repository = hub.create(flags)
        self.found = None
        if flags.resume_from_checkpoint:
            self.found = checkpoints.find(self.folder, flags.resume_from_checkpoint)
            if self.found is None:
                logger.warning("there is no whole checkpoint in %s; the run begins anew", self.folder)
        self.accelerator = accelerator = accelerator_for(flags, self.folder, trackers)
        self.first, self.seed = 0, self._seed()
        torch.manual_seed(mixed(self.seed, "weights") % 2**63)
        recipe.device, recipe.dtype = accelerator.device, DTYPES[accelerator.mixed_precision]
        rows = recipe.rows()
        self.rows, self.set_aside = self._split(rows)
        networks = dict(recipe.load())
        self.plan = Plan(
            rows=len(self.rows),
            batch=flags.train_batch_size,
            processes=accelerator.num_processes,
            accumulation=flags.gradient_accumulation_steps,
            asked=flags.max_train_steps,
            epochs=flags.num_train_epochs,
        )
        if flags.dry_run:
            self.plan.asked = 2
        self._make_ready(networks)
        self._tell(networks)
        recipe.prepare(rows)
        if self.found:
            state.take_up(self, self.found)
        self._steps()
        if flags.dry_run:
            return
        self._finish()

    # -- before the first step

    def _seed(self) -> int:
        """The run's seed: the one given, a resumed run's own, or one drawn by lot, the same for all processes."""
        from accelerate.utils import broadcast_object_list

        if self.found:
            return int(checkpoints.state_of(self.found)["seed"])
        drawn = [self.flags.seed if self.flags.seed is not None else secrets.randbits(31)]
        return int(broadcast_object_list(drawn)[0])

    def _split(self, rows: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Rows to train on, and rows that are set aside."""
        aside = self.flags.held_out
        if not aside:
            return rows, ()
        if aside >= len(rows):
            raise BadFlags(f"--held_out={aside} of {len(rows)} pictures leaves none to train on")
        mixed_up = order(len(rows), self.seed, -2).tolist()
        return Some(rows, sorted(mixed_up[aside:])), Some(rows, sorted(mixed_up[:aside]))

    def _make_ready(self, networks: dict[str, nn.Module]) -> None:
        flags, accelerator, plan = self.flags, self.accelerator, self.plan
        for network in networks.values():
            network.train().to(accelerator.device)
            if flags.gradient_checkpointing:
                checkpoint_activations(network)
        self.averages: dict[str, Average] = (
            {name: self.recipe.average(network) for name, network in networks.items()} if flags.use_ema else {}
        )
        self.parameters = self.recipe.trained(networks)
        rate = flags.learning_rate
        if flags.scale_lr:
            rate *= plan.batch * plan.processes * plan.accumulation
        self.rate = rate
        self.factor = rates.factor(
            flags.lr_scheduler,
            warmup=flags.lr_warmup_steps,
            total=plan.total,
            cycles=flags.lr_num_cycles if flags.lr_scheduler == "cosine_with_restarts" else None,
            power=flags.lr_power,
            rules=flags.lr_step_rules,
            rate=rate or 1.0,
        )
        optimiser = optimisers.make(flags, self.parameters, rate)
        if flags.torch_compile:
            networks = {name: torch.compile(network) for name, network in networks.items()}  # type: ignore[misc]
        self.bare = networks
        *wrapped, self.optimiser = accelerator.prepare(*networks.values(), optimiser)
        self.networks = dict(zip(networks, wrapped, strict=True))

    def _tell(self, networks: Mapping[str, nn.Module]) -> None:
        plan, trained = self.plan, sum(p.numel() for p in self.parameters)
        said = {
            "trained": f"{trained:,} numbers in {', '.join(networks)}",
            "pictures": f"{plan.rows:,}" + (f", and {len(self.set_aside)} set aside" if len(self.set_aside) else ""),
            "steps": f"{plan.total:,}, of {plan.pictures} pictures each" if not self.flags.dry_run else "two, to try",
            "seed": str(self.seed),
            "on": f"{self.accelerator.device}, {plan.processes} process{'es' if plan.processes > 1 else ''}, "
            f"{self.accelerator.mixed_precision if self.accelerator.mixed_precision != 'no' else 'fp32'}",
            **self.recipe.summary(),
        }
        if self.accelerator.is_main_process:
            for name, text in said.items():
                print(f"{name:>9}: {text}", file=sys.stderr)

    # -- the steps

    def _steps(self) -> None:
        flags, plan, accelerator = self.flags, self.plan, self.accelerator
        self.logs = None if flags.dry_run else self._open_logs()
        bar = self._bar()
        batches = self._batches(self.first * plan.accumulation)
        began = time.perf_counter()
        with Signals() as self.signals:
            for step in range(self.first, plan.total):
                began = time.perf_counter()
                values = [self._micro(next(batches), step) for _ in range(plan.accumulation)]
                self.recipe.after_step(self.networks)
                for name, average in self.averages.items():
                    average.update(accelerator.unwrap_model(self.networks[name]))
                done = step + 1
                row = self._measured(done, values, time.perf_counter() - began)
                bar.set_postfix(loss=f"{row['loss']:.4f}", lr=f"{row['learning_rate']:.2g}", refresh=False)
                bar.update()
                if not flags.dry_run:
                    self._after(done, row)
        bar.close()
        if flags.dry_run:
            whole = dataclasses.replace(plan, asked=flags.max_train_steps)
            report.tell_costs(time.perf_counter() - began, memory_used(), whole.total, whole.pictures)

    def _batches(self, first: int) -> Iterator[dict[str, Any]]:
        flags, accelerator = self.flags, self.accelerator
        places = Places(flags.train_batch_size, accelerator.process_index, accelerator.num_processes, first)
        stream = Stream(self.rows, self.recipe.example, self.seed)
        workers = flags.dataloader_num_workers
        return iter(
            DataLoader(
                stream, batch_sampler=places, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0
            )
        )

    def _micro(self, batch: dict[str, Any], step: int) -> Tensor:
        """Gradients of one batch; at the last of a step, the optimiser's step."""
        accelerator, flags = self.accelerator, self.flags
        places = batch.pop("place")
        torch.manual_seed(mixed(self.seed, places[0], "layers"))  # for dropout within the networks
        batch = {name: v.to(accelerator.device) if isinstance(v, Tensor) else v for name, v in batch.items()}
        draws = self.recipe.draws(self.seed, places)
        with accelerator.accumulate(*self.networks.values()):
            with accelerator.autocast():
                loss = self.recipe.loss(self.networks, batch, draws).mean()
            accelerator.backward(loss)
            self.norm: Any = None
            if accelerator.sync_gradients:
                for group in self.optimiser.param_groups:
                    group["lr"] = self.rate * self.factor(step)
                limit = flags.max_grad_norm or math.inf
                self.norm = accelerator.clip_grad_norm_(self.parameters, limit)
            self.optimiser.step()
            self.optimiser.zero_grad()
        return loss.detach()

    def _measured(self, done: int, values: Sequence[Tensor], seconds: float) -> dict[str, float | None]:
        loss = self.accelerator.reduce(torch.stack(list(values)).mean(), "mean").item()
        if not math.isfinite(loss):
            raise RuntimeError(
                f"the loss is {loss} at step {done}; try a lower --learning_rate, or --mixed_precision=bf16 or no"
            )
        return {
            "step": done,
            "loss": loss,
            "learning_rate": self.rate * self.factor(done - 1),
            "gradient_norm": None if self.norm is None else float(self.norm),
            "pictures_per_second": self.plan.pictures / seconds,
        }

    def _after(self, done: int, row: dict[str, float | None]) -> None:
        """What is due after a step: measurements, pictures, checkpoints."""
        flags, plan = self.flags, self.plan
        if len(self.set_aside) and (done % flags.held_out_steps == 0 or done in (1, plan.total)):
            row["held_out_loss"] = self._held_out_loss()
        self._log(row)
        stop = self._stop()
        due = flags.checkpointing_steps and (done % flags.checkpointing_steps == 0)
        if due or stop:
            path = state.keep(self, done)
        if self.recipe.validates_at(done, plan.total, plan.per_epoch) and not stop:
            self._validate(done)
        if self.recipe.saves_at(done, plan.total, plan.per_epoch) and done < plan.total and not stop:
            self.recipe.step = done
            self._save()
            self.recipe.step = None
        if stop:
            raise Stopped(stop, path)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """The loss on the rows set aside, with the same noise and levels every time."""
        stream = Stream(self.set_aside, self.recipe.example, seed=0)
        size, losses = self.flags.train_batch_size, []
        for network in self.networks.values():
            network.eval()
        for begin in range(0, len(self.set_aside), size):
            batch = collate([stream[i] for i in range(begin, min(begin + size, len(self.set_aside)))])
            places = batch.pop("place")
            batch = {n: v.to(self.accelerator.device) if isinstance(v, Tensor) else v for n, v in batch.items()}
            with self.accelerator.autocast():
                losses.append(self.recipe.loss(self.networks, batch, self.recipe.draws(0, places)))
        for network in self.networks.values():
            network.train()
        return torch.cat(losses).mean().item()

    # -- what is written

    def _open_logs(self) -> report.Table | None:
        flags = self.flags
        if not self.accelerator.is_main_process:
            return None
        logs = self.folder / flags.logging_dir
        table = report.Table(logs / "metrics.csv", self.first)
        if self.accelerator.log_with:
            told = {n: v for n, v in flags.record().items() if isinstance(v, (int, float, str, bool))}
            self.accelerator.init_trackers(flags.tracker_project_name, told)
        return table

    def _log(self, row: dict[str, float | None]) -> None:
        if self.logs is not None:
            self.logs.add(row)
        values = {name: value for name, value in row.items() if value is not None and name != "step"}
        self.accelerator.log(values, step=int(row["step"] or 0))

    def trained(self) -> dict[str, Any]:
        """The networks as they are to be used: the averages, where there are some."""
        unwrapped = {name: self.accelerator.unwrap_model(network) for name, network in self.networks.items()}
        averaged = {name: average.network for name, average in self.averages.items()}
        return {**unwrapped, **averaged}

    def _validate(self, done: int) -> None:
        if not self.accelerator.is_main_process:
            return
        with torch.random.fork_rng():
            images = self.recipe.pictures(self.trained(), done)
        for network in self.networks.values():
            network.train()
        if images:
            report.add_to_sheet(self.folder / "validation", done, images)

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.recipe.save(self.trained(), self.folder)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> None:
        self._save()
        if self.logs is not None:
            self.logs.close()
            logs = self.folder / self.flags.logging_dir
            report.draw_curves(logs / "curves.png", report.read_table(logs / "metrics.csv"))
        self.accelerator.end_training()
        if self.flags.push_to_hub and self.accelerator.is_main_process:
            hub.push(self.repository, self.folder, self.recipe)

    # -- signals, bars, costs

    def _stop(self) -> int | None:
        """The number of a signal that some process got."""
        number = self.signals.told or 0
        if self.accelerator.num_processes > 1:
            told = torch.tensor(number, device=self.accelerator.device)
            number = int(self.accelerator.gather(told).max().item())
        return number or None

    def _bar(self) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self.plan.total,
            initial=self.first,
            desc=type(self.recipe).__name__,
            mininterval=0.5,
            disable=not self.accelerator.is_local_main_process,
        )


def train(recipe: Recipe) -> None:
    """Run a recipe from its flags to its result. See :class:`Run`."""
    Run(recipe)()
