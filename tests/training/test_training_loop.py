"""The loop: runs that survive anything, and are the same on any number of processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langevin.training import checkpoints
from langevin.training.flags import BadFlags
from langevin.training.loop import Plan, Stopped, train
from langevin.training.report import read_table
from tests.training.toy import NET, Toy, toy

WEIGHTS = "diffusion_pytorch_model.safetensors"


def weights(folder):
    return load_file(Path(folder) / WEIGHTS)


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other, atol=1e-5):
    one, other = weights(one), weights(other)
    return all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def test_a_run_learns_and_writes_what_it_says(tmp_path):
    train(toy(tmp_path, max_train_steps=60, train_batch_size=8, checkpointing_steps=0, learning_rate=3e-3))
    rows = read_table(tmp_path / "logs/metrics.csv")
    assert [row["step"] for row in rows] == [*range(1, 61)]
    assert sum(row["loss"] for row in rows[-10:]) < 0.8 * sum(row["loss"] for row in rows[:10])
    assert (tmp_path / "logs/curves.png").exists()
    assert not list(tmp_path.glob("*checkpoint-*"))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(toy(tmp_path / name, seed=seed))
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(
    "flags",
    [{}, dict(use_ema=True), dict(gradient_accumulation_steps=3), dict(lr_scheduler="cosine", lr_warmup_steps=2)],
)
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resumed_run_is_the_unbroken_one(tmp_path, flags, at):
    train(toy(tmp_path / "whole", checkpointing_steps=at, **flags))
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole" / f"checkpoint-{at}").rename(tmp_path / "broken" / f"checkpoint-{at}")
    train(toy(tmp_path / "broken", resume_from_checkpoint="latest", seed=99, **flags))
    assert same(tmp_path / "whole", tmp_path / "broken")
    whole, broken = (read_table(tmp_path / name / "logs/metrics.csv") for name in ("whole", "broken"))
    assert [row["loss"] for row in broken] == [row["loss"] for row in whole][at:]


def test_what_an_interrupted_run_logged_after_its_checkpoint_is_not_there_twice(tmp_path):
    train(toy(tmp_path, max_train_steps=5, checkpointing_steps=3))
    train(toy(tmp_path, max_train_steps=8, checkpointing_steps=3, resume_from_checkpoint="latest"))
    assert [row["step"] for row in read_table(tmp_path / "logs/metrics.csv")] == [*range(1, 9)]


def test_only_the_newest_checkpoints_stay(tmp_path):
    train(toy(tmp_path, checkpointing_steps=1, checkpoints_total_limit=2))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


@pytest.mark.parametrize("damage", ["cut", "gone", "changed", "no manifest", "empty", "manifest"])
def test_a_broken_checkpoint_is_passed_over(tmp_path, damage, caplog):
    train(toy(tmp_path, checkpointing_steps=2))
    path = tmp_path / "checkpoint-6"
    file = path / "unet" / WEIGHTS
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "manifest":
        (path / checkpoints.MANIFEST).write_text('{"files": 3')
    else:
        for one in [path / checkpoints.MANIFEST] if damage == "no manifest" else list(path.rglob("*.*")):
            one.unlink()
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-4"
    assert "checkpoint-6" in caplog.text
    with pytest.raises(BadFlags, match="checkpoint-6"):
        train(toy(tmp_path, resume_from_checkpoint="checkpoint-6"))


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(tmp_path):
    train(toy(tmp_path, checkpointing_steps=3))
    with pytest.raises(BadFlags, match="checkpoint-3, checkpoint-6"):
        train(toy(tmp_path, resume_from_checkpoint="checkpoint-4"))


def in_a_child(work):
    """Do something in a process that is forked off, and give its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        work()
        code = 0
    except Stopped:
        code = 5
    finally:
        os._exit(code)


KILLS = int(os.environ.get("LANGEVIN_KILLS", "60"))


