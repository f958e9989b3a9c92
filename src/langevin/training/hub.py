"""Results on the hub: the repository first, so that what cannot work fails before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from langevin.training.flags import BadFlags, Flags

_LEFT_OUT = ["checkpoint-*", ".checkpoint-*", "**/.*", "step_*", "epoch_*"]


def create(flags: Flags) -> str:
    """Make the repository, if it is not there.

    Returns:
        Its id.

    Raises:
        BadFlags: the hub cannot be reached, or not with this token.
    """
    from huggingface_hub import create_repo

    name = flags.hub_model_id or Path(flags.output_dir).expanduser().resolve().name
    try:
        return create_repo(name, exist_ok=True, token=flags.hub_token).repo_id
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise BadFlags(
            f"--push_to_hub: cannot make {name} on the hub ({said}); hf auth login, or leave it out"
        ) from None


def push(repository: str, folder: Path, recipe: Any) -> None:
    """Send the result with a card, and neither checkpoints nor the optimiser's state."""
    from huggingface_hub import upload_folder

    write_card(folder, recipe)
    upload_folder(
        repo_id=repository, folder_path=str(folder), token=recipe.flags.hub_token, ignore_patterns=_LEFT_OUT,
        commit_message="Trained with langevin",
    )  # fmt: skip


def write_card(folder: Path, recipe: Any) -> None:
    """``README.md``: what was trained on what, how, and how it went. One that is there already stays."""
    path = folder / "README.md"
    if path.exists():
        return
    flags = recipe.flags
    base = getattr(flags, "pretrained_model_name_or_path", None)
    data = getattr(flags, "dataset_name", None)
    head = ["---", "library_name: diffusers", "tags:", *(f"- {tag}" for tag in recipe.tags)]
    head += [f"base_model: {base}"] if base and not Path(base).exists() else []
    head += ["inference: true", "---", ""]
    command = " ".join(["langevin train", *(_quoted(argument) for argument in sys.argv[1:] if "token" not in argument)])
    text = [f"# {folder.resolve().name}", "", (type(recipe).__doc__ or "").strip().split("\n")[0], ""]
    text += [f"From `{base}`." if base else "From nothing.", f"Data: `{data}`." if data else "", ""]
    if (folder / "validation" / "sheet.png").exists():
        text += ["![Pictures from fixed seeds, later steps below](validation/sheet.png)", ""]
    if (folder / flags.logging_dir / "curves.png").exists():
        text += [f"![Loss and learning rate]({flags.logging_dir}/curves.png)", ""]
    path.write_text("\n".join([*head, *text, "Command:", "", f"    {command}", ""]), encoding="utf-8")


def _quoted(argument: str) -> str:
    import shlex

    return shlex.quote(argument)
