"""Saving is all or nothing: whatever happens in the middle, the folder holds the old checkpoint or the new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from langevin.checkpoints import saving, weights
from tests.checkpoints.nets import Net, names, one_clear_line, same

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def make(seed: int, width: int) -> Net:
    torch.manual_seed(seed)
    return Net(width=width).eval()


OLD, NEW = make(1, 8), make(2, 16)


def checked(folder: Path, old: Net = OLD, new: Net = NEW) -> str:
    """Which of the two networks the folder holds; fails if neither, or if the user's files suffered."""
    loaded = Net.from_pretrained(folder)
    assert (folder / "notes/mine.txt").read_text() == "the user's"
    assert (folder / "README.md").read_text() == "card"
    if same(loaded, old):
        return "old"
    assert same(loaded, new)
    return "new"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    OLD.save_pretrained(place, max_shard_size="500B")
    (place / "notes").mkdir()
    (place / "notes/mine.txt").write_text("the user's")
    (place / "README.md").write_text("card")
    return place


def killed_at(step: int, act) -> bool:
    """Run ``act`` in a child that kills itself at its ``step``-th contact with the file system. True if it did."""
    child = os.fork()
    if child == 0:
        count = 0

        def watch(event, args):
            nonlocal count
            if event.startswith(("open", "os.", "shutil.", "ctypes.")):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_killed_at_any_step_the_folder_is_whole(folder):
    seen, step, stride = [], 1, 1
    while killed_at(step, lambda: NEW.save_pretrained(folder)):
        seen.append(checked(folder))
        if seen[-1] == "new":
            OLD.save_pretrained(folder, max_shard_size="500B")
        step += stride
    assert len(seen) > 50
    assert {"old", "new"} == set(seen)
    assert seen == sorted(seen, reverse=True), "once new, always new"
    assert checked(folder) == "new"
    assert len(names(folder)) == 4, "no shards of the old network"
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "leftovers of dead processes are cleared"


def test_killed_at_any_step_while_files_are_replaced_one_by_one_no_file_is_half(folder, monkeypatch):
    monkeypatch.setattr(saving, "_exchange", lambda a, b: False)
    step = 1
    twin = make(3, 8)  # of the same shapes, so that any mixture can be read
    OLD.save_pretrained(folder)
    while killed_at(step, lambda: twin.save_pretrained(folder)):
        assert checked(folder, OLD, twin) in ("old", "new")
        step += 3
    assert checked(folder, OLD, twin) == "new"


def test_killed_at_any_time_from_outside(tmp_path):
    """A process saves in turns two networks of 10 MB; it is killed again and again."""
    script = f"""
import sys; sys.path[:0] = [{os.getcwd()!r}]
import torch
from torch import nn
from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
class Big(ModelMixin):
    @register_to_config
    def __init__(self, value=0.0, size=500):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(10))
        for p in self.parameters(): p.data.fill_(value)
if __name__ == "__main__":
    one, two = Big(1.0), Big(2.0)
    one.save_pretrained(sys.argv[1]); print("ready", flush=True)
    while True:
        two.save_pretrained(sys.argv[1], max_shard_size="2MB"); one.save_pretrained(sys.argv[1])
"""
    (tmp_path / "script.py").write_text(script)
    spaces: dict = {"__name__": "script"}
    exec(compile(script, "script", "exec"), spaces)
    for k in range(3):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "script.py", tmp_path / "model"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03 + 0.037 * k)
        process.kill()
        process.wait()
        loaded = spaces["Big"].from_pretrained(tmp_path / "model")
        values = {float(p.min()) for p in loaded.parameters()} | {float(p.max()) for p in loaded.parameters()}
        assert values == {loaded.config.value}


