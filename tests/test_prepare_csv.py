"""Data sets from a table of your own."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from helpers import TINY
from utils import prepare_csv
from utils.data import preparing
from utils.data.datasets import DATASETS, dataset_spec
from utils.data.label_files import IGNORED
from utils.data.samples import load_split
from utils.runtime.errors import UserError

LISTS = "image,labels\na.png,dog;cat\nb.png,\nc.png,dog\nd.png, cat ; bird\ne.png,bird\n"
CELLS = "image,dog,cat\na.png,1,0\nb.png,0,1\nc.png,,1\nd.png,1.0,0.0\ne.png,0,\n"


@pytest.fixture
def table(workdir):
    """Make the images photos/a.png to e.png; return a function that writes photos/labels.csv."""
    (workdir / "photos").mkdir()
    for name in "abcde":
        Image.new("RGB", (50, 40)).save(workdir / "photos" / f"{name}.png")

    def write(content: str, **options) -> Path:
        path = workdir / "photos" / "labels.csv"
        path.write_text(content, **options)
        return path

    return write


def read_entries(name: str = "mine") -> dict[str, list[int]]:
    """Return the entries of all label files as {image name: target}."""
    files = [path for path in Path("data", name).glob("*.json") if path.name != "classes.json"]
    entries = [entry for path in files for entry in json.loads(path.read_text())]
    return {Path(entry["img_path"]).stem: entry["target"] for entry in entries}


def images_of(split: str) -> list[str]:
    """Return the names of the images of a split."""
    return [Path(entry["img_path"]).stem for entry in json.loads(Path(f"data/mine/{split}.json").read_text())]


def test_a_column_of_label_lists(table, command):
    result = command(prepare_csv, table(LISTS), "--dataset", "mine")
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["bird", "cat", "dog"]
    assert read_entries() == {"a": [0, 1, 1], "b": [0, 0, 0], "c": [0, 0, 1], "d": [1, 1, 0], "e": [1, 0, 0]}
    assert "no image in test.json has " in result.out
    assert [len(images_of(split)) for split in ("train", "val", "test")] == [3, 1, 1]
    assert "unknown" not in result.out


def test_a_column_per_class_with_unknown_labels(table, command):
    path = table(CELLS.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    fractions = ["--test_fraction", 0.4, "--val_fraction", 0]
    result = command(prepare_csv, path, "--dataset", "mine", *fractions)
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["dog", "cat"]
    assert read_entries() == {"a": [1, 0], "b": [0, 1], "c": [99, 1], "d": [1, 0], "e": [0, 99]}
    assert "2 of 10 labels are unknown" in result.out
    assert "no images for val.json" in result.out
    assert not Path("data/mine/val.json").exists()
    splits = [load_split(dataset_spec("mine"), split, 40) for split in ("train", "test")]
    assert [len(split) for split in splits] == [3, 2]
    assert sum((split.labels.targets == IGNORED).sum() for split in splits) == 2


@pytest.mark.slow
def test_unknown_labels_count_in_no_loss(table, command):
    table(CELLS)
    command(prepare_csv, "photos/labels.csv", "--dataset", "mine")
    arguments = ["--dataset", "mine", *TINY, "--model", "resnet18", "--pretrained", "none", "--batch_size", 1]
    assert command(main, *arguments, "--output_dir", "run").status == 0
    losses = [json.loads(line)["train_loss"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    entries = json.loads(Path("data/mine/train.json").read_text())
    for entry in entries:
        entry["target"] = [99, 99]
    Path("data/mine/train.json").write_text(json.dumps(entries))
    assert command(main, *arguments, "--output_dir", "unknown").status == 0
    assert json.loads(Path("unknown/log.jsonl").read_text().splitlines()[0])["train_loss"] == 0


def test_other_delimiters_and_separators(table, command):
    path = table('image;labels\na.png;"dog, big"\nb.png;cat\nc.png;dog\nd.png;cat, dog\n')
    result = command(prepare_csv, path, "--dataset", "mine", "--separator", ", ", "--val_fraction", 0.5)
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["big", "cat", "dog"]


def test_the_split_keeps_the_share_of_every_class():
    rng = np.random.default_rng(0)
    positives = rng.random((1000, 12)) < np.linspace(0.005, 0.5, 12)
    held_out = prepare_csv.stratify(positives, 0.2, seed=3)
    assert abs(held_out.mean() - 0.2) < 0.01
    total = positives.sum(axis=0)
    assert (np.abs(positives[held_out].sum(axis=0) - 0.2 * total) <= 1 + 0.02 * total).all()
    assert (held_out == prepare_csv.stratify(positives, 0.2, seed=3)).all()
    splits = prepare_csv.random_splits(positives, Namespace(val_fraction=0.1, test_fraction=0.3, seed=3))
    for split, fraction in (("train", 0.6), ("val", 0.1), ("test", 0.3)):
        chosen = np.array(splits) == split
        assert abs(chosen.mean() - fraction) < 0.01
        assert (np.abs(positives[chosen].sum(axis=0) - fraction * total) <= 2 + 0.02 * total).all()


@pytest.mark.parametrize("column", [1, 2])
def test_a_column_split_decides_which_images_are_held_out(table, command, column):
    words = dict(image="split", a="train", b="test", c="val", d="train", e="test")
    rows = [line.split(",") for line in LISTS.splitlines()]
    for cells in rows:
        cells.insert(column, words[cells[0].removesuffix(".png")])
    path = table("\n".join(map(",".join, rows)))
    assert command(prepare_csv, path, "--dataset", "mine").status == 0
    assert [images_of(split) for split in ("train", "val", "test")] == [["a", "d"], ["c"], ["b", "e"]]
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["bird", "cat", "dog"]
    assert read_entries()["d"] == [1, 1, 0]
    path.write_text(path.read_text().replace("val", "train"))
    assert command(prepare_csv, path, "--dataset", "mine", "--overwrite").status == 0
    assert not Path("data/mine/val.json").exists()  # nothing of the earlier one is left


def test_an_interruption_leaves_no_labels_of_other_classes(table, command, monkeypatch):
    path, write = table(LISTS), preparing.write_json_list
    assert command(prepare_csv, path, "--dataset", "mine").status == 0

    def interrupted(file: Path, entries: list) -> None:
        if file.name == "val.json":
            raise KeyboardInterrupt
        write(file, entries)

    monkeypatch.setattr(preparing, "write_json_list", interrupted)
    path.write_text(LISTS.replace("bird", "horse"))
    assert command(prepare_csv, path, "--dataset", "mine", "--overwrite").status == 130
    assert sorted(path.name for path in Path("data/mine").iterdir()) == ["classes.json", "train.json"]
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["cat", "dog", "horse"]
    with pytest.raises(UserError, match="test.json is missing"):
        load_split(dataset_spec("mine"), "test", 40)


@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_a_rare_class_keeps_an_image_for_training(images):
    positives = np.kron(np.eye(40, dtype=bool), np.ones((images, 1), bool))
    held_out = prepare_csv.stratify(positives, 0.3, seed=0)
    assert (positives[~held_out].sum(axis=0) >= 1).all()
    if images > 1:
        assert abs(held_out.mean() - 0.3) < 0.1


def test_another_seed_makes_another_split():
    positives = np.random.default_rng(0).random((1000, 12)) < 0.2
    held_out = prepare_csv.stratify(positives, 0.2, seed=3)
    assert (held_out != prepare_csv.stratify(positives, 0.2, seed=4)).any()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ["a header"]),
        ("image,labels\n", ["rows below"]),
        ("image\na.png\n", ["a header"]),
        ("a.png,1,0\nb.png,0,1\n", ["a header image,labels", "['a.png', '1', '0']"]),
        ("dog,image\n1,a.png\n", ["a header image,labels", "['dog', 'image']"]),
        ("image,labels\nz.png,dog\n", ["line 2", "photos/z.png", "--img_dir"]),
        ("image,labels\n../../x.png,dog\n", ["line 2", "no image photos/../../x.png in photos"]),
        ("image,labels\n,dog\n", ["line 2"]),
        ("image,labels\na.png,dog,cat\n", ["line 2", "3 cells", "has 2"]),
        ("image,labels\na.png,dog\na.png,cat\n", ["photos/a.png has lines 2 and 3"]),
        ("image,labels\na.png,\nb.png,\n", ["labels.csv", "class names"]),
        ("image,dog,cat\na.png,yes,0\n", ["line 2", "dog is 'yes'", "1, 0 or empty"]),
        ("image,dog,dog\na.png,1,0\n", ["'dog' more than once"]),
        ("image,dog,\na.png,1,0\n", ["labels.csv", "class names"]),
        ("image,dog\na.png,1\n", ["--test_fraction 0.2 leaves no images"]),
        ("image,labels,split\na.png,x,train\nb.png,x,tset\n", ["line 3", "split is 'tset'", "train, val or"]),
        ("image,labels,split\na.png,x,train\nb.png,x,val\n", ["the column split leaves no images"]),
        ("image,split\na.png,train\nb.png,test\n", ["labels.csv", "class names"]),
        ('image,dog\n"a.png,1\n', ["labels.csv", "not a table in UTF-8"]),
    ],
)
def test_a_malformed_table_is_reported(table, fails, content, says):
    table(content)
    fails(prepare_csv, "photos/labels.csv", "--dataset", "mine", says=says)


def test_other_errors_are_reported(table, fails, command, workdir):
    path = table(LISTS)
    (workdir / "photos" / "latin.csv").write_bytes("image,labels\nä.png,x\n".encode("latin-1"))
    fails(prepare_csv, "photos/latin.csv", "--dataset", "mine", says=["latin.csv", "UTF-8"])
    fails(prepare_csv, "none.csv", "--dataset", "mine", says=["none.csv", "No such file"])
    for name in (*DATASETS, "a/b", "..", ""):
        says = [f"--dataset {name}", "choose a folder name"]
        fails(prepare_csv, path, "--dataset", name, says=says)
    fails(prepare_csv, path, "--dataset", "mine", "--val_fraction", 1.5, says=["--val_fraction", "1.5"])
    shares = ["--val_fraction", 0.5, "--test_fraction", 0.5]
    fails(prepare_csv, path, "--dataset", "mine", *shares, says=["--val_fraction 0.5", "nothing to train on"])
    fails(prepare_csv, path, "--dataset", "mine", "--img_dir", "data", says=["data/a.png"])
    (workdir / "photos" / "b.png").write_bytes(b"not an image")
    fails(prepare_csv, path, "--dataset", "mine", "--verify", says=["1 of 5 images are bad", "b.png"])
    assert command(prepare_csv, path, "--dataset", "mine").status == 0
    fails(prepare_csv, path, "--dataset", "mine", says=["data/mine", "--overwrite"])
    assert command(prepare_csv, path, "--dataset", "mine", "--overwrite").status == 0
