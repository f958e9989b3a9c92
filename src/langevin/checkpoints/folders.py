"""Where a checkpoint is: a local folder, a name in the box, or a hub id; and nothing in it may lead out of it."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langevin.checkpoints.boundary import first_line
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import read_json

logger = logging.getLogger(__name__)

BOX = Path(__file__).resolve().parent.parent / "zoo" / "weights"
"""Folder of the models that come with the library; ``langevin/shapes`` is its folder ``shapes``."""

_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

Choose = Callable[[list[str], Callable[[str], Path]], list[str]]
"""``(names of all files in the repository, fetch one of them) -> names of the files that are needed``."""


def resolve(
    name_or_path: str | os.PathLike,
    *,
    choose: Choose | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool | None = None,
    force_download: bool = False,
    proxies: dict[str, str] | None = None,
) -> Path:
    """The local folder of a checkpoint, downloaded if need be.

    Args:
        name_or_path: a folder; a name in the box, such as ``"langevin/shapes"``; or a hub id, ``"owner/name"``.
        choose: which files of a hub repository are needed; all where None.
        revision: branch, tag or commit on the hub.
        token: the hub's access token, or True for the one that ``hf auth login`` stored.
        cache_dir: where downloads are kept, instead of the hub's own cache.
        local_files_only: take what is in the cache and do not go to the network. The environment variable
            ``HF_HUB_OFFLINE=1`` does the same for everything.
        force_download: download again what is in the cache.
        proxies: accepted for old code; set ``HTTPS_PROXY`` instead.

    Raises:
        CheckpointError: it is nowhere to be found; the message says where it was looked for.
    """
    name = os.fspath(name_or_path)
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, or of a user that is not known
        raise CheckpointError(f"There can be no folder {name[:200]!r}: {first_line(error)}. {_box_line()}") from None
    if re.fullmatch(r"langevin/[\w-]+", name):  # the box's names are never asked of the hub
        boxed = BOX / name.removeprefix("langevin/")
        if boxed.is_dir():
            return boxed
        raise CheckpointError(f"There is no {name!r} in the box, and no folder {folder.absolute()}. {_box_line()}")
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; from_pretrained takes a folder, a name in the box, or a hub id.")
    if not _HUB_ID.fullmatch(name) or ".." in name:
        raise CheckpointError(f"There is no folder {folder.absolute()}. {_box_line()}")
    if proxies:
        logger.warning("proxies is ignored; set the environment variables HTTP_PROXY and HTTPS_PROXY.")
    return _from_hub(name, choose, revision, token, cache_dir, local_files_only, force_download)


def take_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the options of :func:`resolve` out of ``kwargs``, and those of former years that mean nothing now."""
    for former in ("resume_download", "mirror", "local_dir_use_symlinks"):
        kwargs.pop(former, None)
    if "use_auth_token" in kwargs:
        kwargs.setdefault("token", kwargs.pop("use_auth_token"))
    return {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}


def _from_hub(
    name: str,
    choose: Choose | None,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike | None,
    local_files_only: bool | None,
    force_download: bool,
) -> Path:
    looked = f"There is no folder {Path(name).absolute()}, "
    offline = _hub_is_off() if local_files_only is None else local_files_only
    if offline:
        problem = "and going to the hub is switched off (local_files_only=True or HF_HUB_OFFLINE=1)"
    else:
        try:
            import huggingface_hub as hub
        except ImportError:
            raise CheckpointError(looked + "and hub ids need huggingface_hub: pip install huggingface_hub.") from None
        where: dict[str, Any] = {"repo_id": name, "revision": revision, "cache_dir": cache_dir, "token": token}

        def fetch(file: str) -> Path:
            return Path(str(hub.hf_hub_download(filename=file, force_download=force_download, **where)))

        try:
            repository: Any = hub.HfApi(token=token).repo_info(name, revision=revision)
            names = [file.rfilename for file in repository.siblings or []]
            wanted = names if choose is None else choose(names, fetch)
            patterns = [glob.escape(file) for file in wanted]
            return Path(str(hub.snapshot_download(allow_patterns=patterns, force_download=force_download, **where)))
        except CheckpointError:
            raise
        except Exception as error:  # the hub's errors have many bases: HTTP, connection, validation, its own
            problem = _hub_problem(error, name, revision)
    cache = Path(cache_dir) if cache_dir else _hub_cache()
    folder = _in_cache(cache, name, revision)
    if folder is None:
        raise CheckpointError(f"{looked}it is not in the cache {cache}, {problem}. {_box_line()}")
    if not offline:
        logger.warning("%s is taken from the cache as it is there, %s.", name, problem)
    return folder


def _in_cache(cache: Path, name: str, revision: str | None) -> Path | None:
    """The snapshot of a hub id in the cache, complete or not; None where there is none."""
    place = cache / f"models--{name.replace('/', '--')}"
    reference = place / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = place / "snapshots" / commit if commit else None
    return folder if folder and folder.is_dir() else None


