"""The preparer of Open Images on small copies of the official files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from utils import prepare_openimages
from utils.data import label_rows, label_writing, open_images
from utils.data.classes import class_names
from utils.data.datasets import DATASETS
from utils.data.label_rows import (
    deduplicate_in_place,
    labels_with_positive,
    pack,
    replace_labels_in_place,
    unpack,
)
from utils.data.open_images import Codes, DistinctIds, class_titles, find_ids, images_in
from utils.data.samples import load_split

HEADER = "ImageID,Source,LabelName,Confidence\n"
CAT, DOG, TREE, JAY = "/m/01yrx", "/m/0bt9lr", "/m/07j7r", "/m/0jy4k"
NAMES = f'LabelName,DisplayName\n{CAT},Cat\n{DOG},Dog\n{TREE},"Tree, ""green"""\n{JAY},Jay\n'
# ImageID, LabelName, Confidence. The rows of an image need not be one after the other.
ROWS = {
    "train": [
        ("b1", DOG, 1),
        ("a1", CAT, 0),
        ("b1", CAT, 1),
        ("c1", TREE, 1),
        ("a1", DOG, 1),
        ("gone", JAY, 1),
    ],
    "validation": [("v1", DOG, 0), ("v1", TREE, 1)],
    "test": [("t1", TREE, 0), ("t1", CAT, 1), ("t2", JAY, 1)],
}


def to_csv(rows: list[tuple[str, str, int]]) -> str:
    return HEADER + "".join(f"{image},verification,{label},{value}\n" for image, label, value in rows)


def make_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 6)).save(folder / f"{name}.jpg")


@pytest.fixture
def openimages(workdir) -> Path:
    """Make a small Open Images in its default folder; one image of train that is listed is missing."""
    root = workdir / "Dataset" / "OpenImages"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "oidv7-class-descriptions.csv").write_text(NAMES)
    for split, start in {"train": "oidv6-train", "validation": "validation", "test": "test"}.items():
        (root / "annotations" / f"{start}-annotations-human-imagelabels.csv").write_text(to_csv(ROWS[split]))
    make_images(root / "train", "a1", "b1", "c1", "in_no_csv")
    make_images(root / "validation", "v1")
    make_images(root / "test", "t1", "t2")
    return root


@pytest.fixture
def train_csv(openimages) -> Path:
    return openimages / "annotations" / "oidv6-train-annotations-human-imagelabels.csv"


def entries(name: str) -> list[dict]:
    return json.loads(Path("data/openimages", name).read_text())


def test_labels_that_nobody_verified_are_unknown(openimages, command):
    result = command(prepare_openimages, "--data_path", "Dataset/OpenImages")
    assert result.status == 0, result.err
    # Jay has no positive in the images of train that are there, so it is no class. By LabelName.
    assert class_names("openimages") == ["Cat", 'Tree, "green"', "Dog"]
    assert entries("train.json") == [
        {"positives": [2], "negatives": [0], "img_path": "Dataset/OpenImages/train/a1.jpg"},
        {"positives": [0, 2], "negatives": [], "img_path": "Dataset/OpenImages/train/b1.jpg"},
        {"positives": [1], "negatives": [], "img_path": "Dataset/OpenImages/train/c1.jpg"},
    ]
    assert [entry["negatives"] for entry in entries("val.json")] == [[2]]
    assert [Path(entry["img_path"]).name for entry in entries("test.json")] == ["t1.jpg"]
    assert load_split(DATASETS["openimages"], "train", 32).labels.targets.rows().tolist() == [
        [0, -1, 1],
        [1, -1, 1],
        [-1, 1, -1],
    ]
    assert "train: 1 images left out because they are not in Dataset/OpenImages/train" in result.out
    assert "test: 1 images left out because no label of the classes is known" in result.out
    assert (
        "reading Dataset/OpenImages/annotations/oidv6-train-annotations-human-imagelabels.csv" in result.out
    )
    assert "in_no_csv" not in result.out


def test_the_classes_may_be_chosen(openimages, command, fails):
    Path("classes.txt").write_text(f"{JAY}\r\n\r\n{DOG}\r\n")
    assert command(prepare_openimages, "--classes", "classes.txt").status == 0
    assert class_names("openimages") == ["Jay", "Dog"]
    assert [entry["positives"] for entry in entries("train.json")] == [[1], [1]]
    assert [entry["positives"] for entry in entries("test.json")] == [[0]]
    shutil.rmtree("data")
    for content, says in {
        "\n": "no LabelName",
        f"{DOG}\n{CAT}\n{DOG}\n": f"{DOG} more than once",
        f"{DOG}\n/m/0dog\n": "no class has the LabelName '/m/0dog'",
    }.items():
        Path("classes.txt").write_text(content)
        fails(prepare_openimages, "--classes", "classes.txt", says=["--classes classes.txt", says])