@pytest.mark.parametrize("broken", ["write", "carry", "fsync", "exchange", "interrupt"])
def test_a_failure_in_the_middle_leaves_the_old_folder_and_no_leftovers(folder, monkeypatch, broken):
    before = {name: (folder / name).read_bytes() for name in names(folder)}

    def fail(*args, **kwargs):
        raise KeyboardInterrupt if broken == "interrupt" else OSError(28, "No space left on device")

    place, name = {
        "write": (weights, "write"),
        "carry": (saving, "_carry_over"),
        "fsync": (saving, "sync_tree"),
        "exchange": (saving, "_exchange"),
        "interrupt": (weights, "write"),
    }[broken]
    monkeypatch.setattr(place, name, fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        NEW.save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


# -- what stays and what goes


def test_files_of_the_user_stay_and_stale_weights_go(folder):
    OLD.save_pretrained(folder, variant="fp16")
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    (folder / "link").symlink_to("README.md")
    (folder / "notes/empty").mkdir()
    (folder / "model.onnx").write_text("other use")
    NEW.save_pretrained(folder)
    assert names(folder) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors",
        "link",
        "model.onnx",
        "notes/mine.txt",
    ]
    assert (folder / "link").is_symlink()
    assert (folder / "notes/empty").is_dir()
    NEW.save_pretrained(folder, variant="fp16", safe_serialization=False)
    assert "diffusion_pytorch_model.fp16.safetensors" not in names(folder)
    assert "diffusion_pytorch_model.safetensors" in names(folder)
    assert same(NEW, Net.from_pretrained(folder, variant="fp16"))


def test_files_kept_are_the_same_files(folder):
    with (folder / "notes/log.txt").open("w") as log:  # somebody has it open while we save
        NEW.save_pretrained(folder)
        log.write("still here")
    assert (folder / "notes/log.txt").read_text() == "still here"


def test_files_added_while_a_save_runs_stay(folder):
    with saving.new_version(folder) as staging:
        (staging / "config.json").write_text("{}")
    real = saving._exchange

    def late(a, b):
        (folder / "notes/late.txt").write_text("late")
        return real(a, b)

    saving._exchange = late
    try:
        NEW.save_pretrained(folder)
    finally:
        saving._exchange = real
    assert (folder / "notes/late.txt").read_text() == "late"


def test_files_have_the_mode_of_any_new_file(folder):
    """safetensors makes them readable for their owner alone."""
    (folder / "new").touch()
    assert {file.stat().st_mode for file in folder.glob("*.safetensors")} == {(folder / "new").stat().st_mode}


def test_permissions_of_the_folder_stay(folder):
    folder.chmod(0o750)
    NEW.save_pretrained(folder)
    assert folder.stat().st_mode & 0o777 == 0o750
    OLD.save_pretrained(folder.parent / "fresh")
    expected = 0o777 & ~_umask()
    assert (folder.parent / "fresh").stat().st_mode & 0o777 == expected


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_saving_by_a_link_saves_where_it_leads(folder):
    link = folder.parent / "latest"
    link.symlink_to(folder)
    NEW.save_pretrained(link)
    assert link.is_symlink()
    assert checked(folder) == "new"


def test_saving_into_the_current_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    NEW.save_pretrained(".")
    assert checked(Path()) == "new"
    assert len(names(folder)) == 4


def test_missing_parents_are_made_and_files_in_the_way_are_told(tmp_path):
    OLD.save_pretrained(tmp_path / "a/b/c")
    assert same(OLD, Net.from_pretrained(tmp_path / "a/b/c"))
    (tmp_path / "file").write_text("x")
    with one_clear_line("Cannot save into", "it is a file"):
        OLD.save_pretrained(tmp_path / "file")
    with one_clear_line("Cannot save into"):
        OLD.save_pretrained(tmp_path / "file/below")


def test_only_the_main_process_saves(tmp_path):
    OLD.save_pretrained(tmp_path / "model", is_main_process=False)
    assert not (tmp_path / "model").exists()


def test_leftovers_of_living_processes_are_left_alone(folder):
    alive = folder.parent / f".model.saving-{os.uname().nodename}-{os.getppid()}-00000000"
    elsewhere = folder.parent / ".model.saving-otherhost-999999999-00000000"
    alive.mkdir()
    elsewhere.mkdir()
    NEW.save_pretrained(folder)
    assert alive.exists()
    assert elsewhere.exists()


