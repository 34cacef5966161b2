"""Data sets from annotations of your own in COCO's format."""

import json
from pathlib import Path

import pytest
from PIL import Image

from helpers import make_own, read_targets
from utils import prepare_coco
from utils.data.datasets import dataset_spec
from utils.data.samples import load_split

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 0, "name": "dog"}, {"id": 3, "name": "bird"}]
MINE = ["--dataset", "mine", "--train", "photos/train.json", "--test", "photos/test.json"]


@pytest.fixture
def annotations(workdir):
    """Make the images photos/0.png to 5.png; return a function that writes a file of annotations.

    images: {id: (file_name, category ids)}.
    """
    (workdir / "photos").mkdir()
    for name in range(6):
        Image.new("RGB", (50, 40)).save(workdir / "photos" / f"{name}.png")

    def write(path: str, images: dict, categories: list[dict] = CATEGORIES) -> Path:
        boxes = [(number, c) for number, (_, ids) in images.items() for c in ids]
        content = {
            "images": [{"id": number, "file_name": name} for number, (name, _) in images.items()],
            "annotations": [
                {"id": k, "image_id": number, "category_id": c, "iscrowd": k % 2, "bbox": [0, 0, 9, 9]}
                for k, (number, c) in enumerate(boxes)
            ],
            "categories": categories,
        }
        Path(path).write_text(json.dumps(content))
        return Path(path)

    return write


@pytest.fixture
def mine(annotations):
    """Write photos/train.json, test.json and val.json."""
    annotations("photos/train.json", {9: ("0.png", [7, 7, 3]), 4: ("1.png", []), 5: ("2.png", [0])})
    annotations("photos/test.json", {1: ("3.png", [0]), 2: ("4.png", [])})
    annotations("photos/val.json", {1: ("5.png", [3])})


def entries(split: str, name: str = "mine") -> dict[str, list[int]]:
    """Return a label file as {image path: target}."""
    return read_targets(Path(f"data/{name}/{split}.json"))


def test_classes_are_in_the_order_of_their_ids_and_crowds_count(mine, command):
    result = command(prepare_coco, *MINE, "--val", "photos/val.json")
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["dog", "bird", "cat"]
    assert list(entries("train").items()) == [  # sorted by image id
        ("photos/1.png", [0, 0, 0]),
        ("photos/2.png", [1, 0, 0]),
        ("photos/0.png", [0, 1, 1]),
    ]
    assert entries("test") == {"photos/3.png": [1, 0, 0], "photos/4.png": [0, 0, 0]}
    assert entries("val") == {"photos/5.png": [0, 1, 0]}
    assert "photos/train.json: 1 images without annotation" in result.out
    assert len(load_split(dataset_spec("mine"), "train", 40)) == 3


def test_it_replaces_only_what_it_may(mine, command, fails):
    assert command(prepare_coco, *MINE, "--val", "photos/val.json").status == 0
    fails(prepare_coco, *MINE, says=["data/mine already holds a data set", "--overwrite"])
    result = command(prepare_coco, *MINE, "--overwrite")
    assert result.status == 0, result.err
    assert "no images for val.json" in result.out
    assert not Path("data/mine/val.json").exists()
    for name in ("coco", "voc07", "a/b", ".."):
        fails(prepare_coco, "--dataset", name, *MINE[2:], says=[f"--dataset {name}", "choose a folder name"])


def test_the_images_may_be_in_another_folder(mine, workdir, command, fails):
    for name in ("train", "test"):
        (workdir / "photos" / f"{name}.json").rename(f"{name}.json")
    options = ["--dataset", "mine", "--train", "train.json", "--test", "test.json"]
    fails(prepare_coco, *options, says=["train.json: no image 1.png", "--img_dir"])
    assert command(prepare_coco, *options, "--img_dir", "photos").status == 0
    assert list(entries("test")) == ["photos/3.png", "photos/4.png"]