def test_one_of_several_tables_is_chosen_by_an_option(openimages, command, fails, train_csv):
    boxable = {"train": [("a1", CAT, 1)], "validation": [("v1", CAT, 1)], "test": [("t1", CAT, 0)]}
    for split, rows in boxable.items():
        path = openimages / "annotations" / f"{split}-annotations-human-imagelabels-boxable.csv"
        path.write_text(to_csv(rows))
    assert command(prepare_openimages).status == 0
    assert len(entries("train.json")) == 3
    result = command(prepare_openimages, "--boxable")
    assert (result.status, class_names("openimages")) == (0, ["Cat"])
    assert [Path(entry["img_path"]).name for entry in entries("train.json")] == ["a1.jpg"]
    assert (
        "reading Dataset/OpenImages/annotations/train-annotations-human-imagelabels-boxable.csv" in result.out
    )
    shutil.rmtree("data")

    other = train_csv.with_name(train_csv.name.replace("oidv6-", ""))
    other.write_text(train_csv.read_text())
    fails(prepare_openimages, says=[train_csv.name, other.name, "two versions of one file"])
    other.unlink()
    train_csv.unlink()
    fails(prepare_openimages, says=["train-annotations-human-imagelabels.csv is missing", "add --boxable"])


def test_a_split_is_found_under_the_name_that_version_7_gives_it(openimages, command):
    path = openimages / "annotations" / "validation-annotations-human-imagelabels.csv"
    path.rename(path.with_name("oidv7-val-annotations-human-imagelabels.csv"))
    assert command(prepare_openimages).status == 0
    assert len(entries("val.json")) == 1


def test_without_images_of_validation_there_is_no_val_json(openimages, command):
    assert command(prepare_openimages).status == 0
    shutil.rmtree(openimages / "validation")
    for _ in range(2):
        result = command(prepare_openimages)
        assert (result.status, "no images for val.json" in result.out) == (0, True)
        assert not Path("data/openimages/val.json").exists()
        (openimages / "annotations" / "validation-annotations-human-imagelabels.csv").unlink(missing_ok=True)


def test_images_of_validation_need_their_labels(openimages, fails):
    path = openimages / "annotations" / "validation-annotations-human-imagelabels.csv"
    path.rename(path.with_name("validation-annotations-human-imagelabels-boxable.csv"))
    fails(prepare_openimages, says=[f"{path.name} is missing", f"to read {path.stem}-boxable.csv, add"])
    path.with_name("validation-annotations-human-imagelabels-boxable.csv").unlink()
    fails(prepare_openimages, says=[f"{path.name} is missing", "set --data_path to the folder"])


def test_repeated_rows_count_once_and_contradictory_ones_not_at_all(openimages, command, train_csv):
    more = [("c1", TREE, 1), ("c1", DOG, 0), ("c1", DOG, 1), ("c1", DOG, 1), ("a1", JAY, 1), ("a1", JAY, 0)]
    train_csv.write_text(to_csv(ROWS["train"] + more))
    result = command(prepare_openimages)
    assert result.status == 0
    assert class_names("openimages") == ["Cat", 'Tree, "green"', "Dog"]
    assert entries("train.json")[2]["positives"] == [1]
    assert entries("train.json")[2]["negatives"] == []
    assert "train: 2 labels are 1 in one row and 0 in another, so unknown" in result.out


def test_names_of_classes(tmp_path):
    display_names = {"/m/1": "Bank", "/m/2": "Bank", "/m/3": "Jay", "/m/5": "J\u0430y", "/m/6": ""}
    titles = class_titles(["/m/1", "/m/2", "/m/3", "/m/4", "/m/5", "/m/6"], display_names, tmp_path)
    assert titles == ["Bank (/m/1)", "Bank (/m/2)", "Jay (/m/3)", "/m/4", "J\u0430y (/m/5)", "/m/6"]


def test_descriptions_without_a_header_and_with_gaps(openimages, command):
    path = openimages / "annotations" / "oidv7-class-descriptions.csv"
    path.write_text("\ufeff" + f"{CAT},Cat\n{TREE},Cat\n", newline="\r\n")
    result = command(prepare_openimages)
    assert result.status == 0, result.err
    assert class_names("openimages") == [f"Cat ({CAT})", f"Cat ({TREE})", DOG]
    assert f"1 classes have no display name, first {DOG}" in result.out