def test_weights_are_not_changed_under_a_network_that_was_read_from_them(folder):
    loaded = Net.from_pretrained(folder)
    NEW.save_pretrained(folder)
    assert same(loaded, OLD)
    loaded.save_pretrained(folder)
    assert same(Net.from_pretrained(folder), OLD)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("diffusion_pytorch_model.safetensors", ("diffusers", None)),
        ("diffusion_pytorch_model.fp16.bin", ("diffusers", "fp16")),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", ("diffusers", "fp16")),
        ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", ("diffusers", "fp16")),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", ("diffusers", None)),
        ("diffusion_pytorch_model.safetensors.index.json", ("diffusers", None)),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", ("diffusers", "fp16")),
        ("model.fp16.safetensors", ("transformers", "fp16")),
        ("pytorch_model.bin", ("transformers", None)),
        ("pytorch_model.bin.index.json", ("transformers", None)),
        ("config.json", None),
        ("model_index.json", None),
        ("pytorch_lora_weights.safetensors", None),
        ("model.onnx", None),
        ("flax_model.msgpack", None),
    ],
)
def test_weight_files_are_known_by_name(name, kind):
    assert saving.weights_kind(name) == kind


# -- what others do meanwhile


@pytest.mark.parametrize("moment", ["sync_tree", "_exchange"])
@pytest.mark.parametrize("how", ["replaced", "written", "removed"])
def test_what_somebody_does_to_a_file_while_a_save_runs_holds(folder, monkeypatch, moment, how):
    real = getattr(saving, moment)
    mine = folder / "notes/mine.txt"

    def late(*args):
        if mine.parent.exists():
            if how == "replaced":
                (folder.parent / "draft").write_text("new words")
                os.replace(folder.parent / "draft", mine)
            elif how == "written":
                mine.write_text("new words")
            else:
                mine.unlink(missing_ok=True)
        return real(*args)

    monkeypatch.setattr(saving, moment, late)
    NEW.save_pretrained(folder)
    if how == "removed":
        assert not mine.exists()
    else:
        assert mine.read_text() == "new words"
    assert same(NEW, Net.from_pretrained(folder))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def in_a_process_that_may_write(most: int, act) -> str:
    """What ``act()`` raises, as text, in a child whose files may have ``most`` bytes: as on a full disk."""
    resource = pytest.importorskip("resource")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            act()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as file:
        return file.read()


@pytest.mark.parametrize("safe_serialization", [True, False])
@pytest.mark.parametrize("most", [0, 100, 1000])
def test_where_there_is_no_room_the_old_content_stays_and_nothing_else(folder, most, safe_serialization):
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    said = in_a_process_that_may_write(most, lambda: NEW.save_pretrained(folder, safe_serialization=safe_serialization))
    assert said.startswith("CheckpointError: Cannot write ")
    assert "\n" not in said
    assert str(folder.parent) in said
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_config_alone_is_whole_on_a_full_disk_too(tmp_path):
    OLD.save_config(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    for act in (lambda: NEW.save_config(tmp_path), lambda: NEW.to_json_file(tmp_path / "config.json")):
        assert in_a_process_that_may_write(10, act).startswith(f"CheckpointError: Cannot write {tmp_path}/config.json")
    assert (tmp_path / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_staging_folders_of_processes_that_cannot_be_seen_from_here_are_left_alone(folder):
    """A process in another container has a number that means nothing here; it holds a lock."""
    fcntl = pytest.importorskip("fcntl")
    elsewhere, dead = (folder.parent / f".model.saving-{os.uname().nodename}-999999999-{k}0000000" for k in (1, 2))
    elsewhere.mkdir()
    dead.mkdir()
    (dead / "part").write_text("x")
    handle = os.open(elsewhere, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        NEW.save_pretrained(folder)
        assert elsewhere.exists()
        assert not dead.exists()
    finally:
        os.close(handle)
    NEW.save_pretrained(folder)
    assert not elsewhere.exists()


def test_a_save_under_way_holds_its_staging_folder(folder):
    with saving.new_version(folder) as staging:
        assert saving._is_held(staging)
    assert checked(folder) == "old"


def test_single_files_that_a_killed_process_left_are_cleared(tmp_path):
    NEW.save_config(tmp_path)
    left = tmp_path / f".config.json.saving-{os.uname().nodename}-999999999-00000000"
    left.write_text("{")
    other = tmp_path / f".other.json.saving-{os.uname().nodename}-999999999-00000000"
    other.write_text("{")
    NEW.save_config(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "config.json"]