def test_each_split_may_have_a_folder_of_images(annotations, command, fails):
    for name in ("train", "test"):
        Path(name).mkdir()
        Image.new("RGB", (50, 40)).save(f"{name}/1.png")
        annotations(f"photos/{name}.json", {1: ("1.png", [7])})
    assert command(prepare_coco, *MINE, "--img_dir", "train", "test").status == 0
    assert (list(entries("train")), list(entries("test"))) == (["train/1.png"], ["test/1.png"])
    says = ["--img_dir has 3 folders", "one for each of --train, --test"]
    fails(prepare_coco, *MINE, "--overwrite", "--img_dir", "train", "test", "photos", says=says)


def test_one_file_is_one_entry_however_it_is_listed(annotations, mine, command, fails):
    names = {1: ("0.png", [7]), 2: ("x/../0.png", [3]), 3: (".//0.png", []), 4: ("1.png", [0])}
    Path("photos/x").mkdir()
    annotations("photos/train.json", names)
    result = command(prepare_coco, *MINE)
    assert result.status == 0, result.err
    assert entries("train") == {"photos/0.png": [0, 1, 1], "photos/1.png": [1, 0, 0]}
    Path("photos/link.png").symlink_to("0.png")
    for name in ("0.png", "./0.png", "x/../0.png", "link.png"):
        annotations("photos/test.json", {1: (name, [7])})
        says = ["photos/0.png", "is in train.json and in test.json"]
        fails(prepare_coco, *MINE, "--overwrite", says=says)


def test_the_files_need_the_same_categories(annotations, mine, fails):
    for categories, says in (
        (CATEGORIES[:2], "category 3 is 'bird' in photos/train.json and missing in photos/test.json"),
        ([*CATEGORIES[:2], {"id": 3, "name": "horse"}], "'bird' in photos/train.json and 'horse' in"),
        ([*CATEGORIES, {"id": 8, "name": "cow"}], "category 8 is missing in photos/train.json and 'cow'"),
    ):
        annotations("photos/test.json", {1: ("3.png", [0])}, categories)
        fails(prepare_coco, *MINE, says=[says])


def test_ids_of_different_kinds_are_named(annotations, mine, fails):
    texts = [{**category, "id": str(category["id"])} for category in CATEGORIES]
    says = "the ids of the categories are texts in photos/test.json and numbers in photos/train.json"
    annotations("photos/test.json", {1: ("3.png", ["0"])}, texts)
    fails(prepare_coco, *MINE, says=[says])
    annotations("photos/test.json", {1: ("3.png", [None])}, [{"id": None, "name": "dog"}])
    fails(prepare_coco, *MINE, says=["photos/test.json: a category has the id null: give it a number"])


def test_annotations_are_read_as_utf_8(annotations, mine, command, fails, monkeypatch):
    """The encoding of the system, which is another one on Windows, plays no part."""
    path = Path("photos/test.json")
    for name in ("train", "test"):
        categories = [{**CATEGORIES[0], "name": "caf\u00e9"}, *CATEGORIES[1:]]
        split = json.loads(Path(f"photos/{name}.json").read_text())
        text = json.dumps({**split, "categories": categories}, ensure_ascii=False)
        Path(f"photos/{name}.json").write_text(text, encoding="utf-8-sig")

    def open_as_windows(file, mode="r", buffering=-1, encoding=None, *args, _open=open, **kwargs):
        encoding = encoding if encoding or "b" in mode else "cp1252"
        return _open(file, mode, buffering, encoding, *args, **kwargs)

    monkeypatch.setattr("builtins.open", open_as_windows)
    result = command(prepare_coco, *MINE)
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_bytes()) == ["dog", "bird", "caf\u00e9"]
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    fails(prepare_coco, *MINE, "--overwrite", says=["photos/test.json is a Git LFS pointer", "git lfs pull"])


def test_category_names_are_class_names(annotations, command, fails):
    def write(*names: object) -> None:
        categories = [{"id": k, "name": name} for k, name in enumerate(names)]
        annotations("photos/train.json", {1: ("0.png", [0])}, categories)
        annotations("photos/test.json", {1: ("1.png", [1])}, categories)

    for names, says in (
        (("dog", "dog"), ["'dog' more than once"]),
        (("caf\u00e9", "cafe\u0301"), ["'caf\u00e9' more than once"]),
        (("dog", "d\u043eg"), ["'dog' and 'd\\u043eg' print alike"]),
        (("dog", "do\u200bg"), ["'dog' and 'do\\u200bg' print alike"]),
        (("dog", ""), ["class names", "''"]),
        (("dog", 3), ["not a COCO annotation file"]),
    ):
        write(*names)
        fails(prepare_coco, *MINE, says=["photos/train.json", *says])
    write("cafe\u0301", " dog\xa0")
    assert command(prepare_coco, *MINE).status == 0
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["caf\u00e9", "dog"]