def _hub_is_off() -> bool:
    """Whether the environment says not to go to the hub."""
    yes = {"1", "ON", "YES", "TRUE"}
    return any(os.environ.get(name, "").upper() in yes for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def _hub_problem(error: Exception, name: str, revision: str | None) -> str:
    kind = type(error).__name__
    if kind == "RepositoryNotFoundError":
        return f"and huggingface.co has no {name!r} that you may read (a private one needs token=…)"
    if kind == "GatedRepoError":
        return f"and {name!r} is gated: accept its terms on huggingface.co, then pass token=…"
    if kind == "RevisionNotFoundError":
        return f"and {name!r} on huggingface.co has no revision {revision!r}"
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else kind
    return f"and the hub could not be asked ({kind}: {first_line.rstrip('.')})"


def _box_line() -> str:
    box = box_models()
    return f"Models in the box: {', '.join(box)}." if box else "Give a folder, or a hub id such as owner/name."


def only(file: str, subfolder: str | None = None) -> Choose:
    """Choose one file."""
    wanted = f"{subfolder}/{file}" if subfolder else file
    return lambda names, fetch: [name for name in names if name == wanted]


def inside(root: str | os.PathLike, *parts: str | None) -> Path:
    """``root`` joined with ``parts``, which must not lead out of it, by ``..``, an absolute path or a symbolic link.

    The hub's cache is fine: there ``snapshots/<commit>`` has links into ``blobs`` of the same model.

    Raises:
        CheckpointError: the path leads elsewhere.
    """
    top = Path(root)
    given = [part for part in parts if part]
    path = top.joinpath(*given)
    try:
        real_top, real = top.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long or with a zero in it
        said = f"{'/'.join(given)!r}"[:200]
        raise CheckpointError(f"{said} in the checkpoint {top} cannot be opened: {first_line(error)}.") from None
    allowed = [real_top]
    for parent in top.absolute().parents:
        if parent.name.startswith("models--"):
            allowed.append(parent.resolve())
    lexical = Path(os.path.normpath(path.absolute()))
    within = lexical.is_relative_to(os.path.normpath(top.absolute()))
    if not within or not any(real.is_relative_to(place) for place in allowed):
        said = f"{'/'.join(given)!r}"
        to = f" (a link to {real})" if within else ""
        raise CheckpointError(f"{said} in the checkpoint {top} leads out of its folder{to}; it is not opened.")
    return path


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache, else None."""
    return folder.name if folder.parent.name == "snapshots" else None


@dataclass(frozen=True)
class Found:
    """A model on this machine."""

    name: str  #: what ``from_pretrained`` takes
    folder: Path
    kind: str  #: the pipeline's or network's class
    size: int  #: bytes of all files


def box_models() -> list[str]:
    """Names of the models that come with the library."""
    return [found.name for found in _scan((f"langevin/{path.name}", path) for path in _folders(BOX))]


def local_models(cache_dir: str | os.PathLike | None = None) -> list[Found]:
    """The models in the box and those in the hub's cache that langevin could open, in this order.

    Args:
        cache_dir: the cache's folder; the hub's own where None.
    """
    box = _scan((f"langevin/{path.name}", path) for path in _folders(BOX))
    cache = Path(cache_dir) if cache_dir else _hub_cache()
    cached = []
    for repo in _folders(cache):
        snapshots = sorted(_folders(repo / "snapshots"), key=lambda path: path.stat().st_mtime)
        if snapshots and repo.name.startswith("models--"):
            cached.append((repo.name.removeprefix("models--").replace("--", "/"), snapshots[-1]))
    return box + _scan(cached)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("*") if path.is_dir())


def _scan(candidates: Iterable[tuple[str, Path]]) -> list[Found]:
    found = []
    for name, folder in candidates:
        for file in ("model_index.json", "config.json"):
            try:
                config = read_json(folder / file)
            except CheckpointError:
                continue
            kind = config.get("_class_name") or _clip_of(config)
            if isinstance(kind, str):
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                found.append(Found(name, folder, kind, size))
                break
    return found


def _clip_of(config: dict[str, Any]) -> str | None:
    """``CLIPModel`` where the config is that of a CLIP: what transformers has besides is no model for langevin."""
    return "CLIPModel" if config.get("model_type") == "clip" else None


def _hub_cache() -> Path:
    """The hub's cache folder, by the rules of huggingface_hub, without importing it."""
    environment = os.environ
    if place := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return Path(place).expanduser()
    home = environment.get("HF_HOME") or os.path.join(environment.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def push(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    path_in_repo: str | None = None,
) -> Any:
    """Upload a folder to the hub; ``repo_id`` is the folder's name where None."""
    import huggingface_hub as hub

    api = hub.HfApi(token=token)
    repo = api.create_repo(repo_id or Path(folder).name, private=private, exist_ok=True).repo_id
    message = commit_message or "Upload with langevin"
    return api.upload_folder(
        repo_id=repo, folder_path=Path(folder), path_in_repo=path_in_repo, commit_message=message, create_pr=create_pr
    )