def test_a_run_that_is_killed_again_and_again_ends_as_the_unbroken_one(tmp_path):
    """SIGKILL at random moments, saves included: a checkpoint at every step makes them half of the time."""
    flags = dict(max_train_steps=150, checkpointing_steps=1, checkpoints_total_limit=2, use_ema=True)
    train(toy(tmp_path / "whole", **flags))
    rng, kills, folder = random.Random(0), 0, tmp_path / "broken"
    while kills < KILLS:
        child = in_a_child(lambda: train(toy(folder, resume_from_checkpoint="latest", **flags)))
        before = checkpoints.newest(folder) if folder.exists() else None
        deadline = time.time() + 20
        while time.time() < deadline:  # so that every life gets somewhere
            newest = max((p.name for p in folder.glob("checkpoint-*")), key=_number, default=None)
            if newest and (before is None or _number(newest) > _number(before.name)):
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        kills += 1
        assert checkpoints.newest(folder) is not None
    train(toy(folder, resume_from_checkpoint="latest", **flags))
    assert kills > KILLS // 2
    assert same(tmp_path / "whole", folder)
    assert not list(folder.glob(".checkpoint-*"))
    assert len(list(folder.glob("checkpoint-*"))) == 2


def _number(name):
    return int(name.split("-")[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(tmp_path, number):
    flags = dict(max_train_steps=100_000, checkpointing_steps=0)
    child = in_a_child(lambda: train(toy(tmp_path / "broken", **flags)))
    table = tmp_path / "broken/logs/metrics.csv"
    while not (table.exists() and len(read_table(table)) > 3):
        time.sleep(0.01)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    assert os.WEXITSTATUS(status) == 5
    path = checkpoints.newest(tmp_path / "broken")
    done = checkpoints.state_of(path)["step"]
    train(toy(tmp_path / "whole", max_train_steps=done + 2))
    train(toy(tmp_path / "broken", resume_from_checkpoint="latest", max_train_steps=done + 2))
    assert same(tmp_path / "whole", tmp_path / "broken")


# -- batches, however they are divided


def test_accumulated_batches_are_one_large_batch(tmp_path, monkeypatch):
    monkeypatch.setitem(NET, "dropout", 0.0)
    train(toy(tmp_path / "large", train_batch_size=6))
    train(toy(tmp_path / "small", train_batch_size=2, gradient_accumulation_steps=3))
    assert close(tmp_path / "large", tmp_path / "small", atol=1e-4)


TWO = """
import os, sys, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from langevin.training.loop import train
from tests.training.toy import NET, toy
NET["dropout"] = 0.0
train(toy({folder!r}, **{flags!r}))
"""


def launched(folder, script, processes=2, **flags):
    """Run a toy under torchrun."""
    root = str(Path(__file__).parents[2])
    file = Path(folder).with_suffix(".py")
    file.write_text(TWO.format(root=root, folder=str(folder), flags=flags))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(file)], check=True, env=environment, capture_output=True, timeout=240)


