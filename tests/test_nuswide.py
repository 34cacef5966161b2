"""The preparer of NUS-WIDE on a small copy of the official archive."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from utils import prepare_nuswide
from utils.data.classes import class_names
from utils.data.datasets import DATASETS
from utils.data.samples import load_split

CLASSES = ["sky", "airport", "dog"]  # not in the order of the alphabet
# Of each image: its name in the lists, and the classes that it has.
IMAGES = {
    "Train": {r"actor\0001_11.jpg": ["dog"], r"b c\0002_12.jpg": [], r"actor\0003_13.jpg": ["sky", "dog"]},
    "Test": {r"actor\0004_14.jpg": ["airport"], r"zoo\0005_15.jpg": ["sky"]},
}


@pytest.fixture
def nuswide(workdir) -> Path:
    """Make a NUS-WIDE with five images in its default folder, with the blanks that copies of it have."""
    root = workdir / "Dataset" / "NUS-WIDE"
    labels = root / "Groundtruth" / "TrainTestLabels"
    labels.mkdir(parents=True)
    (root / "ImageList").mkdir()
    (root / "Concepts81.txt").write_text("".join(f"{name} \r\n" for name in CLASSES) + "\n")
    for split, images in IMAGES.items():
        (root / "ImageList" / f"{split}Imagelist.txt").write_text(
            "".join(f"{name}\t\n" for name in images) + "\n"
        )
        for name in CLASSES:
            lines = "".join(f"{int(name in present)} \n" for present in images.values())
            (labels / f"Labels_{name}_{split}.txt").write_text(lines + "\n\n")
        for name in images:
            path = root / "Flickr" / name.replace("\\", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6)).save(path)
    return root


def entries(name: str) -> list[dict]:
    return json.loads(Path("data/nuswide", name).read_text())


def test_classes_are_in_the_order_of_the_archive(nuswide, command):
    result = command(prepare_nuswide, "--data_path", "Dataset/NUS-WIDE")
    assert result.status == 0, result.err
    assert class_names("nuswide") == CLASSES
    assert entries("train.json") == [
        {"positives": [2], "img_path": "Dataset/NUS-WIDE/Flickr/actor/0001_11.jpg"},
        {"positives": [0, 2], "img_path": "Dataset/NUS-WIDE/Flickr/actor/0003_13.jpg"},
    ]
    assert [entry["positives"] for entry in entries("test.json")] == [[1], [0]]
    assert "TrainImagelist.txt: 1 images left out because they have no label" in result.out
    assert (
        "TestImagelist.txt: 0 images left out because they are not in Dataset/NUS-WIDE/Flickr" in result.out
    )
    targets = load_split(DATASETS["nuswide"], "train", 32).labels.targets
    assert targets.rows().tolist() == [[0, 0, 1], [1, 0, 1]]


def test_images_without_label_may_stay(nuswide, command):
    result = command(prepare_nuswide, "--keep_empty")
    assert result.status == 0
    assert [entry["positives"] for entry in entries("train.json")] == [[2], [], [0, 2]]
    assert "no label" not in result.out
    assert load_split(DATASETS["nuswide"], "train", 32).labels.targets.rows()[1].tolist() == [0, 0, 0]


def test_missing_images_are_left_out_and_counted(nuswide, command, fails):
    shutil.rmtree(nuswide / "Flickr" / "zoo")
    (nuswide / "Flickr" / "actor" / "0001_11.jpg").unlink()
    result = command(prepare_nuswide)
    assert result.status == 0
    for split in IMAGES:
        assert (
            f"{split}Imagelist.txt: 1 images left out because they are not in Dataset/NUS-WIDE" in result.out
        )
    assert [Path(entry["img_path"]).name for entry in entries("train.json")] == ["0003_13.jpg"]
    assert [Path(entry["img_path"]).name for entry in entries("test.json")] == ["0004_14.jpg"]
    shutil.rmtree("data")
    (nuswide / "Flickr" / "actor" / "0004_14.jpg").unlink()
    fails(
        prepare_nuswide, says=["none of the images that Dataset/NUS-WIDE/ImageList/TestImagelist.txt lists"]
    )


def test_names_of_folders_differ_between_copies(nuswide, command):
    (nuswide / "ImageList" / "TrainImagelist.txt").rename(nuswide / "ImageList" / "TrainImageList.txt")
    (nuswide / "ImageList").rename(nuswide / "Imagelist")
    (nuswide / "Flickr").rename(nuswide / "images")
    (nuswide / "Groundtruth").rename(nuswide / "GroundTruth")
    (nuswide / "ConceptsList").mkdir()
    (nuswide / "Concepts81.txt").rename(nuswide / "ConceptsList" / "Concepts81.txt")
    result = command(prepare_nuswide)
    assert result.status == 0, result.err
    assert entries("test.json")[1]["img_path"] == "Dataset/NUS-WIDE/images/zoo/0005_15.jpg"


def test_images_may_lie_in_one_folder(nuswide, command, fails):
    for path in list((nuswide / "Flickr").rglob("*.jpg")):
        path.rename(nuswide / "Flickr" / path.name)
    assert command(prepare_nuswide).status == 0
    assert entries("test.json")[1]["img_path"] == "Dataset/NUS-WIDE/Flickr/0005_15.jpg"
    shutil.rmtree("data")
    image_list = nuswide / "ImageList" / "TestImagelist.txt"
    image_list.write_text("actor\\0004_14.jpg\nactor\\0001_11.jpg\n")
    fails(prepare_nuswide, says=["Flickr/0001_11.jpg is listed for train.json and for test.json"])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("Groundtruth/TrainTestLabels/Labels_dog_Train.txt", "1\n0\n", "has 2 labels"),
        ("Groundtruth/TrainTestLabels/Labels_dog_Train.txt", "1\n0\n1\n0\n", "has 4 labels"),
        ("Groundtruth/TrainTestLabels/Labels_dog_Train.txt", "1\n0\n2\n", "must have 0 or 1 in each line"),
        ("Groundtruth/TrainTestLabels/Labels_dog_Train.txt", "1 0 1", "has 1 labels"),
        ("Groundtruth/TrainTestLabels/Labels_dog_Train.txt", b"\xff\xfe\n", "is not a text file"),
        ("ImageList/TrainImagelist.txt", "\n", "lists 0 images"),
        (
            "ImageList/TrainImagelist.txt",
            "..\\a.jpg\nb.jpg\nc.jpg\n",
            "points outside of Dataset/NUS-WIDE/Flickr/",
        ),
        ("Concepts81.txt", "dog\nsky\ndog\n", "contains 'dog' more than once"),
        ("Concepts81.txt", "dog\nsky\ncat\n", "Labels_cat_Train.txt is missing"),
        ("Concepts81.txt", "", "must hold one or more class names"),
    ],
)
def test_a_damaged_file_is_named(nuswide, fails, file, content, says):
    content = content if isinstance(content, bytes) else content.encode()
    (nuswide / file).write_bytes(content)
    fails(prepare_nuswide, says=[file if "missing" not in says else says, says])
    if "labels" in says:
        fails(prepare_nuswide, says=["Imagelist.txt lists 3 images"])


def test_missing_parts_are_named(nuswide, fails):
    for name in ("Concepts81.txt", "ImageList", "Groundtruth", "Flickr"):
        (nuswide / name).rename(nuswide / "aside")
        fails(prepare_nuswide, says=[f"Dataset/NUS-WIDE/{name}", "is missing", "--data_path"])
        (nuswide / "aside").rename(nuswide / name)
    fails(prepare_nuswide, "--data_path", "elsewhere", says=["elsewhere is missing", "--data_path"])


def test_bad_images_are_left_out(nuswide, command):
    (nuswide / "Flickr" / "actor" / "0001_11.jpg").write_bytes(b"no image")
    result = command(prepare_nuswide, "--verify")
    assert (result.status, "1 of 4 images are bad" in result.err) == (2, True)
    assert not Path("data").exists()
    assert command(prepare_nuswide, "--skip_bad").status == 0
    assert [Path(entry["img_path"]).name for entry in entries("train.json")] == ["0003_13.jpg"]