def test_a_header_is_no_row(openimages):
    path = openimages / "annotations" / "oidv7-class-descriptions.csv"
    assert list(open_images.read_display_names(path)) == [CAT, DOG, TREE, JAY]


def test_crlf_and_decimals_are_read(openimages, command, train_csv):
    command(prepare_openimages)
    before = entries("train.json")
    train_csv.write_text(train_csv.read_text().replace(",1\n", ",1.0\r\n"), encoding="utf-8-sig", newline="")
    assert command(prepare_openimages).status == 0
    assert entries("train.json") == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (to_csv(ROWS["train"])[:-1].removesuffix(f"{JAY},1"), "line 7 is not ImageID,Source,LabelName"),
        (
            to_csv(ROWS["train"])[:-2],
            "line 7 is not ImageID,Source,LabelName,Confidence with a Confidence of 1 or 0",
        ),
        (to_csv(ROWS["train"])[:-9], "line 7 is not"),
        (HEADER + f"a1,verification,{CAT},0.8\n", "line 2 is not"),
        (HEADER + f"{'a' * 33},verification,{CAT},1\n", "line 2 is not ImageID"),
        (HEADER, "has no rows"),
        ("", "has no rows"),
        (HEADER + f'a1,verification,"{CAT},1\n', "unexpected end of data"),
        (HEADER + f"\xe9,verification,{CAT},1\n", "line 2 is not ImageID"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_damaged_table_is_named(openimages, fails, train_csv, content, says):
    train_csv.write_text(content)
    fails(prepare_openimages, says=[train_csv.name, says])


def test_missing_parts_are_named(openimages, fails, train_csv):
    def moved(path: Path, *says: str) -> None:
        path.rename("aside")
        fails(prepare_openimages, says=[*says, "set --data_path to the folder of annotations/"])
        Path("aside").rename(path)

    moved(openimages / "annotations", "OpenImages/annotations is missing")
    moved(openimages / "train", "no images <ImageID>.jpg in Dataset/OpenImages/train")
    moved(openimages / "test", "no images <ImageID>.jpg in Dataset/OpenImages/test")
    moved(train_csv, "train-annotations-human-imagelabels.csv is missing")
    moved(openimages / "annotations" / "oidv7-class-descriptions.csv", "class-descriptions.csv is missing")
    test_csv = openimages / "annotations" / "test-annotations-human-imagelabels.csv"
    good = test_csv.read_text()
    test_csv.write_text(to_csv([("t1", JAY, 1)]))
    says = "Dataset/OpenImages/test has no image with a label of the classes in"
    fails(prepare_openimages, says=[says, test_csv.name])
    test_csv.write_text(to_csv([("a1", CAT, 1)]))
    make_images(openimages / "test", "a1")
    fails(prepare_openimages, says=["the image a1 is in", train_csv.name, test_csv.name])
    test_csv.write_text(good)
    train_csv.write_text(to_csv([("a1", CAT, 0)]))
    fails(prepare_openimages, says=["no image with a positive label in", train_csv.name])


def test_bad_images_are_left_out(openimages, command):
    (openimages / "train" / "a1.jpg").write_bytes(b"no image")
    result = command(prepare_openimages, "--verify")
    assert (result.status, "1 of 5 images are bad" in result.err) == (2, True)
    assert not Path("data").exists()
    assert command(prepare_openimages, "--skip_bad").status == 0
    assert [Path(entry["img_path"]).name for entry in entries("train.json")] == ["b1.jpg", "c1.jpg"]


def test_the_folder_is_listed_once(openimages, command, monkeypatch):
    asked = []
    listed = []
    stat = os.stat
    scandir = os.scandir

    def counted_stat(path, *args, **keywords):
        asked.append(str(path))
        return stat(path, *args, **keywords)

    def counted_scandir(path):
        listed.append(Path(path))
        return scandir(path)

    monkeypatch.setattr(os, "stat", counted_stat)
    monkeypatch.setattr(os, "scandir", counted_scandir)
    assert command(prepare_openimages).status == 0
    assert [path for path in asked if path.endswith(".jpg")] == []
    image_folders = [Path("Dataset/OpenImages", split) for split in ROWS]
    assert sorted(path for path in listed if path in image_folders) == sorted(image_folders)


def test_a_run_is_refused_until_the_classes_are_there(workdir, fails):
    says = ["data/openimages/classes.json is missing", "python utils/prepare_openimages.py"]
    fails(main, "--dataset", "openimages", says=says)


def test_num_cls_is_that_of_the_preparation(openimages, command, fails):
    command(prepare_openimages)
    fails(main, "--dataset", "openimages", "--num_cls", 601, says=["openimages has 3 classes; leave it out"])


def test_ids_are_found_in_any_width():
    image_ids = np.sort(np.array([b"a", b"bb", b"dddd"]))
    ids = np.array([b"bb", b"c", b"dddd", b"e", b"dddddd"])
    assert find_ids(ids, image_ids).tolist() == [1, -1, 2, -1, -1]
    assert find_ids(np.array([b"bb"]), np.array([], np.bytes_)).tolist() == [-1]


def test_different_ids_are_counted_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(open_images, "BLOCK", 4)
    ids = DistinctIds()
    for _ in range(20):
        ids.add(np.array([b"a", b"b", b"c", b"a"]))
        assert ids.num_held <= 8
    ids.add(np.array([], np.bytes_))
    assert ids.count() == 3
    assert DistinctIds().count() == 0


def test_only_files_that_can_be_images_are_listed(tmp_path):
    for name in ("b.jpg", "a.jpg", "a.png", f"{'x' * 40}.jpg", "é.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [os.fsdecode(name) for name in images_in(tmp_path)] == ["a", "b", "é"]
    assert len(images_in(tmp_path / "missing")) == 0


@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
@pytest.mark.parametrize("seed", range(8))
def test_packed_rows_are_the_rows(seed, block, monkeypatch):
    """Compare with dictionaries, on random rows with repeats and contradictions."""
    monkeypatch.setattr(label_rows, "BLOCK", block)
    rng = np.random.default_rng(seed)
    num_images, num_labels = 6, 5
    images, labels, values = (rng.integers(0, high, 40) for high in (num_images, num_labels, 2))
    seen: dict[tuple[int, int], set[int]] = {}
    for image, label, value in zip(images.tolist(), labels.tolist(), values.tolist()):
        seen.setdefault((image, label), set()).add(value)
    packed, num_contradicted = deduplicate_in_place(pack(images, labels, values))
    assert num_contradicted == sum(len(both) == 2 for both in seen.values())
    clear = {pair: min(value) for pair, value in seen.items() if len(value) == 1}
    assert labels_with_positive(packed) == {label for (_, label), v in clear.items() if v}

    class_of = np.array([2, -1, 0, 1, -1])
    expected = np.full((num_images, 3), -1)
    for (image, label), value in clear.items():
        if class_of[label] >= 0:
            expected[image, class_of[label]] = value
    images, targets = unpack(replace_labels_in_place(packed, class_of), num_images, 3)
    assert images.tolist() == np.flatnonzero((expected >= 0).any(axis=1)).tolist()
    assert targets.rows().tolist() == expected[images].tolist()


def test_no_rows_at_all():
    packed, num_contradicted = deduplicate_in_place(np.array([], np.int64))
    assert (len(packed), num_contradicted, labels_with_positive(packed)) == (0, 0, set())
    images, targets = unpack(replace_labels_in_place(packed, np.array([0])), 4, 1)
    assert (len(images), targets.shape) == (0, (0, 1))


def test_many_classes_are_counted_in_a_line_for_each_file(openimages, command, monkeypatch):
    assert "images of" in command(prepare_openimages).out
    monkeypatch.setattr(label_writing, "MAX_ROWS", 2)
    result = command(prepare_openimages)
    assert "images of   " not in result.out
    assert "a class has 1 to 2 images of train, median 1" in result.out  # Cat 1, Tree 1, Dog 2
    assert "a class has 0 to 1 images of test, median 0" in result.out


def test_an_interruption_leaves_no_labels_for_other_classes(openimages, command, monkeypatch):
    assert command(prepare_openimages).status == 0

    def interrupted(path, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(label_writing, "write_label_file", interrupted)
    Path("classes.txt").write_text(f"{JAY}\n{DOG}\n")
    assert command(prepare_openimages, "--classes", "classes.txt").status == 130
    assert [path.name for path in Path("data/openimages").iterdir()] == ["classes.json"]


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_blocks_of_rows_make_no_difference(openimages, train_csv, monkeypatch, block):
    monkeypatch.setattr(open_images, "BLOCK", block)
    image_ids = images_in(openimages / "train")
    codes = Codes()
    verified = open_images.read_verified(train_csv, image_ids, codes)
    assert image_ids.tolist() == [b"a1", b"b1", b"c1", b"in_no_csv"]
    assert verified.is_listed.tolist() == [True, True, True, False]
    assert verified.num_missing == 1
    assert codes == {DOG: 0, CAT: 1, TREE: 2, JAY: 3}
    expected = pack(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 2]), np.array([1, 0, 1, 1, 1]))
    assert sorted(verified.packed.tolist()) == expected.tolist()