def test_a_labelled_set_for_a_trained_model(annotations, workdir, command, fails):
    make_own(workdir, classes=("bird", "cat", "dog", "horse"))
    annotations("photos/test.json", {1: ("3.png", [0, 7]), 2: ("4.png", [])})
    options = ["--dataset", "field", "--test", "photos/test.json", "--classes_of"]
    result = command(prepare_coco, *options, "mine")
    assert result.status == 0, result.err
    assert json.loads(Path("data/field/classes.json").read_text()) == ["bird", "cat", "dog", "horse"]
    assert entries("test", "field") == {"photos/3.png": [0, 1, 1, 99], "photos/4.png": [0, 0, 0, 99]}
    assert not Path("data/field/train.json").exists()
    assert "2 of 8 labels are unknown" in result.out
    says = ["photos/test.json: --classes_of wider has no class"]
    fails(prepare_coco, *options, "wider", "--overwrite", says=says)
    annotations("photos/test.json", {1: ("3.png", [0])}, [{"id": 0, "name": "Hors"}])
    fails(prepare_coco, *options, "mine", "--overwrite", says=["'Hors' (did you mean 'horse'?)"])


def test_bad_images_are_left_out_on_request(mine, command, fails):
    Path("photos/2.png").write_bytes(b"not an image")
    fails(prepare_coco, *MINE, "--verify", says=["1 of 5 images are bad", "photos/2.png"])
    result = command(prepare_coco, *MINE, "--skip_bad")
    assert result.status == 0, result.err
    assert "left out 1 bad images" in result.out
    assert list(entries("train")) == ["photos/1.png", "photos/0.png"]
    for name in (3, 4):
        Path(f"photos/{name}.png").write_bytes(b"")
    fails(prepare_coco, *MINE, "--skip_bad", "--overwrite", says=["leaves nothing of test.json"])


def test_options_that_conflict_are_refused(mine, fails):
    fails(prepare_coco, *MINE[2:], says=["--train is for annotations of your own", "--dataset NAME"])
    fails(prepare_coco, "--classes_of", "voc07", says=["--classes_of is for annotations of your own"])
    fails(prepare_coco, *MINE, "--year", "2014", says=["--year is for MS-COCO"])
    fails(prepare_coco, *MINE, "--data_path", "photos", says=["--data_path is for MS-COCO"])
    fails(prepare_coco, *MINE[:4], says=["--dataset mine needs --train and --test"])
    fails(prepare_coco, *MINE[:2], *MINE[4:], says=["needs --train and --test", "--classes_of"])
    fails(prepare_coco, *MINE[:5], "none.json", says=["none.json: No such file"])


def test_malformed_annotations_are_reported(annotations, mine, fails):
    path = Path("photos/test.json")
    good = json.loads(path.read_text())

    def refused(content: str, *says: str) -> None:
        path.write_text(content)
        fails(prepare_coco, *MINE, says=["photos/test.json", *says])

    refused("{", "JSONDecodeError")
    refused("[]", "not a COCO annotation file")
    refused(json.dumps({**good, "images": []}), "every id it refers to")
    refused(json.dumps({**good, "images": [], "annotations": []}), "annotates no image")
    refused(json.dumps({**good, "annotations": []}), "annotates no image")
    refused(json.dumps({**good, "images": good["images"] * 2}), "appears twice in its images")
    refused(json.dumps({**good, "annotations": [{"id": 1, "image_id": 1, "category_id": 99}]}), "99")
    outside = [{**image, "file_name": "../photos/0.png"} for image in good["images"]]
    refused(json.dumps({**good, "images": outside}), "'../photos/0.png' is not below photos")
