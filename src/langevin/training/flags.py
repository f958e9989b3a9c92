"""What a training command takes: flags as fields of a dataclass, with the original's names and defaults.

Each recipe's flags are a subclass; what a flag means stands in the class's docstring, its type and range in the field's
annotation, and both are all that the command line, a TOML file and ``--help`` need.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar, get_args, get_origin

from langevin.checks import Count, Range, Share, bare, checked, hints
from langevin.signatures import argument_docs
from langevin.training.rates import Name as RateName

F = TypeVar("F", bound="Flags")
Rate = Annotated[float, Range(0)]
Whole = Annotated[int, Range(0)]
Filter = Literal["nearest", "nearest_exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]


class BadFlags(ValueError):
    """Flags that cannot be trained with; one line that says what was given, what is allowed, and what to do."""

    exit_code = 2


@dataclass(kw_only=True)
class Flags:
    """What every recipe takes.

    Args:
        output_dir: folder for the result, checkpoints and curves.
        seed: of all that is drawn: the order of pictures, crops, noise, levels. Drawn by lot where none is given.
        train_batch_size: pictures per process and step.
        gradient_accumulation_steps: how many batches make one step of the optimiser.
        max_train_steps: steps of the optimiser; in place of epochs.
        num_train_epochs: how often every picture is used.
        gradient_checkpointing: less memory, a third more time: activations are computed again in the backward pass.
        learning_rate: the highest.
        scale_lr: times accumulation, batch and processes.
        lr_scheduler: linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup or
            piecewise_constant. Counted in steps of the optimiser.
        lr_warmup_steps: of a linear rise from 0; constant has none.
        lr_num_cycles: restarts of cosine_with_restarts.
        lr_power: of polynomial.
        lr_step_rules: of piecewise_constant, such as 1:10,0.1:20,0.01.
        optimizer: adamw, adafactor (transformers) or prodigy (prodigyopt); learning_rate 1 for the last.
        use_8bit_adam: AdamW of bitsandbytes.
        adam_beta1, adam_beta2, adam_epsilon, adam_weight_decay: of AdamW.
        max_grad_norm: gradients are shortened to this length; 0 leaves them.
        set_grads_to_none: always so here.
        mixed_precision: no, fp16 or bf16; where none is given, what accelerate is configured for.
        allow_tf32: faster matrix products on NVIDIA's cards since Ampere.
        enable_xformers_memory_efficient_attention: always so here, by PyTorch itself.
        torch_compile: compile the trained networks.
        dataloader_num_workers: processes that read pictures.
        use_ema: train an average of the weights too, which is what is saved in the end.
        offload_ema: keep it on the CPU.
        foreach_ema: always so here.
        checkpointing_steps: steps of the optimiser from checkpoint to checkpoint; 0 for none but the last.
        checkpoints_total_limit: older ones go when a new one is whole.
        resume_from_checkpoint: "latest", or a checkpoint's name or folder.
        validation_steps: steps of the optimiser from one row of pictures to the next.
        held_out: pictures that are set aside; the loss on them is measured with the same noise every time.
        held_out_steps: steps of the optimiser from one such measurement to the next.
        report_to: tensorboard, wandb, comet_ml, all or none; a table (metrics.csv) and a picture of the curves are
            always written.
        logging_dir: folder below output_dir for them.
        tracker_project_name: name of the project there.
        push_to_hub: send the result to the hub, without checkpoints.
        hub_token, hub_model_id: as whom, and under which name; output_dir's by default.
        local_rank: set by launchers.
        dry_run: say what would be trained, try two steps for time and memory, and write nothing.
    """

    output_dir: str = "trained"
    seed: Whole | None = None
    train_batch_size: Count = 16
    gradient_accumulation_steps: Count = 1
    max_train_steps: Annotated[int, Range(1)] | None = None
    num_train_epochs: Count = 100
    gradient_checkpointing: bool = False
    learning_rate: Rate = 1e-4
    scale_lr: bool = False
    lr_scheduler: RateName = "constant"
    lr_warmup_steps: Whole = 500
    lr_num_cycles: Count = 1
    lr_power: Rate = 1.0
    lr_step_rules: str | None = None
    optimizer: Literal["adamw", "adafactor", "prodigy"] = "adamw"
    use_8bit_adam: bool = False
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Rate = 1e-8
    adam_weight_decay: Rate = 1e-2
    max_grad_norm: Rate = 1.0
    set_grads_to_none: bool = False
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    allow_tf32: bool = False
    enable_xformers_memory_efficient_attention: bool = False
    torch_compile: bool = False
    dataloader_num_workers: Whole = 0
    use_ema: bool = False
    offload_ema: bool = False
    foreach_ema: bool = False
    checkpointing_steps: Whole = 500
    checkpoints_total_limit: Count | None = None
    resume_from_checkpoint: str | None = None
    validation_steps: Count | None = None
    held_out: Whole = 0
    held_out_steps: Count = 100
    report_to: Literal["tensorboard", "wandb", "comet_ml", "all", "none"] = "tensorboard"
    logging_dir: str = "logs"
    tracker_project_name: str = "langevin"
    push_to_hub: bool = False
    hub_token: str | None = None
    hub_model_id: str | None = None
    local_rank: int = -1
    dry_run: bool = False

    #: flags that have no sensible default
    required: ClassVar[tuple[str, ...]] = ()

    def record(self) -> dict[str, Any]:
        """What is written down of a run: all flags but secrets."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "hub_token"}

    def check(self) -> None:
        """Refuse what cannot be trained with, before anything is loaded.

        Raises:
            BadFlags: flags that are missing, contradict each other, or need what is not there.
        """
        for name in self.required:
            if not getattr(self, name):
                raise BadFlags(f"--{name} is missing")
        if self.lr_scheduler == "piecewise_constant" and not self.lr_step_rules:
            raise BadFlags("--lr_scheduler=piecewise_constant needs --lr_step_rules, such as 1:10,0.1:20,0.01")
        if self.use_8bit_adam and self.optimizer != "adamw":
            raise BadFlags(f"--use_8bit_adam is AdamW, and --optimizer={self.optimizer} is another; give one of them")
        if self.hub_token and self.report_to == "wandb":
            raise BadFlags(
                "--hub_token would be shown to everybody who sees the run at wandb; log in with hf auth login"
            )
        if Path(self.output_dir).expanduser().is_file():
            raise BadFlags(f"--output_dir={self.output_dir} is a file; a folder's name is needed")