def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path, monkeypatch):
    monkeypatch.setitem(NET, "dropout", 0.0)
    train(toy(tmp_path / "one", train_batch_size=4, checkpointing_steps=3))
    launched(tmp_path / "two", TWO, train_batch_size=2, checkpointing_steps=3)
    assert close(tmp_path / "one", tmp_path / "two", atol=1e-4)
    losses = [[row["loss"] for row in read_table(tmp_path / name / "logs/metrics.csv")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    # and two may be taken up by one
    (tmp_path / "again").mkdir()
    (tmp_path / "two/checkpoint-3").rename(tmp_path / "again/checkpoint-3")
    train(toy(tmp_path / "again", train_batch_size=4, resume_from_checkpoint="latest"))
    assert close(tmp_path / "one", tmp_path / "again", atol=1e-4)


def test_every_picture_is_used_once_in_an_epoch(tmp_path):
    seen = []

    class Watched(Toy):
        def loss(self, networks, batch, draws):
            seen.extend(batch["index"])
            return super().loss(networks, batch, draws)

    train(Watched(toy(tmp_path, pictures=7, train_batch_size=3, max_train_steps=7).flags))
    epochs = [seen[i : i + 7] for i in range(0, 21, 7)]
    assert all(sorted(epoch) == [*range(7)] for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_length_of_a_run_is_counted_in_steps_of_the_optimiser():
    plan = Plan(rows=10, batch=2, processes=1, accumulation=2, asked=None, epochs=4)
    assert (plan.per_epoch, plan.total, plan.pictures) == (3, 12, 4)
    assert Plan(10, 2, 2, 1, None, 4).total == 12
    assert Plan(10, 2, 2, 1, 7, 4).total == 7


# -- flags that change the loop


def test_gradients_are_shortened(tmp_path):
    """With SGD in place of Adam, which does not care, the first step is as long as the limit says."""
    norms = {}
    for limit in (1e-7, 1000.0):
        train(
            toy(tmp_path / str(limit), max_grad_norm=limit, max_train_steps=1, adam_epsilon=1.0, adam_weight_decay=0.0)
        )
        train(toy(tmp_path / "start", max_train_steps=1, learning_rate=0.0, adam_weight_decay=0.0))
        start, end = weights(tmp_path / "start"), weights(tmp_path / str(limit))
        norms[limit] = sum((end[name] - start[name]).square().sum() for name in start).sqrt().item()
    assert norms[1e-7] < 1e-6 < norms[1000.0]


def test_the_average_is_what_is_saved(tmp_path):
    train(toy(tmp_path / "plain", checkpointing_steps=6))
    train(toy(tmp_path / "averaged", use_ema=True, checkpointing_steps=6))
    assert not same(tmp_path / "plain", tmp_path / "averaged")
    kept = tmp_path / "averaged/checkpoint-6"
    assert same(kept / "unet", tmp_path / "plain")
    assert same(kept / "unet_ema", tmp_path / "averaged")


def test_pictures_set_aside_are_not_trained_on_and_measured_alike_each_time(tmp_path):
    train(toy(tmp_path, held_out=3, held_out_steps=2, learning_rate=0.0, adam_weight_decay=0.0))
    rows = read_table(tmp_path / "logs/metrics.csv")
    measured = {row["step"]: row["held_out_loss"] for row in rows if "held_out_loss" in row}
    assert list(measured) == [1, 2, 4, 6]
    assert len(set(measured.values())) == 1
    assert len({row["loss"] for row in rows}) == len(rows)
    with pytest.raises(BadFlags, match="held_out"):
        train(toy(tmp_path / "none", held_out=10))


def test_a_loss_that_is_no_number_ends_the_run_with_a_word_of_advice(tmp_path):
    class Broken(Toy):
        def loss(self, networks, batch, draws):
            return super().loss(networks, batch, draws) * float("nan")

    with pytest.raises(RuntimeError, match="learning_rate"):
        train(Broken(toy(tmp_path).flags))


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    train(toy(tmp_path / "dry", dry_run=True, max_train_steps=5000))
    assert not (tmp_path / "dry").exists()
    said = capsys.readouterr().err
    assert "5,000 steps" in said
    assert "GiB" in said


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(toy(tmp_path, report_to="tensorboard", tracker_project_name="toy"))
    events = EventAccumulator(str(tmp_path / "logs/toy")).Reload()
    assert [scalar.step for scalar in events.Scalars("loss")] == [*range(1, 7)]


def test_a_tracker_that_is_not_there_is_told_of_and_missed_by_nobody(tmp_path, monkeypatch, caplog):
    from langevin.training import report

    monkeypatch.setattr(report, "_PACKAGES", {"wandb": "no_such_package"})
    train(toy(tmp_path, report_to="wandb"))
    assert "no_such_package" in caplog.text
    assert len(read_table(tmp_path / "logs/metrics.csv")) == 6
