"""Data sets: all kinds of folders, what is no picture, and pictures as tensors."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.training.data import Draws, FolderRows, Frame, Framing, Places, Stream, collate, order, picture, rows_of
from langevin.training.flags import BadFlags, PictureFlags, made


def paint(path, size=(20, 16), colour=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def flags(**values):
    return made(PictureFlags, values)


@pytest.fixture
def folder(tmp_path):
    for k in range(3):
        paint(tmp_path / f"{k}.png", colour=(k, 0, 0))
    return tmp_path


def test_metadata_beside_pictures(folder):
    lines = [{"file_name": f"{k}.png", "text": f"number {k}", "more": k} for k in (2, 0)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = FolderRows(folder)
    assert [(row["text"], row["more"]) for row in rows] == [("number 0", 0), ("number 2", 2)]
    assert rows.column_names == ["text", "more", "image"]


def test_metadata_as_csv_in_a_folder_below(folder):
    paint(folder / "sub/a.png")
    (folder / "sub/metadata.csv").write_text("file_name,text\na.png,an a\n")
    assert [row["text"] for row in FolderRows(folder)] == ["an a"]


def test_texts_beside_pictures(folder):
    for k in range(3):
        (folder / f"{k}.txt").write_text(f"number {k}\n")
    assert [row["text"] for row in FolderRows(folder)] == ["number 0", "number 1", "number 2"]


def test_what_is_no_picture_is_named_once_and_left_out(folder, caplog):
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    (folder / "notes.doc").write_text("x")
    (folder / ".DS_Store").write_text("x")
    assert len(FolderRows(folder)) == 3
    assert caplog.text.count("broken.png") == caplog.text.count("notes.doc") == 1
    assert ".DS_Store" not in caplog.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"}', "file_name"),
        ('{"file_name": "../x.png"}', "not in its folder"),
        ('{"file_name": "9.png"}', "9.png"),
        ("{", "metadata.jsonl"),
        ("[1]", "file_name"),
    ],
)
def test_metadata_that_cannot_be_followed_is_refused(folder, line, said):
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(BadFlags, match=said):
        FolderRows(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(BadFlags, match="no pictures"):
        rows_of(flags(train_data_dir=str(tmp_path)))


def test_a_missing_column_is_named_with_those_that_are_there(folder):
    with pytest.raises(BadFlags, match=r"picture.*it has: image"):
        rows_of(flags(train_data_dir=str(folder), image_column="picture"))


@pytest.mark.parametrize("kind", ["parquet", "disk", "disk with splits"])
def test_tables(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (8, 8), (k, 2, 3)) for k in range(4)]
    table = datasets.Dataset.from_dict(
        {"image": images, "text": list("abcd")},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    if kind == "parquet":
        (tmp_path / "data").mkdir()
        table.to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    elif kind == "disk":
        table.save_to_disk(tmp_path)
    else:
        datasets.DatasetDict({"train": table}).save_to_disk(tmp_path)
    rows = rows_of(flags(dataset_name=str(tmp_path), cache_dir=str(tmp_path / "cache")))
    assert [row["text"] for row in rows] == list("abcd")
    assert picture(rows[3]["image"]).getpixel((0, 0)) == (3, 2, 3)


def test_some_samples_are_the_same_for_the_same_seed(folder):
    chosen = [rows_of(flags(train_data_dir=str(folder), max_train_samples=2, seed=seed)) for seed in (1, 1, 2)]
    names = [[row["image"].name for row in rows] for rows in chosen]
    assert names[0] == names[1]
    assert len(names[0]) == 2


# -- pictures as tensors


def test_pictures_are_turned_as_exif_says(tmp_path):
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    turned = picture(tmp_path / "a.png")
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 47), (64, 64), (16, 16)])
@pytest.mark.parametrize("name", ["bilinear", "lanczos", "nearest_exact"])
def test_pictures_are_resized_and_cut_as_the_reference_does(size, name):
    """Its transforms are torchvision's: the short side to the resolution, the long one rounded down; the middle."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, side = Image.fromarray(noise), 24
    framing = Framing(side, side, True, False, name)
    short, long = sorted(size)
    resized = (side, int(side * long / short)) if size[0] <= size[1] else (int(side * long / short), side)
    kind = Image.Resampling["NEAREST" if name.startswith("nearest") else name.upper()]
    expected = image.resize(resized, kind)
    left, top = round((resized[0] - side) / 2), round((resized[1] - side) / 2)
    expected = np.array(expected.crop((left, top, left + side, top + side)), np.float32) / 127.5 - 1
    made_of = framing.apply(image, framing.choose(image.size, random.Random(0)))
    np.testing.assert_allclose(made_of.permute(1, 2, 0), expected, atol=1e-6)


def test_a_random_frame_is_inside_and_mirrors_half_of_them():
    framing, rng = Framing(8, 8, False, True), random.Random(0)
    frames = [framing.choose((20, 10), rng) for _ in range(400)]
    assert {frame.top for frame in frames} == {0}
    assert {frame.left for frame in frames} == {*range(9)}
    assert 150 < sum(frame.mirrored for frame in frames) < 250
    ramp = Image.fromarray(np.tile(np.arange(20, dtype=np.uint8)[None, :, None], (10, 1, 3)))
    plain, mirrored = (Framing(10, 10, True).apply(ramp, Frame(0, 0, m)) for m in (False, True))
    torch.testing.assert_close(plain, mirrored.flip(-1))


# -- order and randomness


def test_an_example_depends_on_its_place_alone():
    def example(index, row, rng):
        return {"x": torch.tensor([index, rng.random()])}

    one, other = (Stream(list(range(5)), example, seed=3) for _ in range(2))
    forward = [one[place]["x"] for place in range(12)]
    backward = [other[place]["x"] for place in reversed(range(12))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert len({x[1].item() for x in forward}) == 12


def test_batches_of_processes_are_parts_of_one():
    def first(places, count):
        return [batch for batch, _ in zip(places, range(count), strict=False)]

    whole = first(Places(4), 3)
    halves = [first(Places(2, k, 2), 3) for k in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert first(Places(4, first=2), 1) == whole[2:]


def test_draws_of_a_row_do_not_depend_on_its_neighbours():
    both, alone = Draws(7, [3, 4]), Draws(7, [4])
    for of in (lambda d, n: d.normal((n, 2, 3)), lambda d, n: d.uniform(), lambda d, n: d.whole(1000)):
        torch.testing.assert_close(of(both, 2)[1:], of(alone, 1))
    assert not torch.equal(Draws(7, [3]).normal((1, 8)), Draws(8, [3]).normal((1, 8)))


def test_draws_are_distributed_as_they_say():
    draws = Draws(0, list(range(4000)))
    normal = draws.normal((4000, 4))
    assert abs(normal.mean().item()) < 0.03
    assert normal.std().item() == pytest.approx(1, abs=0.02)
    assert draws.uniform().mean().item() == pytest.approx(0.5, abs=0.02)
    whole = draws.whole(10)
    assert whole.unique().tolist() == [*range(10)]


def test_every_epoch_has_an_order_of_its_own():
    assert sorted(order(20, 1, 0).tolist()) == [*range(20)]
    assert len({tuple(order(20, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_collate_stacks_tensors_and_lists_the_rest():
    batch = collate([{"x": torch.zeros(2), "t": "a"}, {"x": torch.ones(2), "t": "b"}])
    assert batch["x"].shape == (2, 2)
    assert batch["t"] == ["a", "b"]