@dataclass(kw_only=True)
class PictureFlags(Flags):
    """What recipes take that train on a set of pictures.

    Args:
        dataset_name: a data set on the hub, or a folder: of pictures, of parquet files, or of save_to_disk.
        dataset_config_name: its configuration.
        train_data_dir: a folder of pictures, with metadata.jsonl or metadata.csv, or texts in .txt files beside them.
        cache_dir: where data sets of the hub are kept.
        image_column: its column of pictures.
        max_train_samples: use so many, drawn with the seed.
        resolution: side of the square that is trained on, in pixels.
        center_crop: cut the square from the middle; at random otherwise.
        random_flip: mirror every other picture.
        image_interpolation_mode: how pictures are resized.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_data_dir: str | None = None
    cache_dir: str | None = None
    image_column: str = "image"
    max_train_samples: Count | None = None
    resolution: Annotated[int, Range(8, 2**14)] = 512
    center_crop: bool = False
    random_flip: bool = False
    image_interpolation_mode: Filter = "lanczos"

    def check(self) -> None:
        super().check()
        if not (self.dataset_name or self.train_data_dir):
            raise BadFlags("there are no pictures: give --dataset_name or --train_data_dir")
        if self.train_data_dir and not Path(self.train_data_dir).expanduser().is_dir():
            raise BadFlags(f"--train_data_dir={self.train_data_dir} is no folder")


# -- from the command line, and from files ---------------------------------------------------------------------------


def parse(kind: type[F], arguments: Sequence[str], name: str) -> F:
    """Flags from a command line.

    Flags are ``--flag value`` or ``--flag=value``, and may be cut short where it is clear which is meant.
    ``--config run.toml`` reads flags from a file, which those of the command line go before.

    Raises:
        BadFlags: unknown flags, and values of another type or range; the nearest known flag is named.
    """
    parser = parser_of(kind, name)
    given, unknown = parser.parse_known_args([_underscored(argument) for argument in arguments])
    if unknown:
        raise BadFlags(_unknown(kind, unknown[0]))
    values = vars(given)
    file = values.pop("config", None)
    return made(kind, {**(read_file(kind, file) if file else {}), **values})


def made(kind: type[F], values: Mapping[str, Any]) -> F:
    """Flags from values, each held against its type and range."""
    known = hints(kind)  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise BadFlags(_unknown(kind, name))
    try:
        fitting = {name: checked(f"--{name}", value, known[name]) for name, value in values.items()}
    except ValueError as error:
        raise BadFlags(str(error)) from None
    return kind(**fitting)


def read_file(kind: type[Flags], path: str) -> dict[str, Any]:
    """Flags from a TOML file.

    Raises:
        BadFlags: there is no such file, it is no TOML, or has unknown names.
    """
    toml = _toml()
    try:
        with open(Path(path).expanduser(), "rb") as file:
            values = toml.load(file)
    except OSError as error:
        raise BadFlags(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadFlags(f"--config {path} is no TOML: {error}") from None
    return {name.replace("-", "_"): value for name, value in values.items()}


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    import tomli

    return tomli


def _underscored(argument: str) -> str:
    """``--train-batch-size=4`` as ``--train_batch_size=4``."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if argument.startswith("--") else argument


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadFlags(message.replace("argument ", "", 1))


def parser_of(kind: type[Flags], name: str) -> argparse.ArgumentParser:
    """The command line of a recipe."""
    first = (kind.__doc__ or "").strip().split("\n")[0]
    parser = _Parser(prog=name, description=first, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="a TOML file with flags", default=argparse.SUPPRESS)
    told = argument_docs(kind)
    for field in dataclasses.fields(kind):
        hint = hints(kind)[field.name]  # type: ignore[arg-type]
        shown = "" if field.default in (None, False) else f" [{field.default}]"
        options: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": (told.get(field.name, "") + shown).replace("%", "%%"),
        }
        plain = _plain(hint)
        if plain is bool:
            options["action"] = "store_true"
        elif get_origin(plain) is Literal:
            options |= {"choices": get_args(plain), "metavar": "|".join(get_args(plain))}
        elif get_origin(plain) in (list, Sequence):
            options |= {"nargs": "+", "type": get_args(plain)[0]}
        else:
            options |= {"type": plain, "metavar": {int: "N", float: "X", str: "TEXT"}[plain]}
        parser.add_argument(f"--{field.name}", **options)
    return parser


def _plain(hint: Any) -> Any:
    """A flag's type without None and ranges."""
    options = [option for option in get_args(bare(hint)) or [bare(hint)] if option is not type(None)]
    if get_origin(bare(hint)) in (Literal, list, Sequence):
        return bare(hint)
    return options[0]


def _unknown(kind: type[Flags], given: str) -> str:
    name = re.sub(r"^-*", "", given.split("=")[0])
    known = [field.name for field in dataclasses.fields(kind)]
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.5)
    return f"there is no flag {given!r}; " + (f"nearest: --{close[0]}" if close else "--help lists all")
