"""The preparers of VOC and COCO on small data sets with known content."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from utils import prepare_coco, prepare_voc
from utils.data.classes import class_names
from utils.data.datasets import DATASETS
from utils.data.samples import load_split

VOC_IMAGES = {
    # image id: split and objects (class, difficult)
    "000012": ("train", [("car", 0), ("car", 1), ("person", 1)]),
    "000005": ("val", [("dog", 0)]),
    "000007": ("val", []),
    "000009": ("test", [("cat", 1), ("cat", 1), ("sofa", 0)]),
    "000003": ("test", [("person", 1), ("person", 0)]),
}


def make_voc(root: Path) -> Path:
    """Write a VOC2007 with five images; return its folder."""
    voc = root / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (voc / folder).mkdir(parents=True)
    for image_id, (split, objects) in VOC_IMAGES.items():
        Image.new("RGB", (8, 6)).save(voc / "JPEGImages" / f"{image_id}.jpg")
        items = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult>"
            "<part><name>head</name></part></object>"
            for name, difficult in objects
        )
        (voc / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{items}</annotation>")
        with open(voc / "ImageSets" / "Main" / f"{split}.txt", "a") as file:
            file.write(f"{image_id}  \n")
    return voc


def make_coco(root: Path, year: str = "2014") -> Path:
    """Write a COCO with five images; one image of each split has no annotation. Return its folder."""
    coco = root / f"COCO{year}"
    (coco / "annotations").mkdir(parents=True)
    # As in the real COCO, the category ids have gaps and the lists are not sorted.
    categories = [{"id": 2 * i + 1, "name": name} for i, name in enumerate(class_names("coco"))][::-1]
    for split, ids in {"train": [30, 10, 20], "val": [5, 4]}.items():
        images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids]
        annotations = [
            {"id": 1, "image_id": ids[0], "category_id": 159, "iscrowd": 1},
            {"id": 2, "image_id": ids[0], "category_id": 1, "iscrowd": 0},
            {"id": 3, "image_id": ids[0], "category_id": 1, "iscrowd": 0},
        ]
        if split == "train":
            annotations.append({"id": 4, "image_id": 10, "category_id": 5, "iscrowd": 0})
        folder = coco / "images" / f"{split}{year}"
        folder.mkdir(parents=True)
        for image in images:
            Image.new("RGB", (8, 6)).save(folder / image["file_name"])
        content = {"images": images, "annotations": annotations, "categories": categories}
        (coco / "annotations" / f"instances_{split}{year}.json").write_text(json.dumps(content))
    return coco


def read(path: str) -> dict[str, list[int]]:
    """Read a label file as {image path: target}; check that its entries have no other keys."""
    entries = json.loads(Path(path).read_text())
    assert all(set(entry) == {"target", "img_path"} for entry in entries)
    return {entry["img_path"]: entry["target"] for entry in entries}


def positives(dataset: str, split: str) -> list[int]:
    """Return the number of positive images of each class, as load_split reads them."""
    return (load_split(DATASETS[dataset], split, 32).labels.targets.rows() == 1).sum(axis=0).tolist()


def target(folder: str, absent: int, **values: int) -> list[int]:
    """Return the target with these values of some classes and `absent` for all others."""
    return [values.get(name, absent) for name in class_names(folder)]


def test_voc_targets_and_order(workdir, command):
    make_voc(workdir / "Dataset")
    result = command(prepare_voc, "--data_path", "Dataset/VOCdevkit")
    assert result.status == 0
    images = "Dataset/VOCdevkit/VOC2007/JPEGImages"
    trainval, test = read("data/voc07/trainval_voc07.json"), read("data/voc07/test_voc07.json")
    assert list(trainval) == [f"{images}/{i}.jpg" for i in ("000005", "000007", "000012")]
    assert list(trainval.values()) == [
        target("voc07", 0, dog=1),
        target("voc07", 0),
        target("voc07", 0, car=1, person=0),
    ]
    assert list(test) == [f"{images}/{i}.jpg" for i in ("000003", "000009")]
    assert list(test.values()) == [target("voc07", -1, person=1), target("voc07", -1, cat=0, sofa=1)]
    assert "3 images, 2 labels" in result.out
    assert "1 test labels" in result.out
    # load_split reads the same targets from the file.
    assert positives("voc07", "test") == target("voc07", 0, person=1, sofa=1)

    before = {path.name: path.read_bytes() for path in Path("data/voc07").iterdir()}
    assert sorted(before) == ["test_voc07.json", "trainval_voc07.json"]
    command(prepare_voc, "--data_path", "Dataset/VOCdevkit")
    assert {path.name: path.read_bytes() for path in Path("data/voc07").iterdir()} == before


def test_voc_2012_is_evaluated_on_val(workdir, command):
    voc = make_voc(workdir / "Dataset")
    voc.rename(voc.with_name("VOC2012"))
    result = command(prepare_voc, "--year", "2012")
    assert result.status == 0, result.err
    files = sorted(path.name for path in Path("data/voc12").iterdir())
    assert files == ["train_voc12.json", "val_voc12.json"]
    train, val = (read(f"data/voc12/{name}_voc12.json") for name in ("train", "val"))
    assert list(train.values()) == [target("voc12", 0, car=1)]
    assert list(val.values()) == [target("voc12", -1, dog=1), target("voc12", -1)]
    assert positives("voc12", "test") == target("voc12", 0, dog=1)


def test_voc_errors_name_the_file(workdir, fails):
    voc = make_voc(workdir)

    def refused(*says: str) -> None:
        fails(prepare_voc, "--data_path", "VOCdevkit", says=says)
        assert not Path("data/voc07").exists()

    annotation = voc / "Annotations" / "000005.xml"
    good = annotation.read_text()
    bomb = "".join(f"<!ENTITY e{i} '{10 * f'&e{i - 1};'}'>" for i in range(1, 10))  # expands to gigabytes
    bomb = f"<!DOCTYPE a [<!ENTITY e0 'dog'>{bomb}]>"
    for content, says in (
        (good[:-5], "valid XML"),
        (good.replace("dog", "dragon"), "'dragon'"),
        (good.replace("<name>dog</name>", ""), "''"),
        (good.replace("<difficult>0", "<difficult>yes"), "'yes'"),
        ('<?xml version="1.0" encoding="gbk"?>' + good, "valid XML"),
        ('<?xml version="1.0" encoding="foo"?>' + good, "valid XML"),
        (bomb + good.replace("dog", "&e9;"), "amplification"),
        ("<annotation>" + "<object>" * 200_000 + "</object>" * 200_000 + "</annotation>", "''"),
        ("<html></html>", "<html>"),
    ):
        annotation.write_text(content)
        refused("000005.xml", says)
    annotation.unlink()
    refused("000005.xml", "missing")
    annotation.write_text(good)
    (voc / "JPEGImages" / "000012.jpg").unlink()
    refused("000012.jpg", "missing")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("../Annotations/000005\n")
    refused("train.txt", "points outside of JPEGImages/")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("\n")
    refused("train.txt", "no images")
    (voc / "ImageSets" / "Main" / "val.txt").unlink()
    (voc / "ImageSets" / "Main" / "train.txt").unlink()
    refused("train.txt")
    fails(prepare_voc, "--data_path", "elsewhere", says=["elsewhere/VOC2007", "--download"])
    fails(prepare_voc, "--data_path", "elsewhere", "--download", says=["elsewhere", "VOCdevkit"])


def test_voc_names_the_class_that_is_probably_meant(workdir, fails):
    annotation = make_voc(workdir) / "Annotations" / "000005.xml"
    good = annotation.read_text()
    hints = {"Dogg": "'Dogg' (did you mean 'dog'?)", "d\u043eg": "'d\\u043eg' (it prints like 'dog'"}
    for name, says in hints.items():
        annotation.write_text(good.replace("dog", name))
        fails(prepare_voc, "--data_path", "VOCdevkit", says=["000005.xml", "classes.json has no class", says])


def test_an_image_of_voc_counts_once_however_its_name_is_written(workdir, command, fails):
    voc = make_voc(workdir)
    lists = voc / "ImageSets" / "Main"
    (lists / "val.txt").write_text("./000005\n.//000007\n000005\n000012\n000007\n")
    assert command(prepare_voc, "--data_path", "VOCdevkit").status == 0
    trainval = read("data/voc07/trainval_voc07.json")
    assert sorted(Path(path).stem for path in trainval) == ["000005", "000007", "000012"]
    assert list(trainval.values()).count(target("voc07", 0, dog=1)) == 1
    assert len(load_split(DATASETS["voc07"], "train", 32)) == 3
    shutil.rmtree("data")
    (voc / "JPEGImages" / "link.jpg").symlink_to("000005.jpg")
    (voc / "Annotations" / "link.xml").write_text((voc / "Annotations" / "000005.xml").read_text())
    for name in ("000005", "./000005", "link"):
        (lists / "test.txt").write_text(f"000009\n{name}\n")
        fails(prepare_voc, "--data_path", "VOCdevkit", says=["000005.jpg", "is in trainval and in test"])


def test_voc_accepts_unicode_folders_links_and_crlf(workdir, command):
    voc = make_voc(workdir / "Bilder von früher 猫")
    for path in (voc / "Annotations").iterdir():
        path.write_text(path.read_text().replace("><", ">\r\n<"), encoding="utf-8-sig", newline="")
    for path in (voc / "ImageSets" / "Main").iterdir():
        path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    (voc / "JPEGImages").rename(workdir / "images")
    (voc / "JPEGImages").symlink_to(workdir / "images")
    result = command(prepare_voc, "--data_path", "Bilder von früher 猫/VOCdevkit", "--verify")
    assert result.status == 0, result.err
    assert "decoded 5 images, 0 of them bad" in result.out
    assert positives("voc07", "train") == target("voc07", 0, dog=1, car=1)
    assert load_split(DATASETS["voc07"], "train", 32)[0, 0, True][0].shape == (3, 32, 32)


@pytest.mark.parametrize("preparer", [prepare_voc, prepare_coco])
def test_verify_lists_bad_images(workdir, command, preparer):
    make_voc(workdir)
    make_coco(workdir)
    options = ["--data_path", "VOCdevkit" if preparer is prepare_voc else "COCO2014"]
    paths = sorted(Path(options[1]).rglob("*.jpg"))
    for bad in (paths[0], paths[-1]):
        bad.write_bytes(bad.read_bytes()[:200])
    result = command(preparer, *options, "--verify")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"2 of {3 if preparer is prepare_coco else 5} images are bad, first {paths[0]}" in result.err
    assert all(f"{bad} cannot be read as an image" in result.out for bad in (paths[0], paths[-1]))
    assert "--skip_bad leaves them all out" in result.err
    assert not Path("data").exists()
    paths[-1].write_bytes(paths[1].read_bytes())  # the only image of COCO's val
    result = command(preparer, *options, "--skip_bad")
    assert result.status == 0, result.err
    assert "1 of them bad" in result.out
    assert "left out 1 bad images" in result.out
    labels = "".join(path.read_text() for path in Path("data").rglob("*.json"))
    assert paths[-1].name in labels
    assert paths[0].name not in labels
    assert command(preparer, *options).status == 0


def test_voc_download_uses_torchvision(workdir, command, fails, monkeypatch):
    import torchvision.datasets

    calls = []

    def fetch(root, year, image_set, download):
        calls.append((Path(root), year, image_set, download))
        if image_set == "test":
            make_voc(Path(root))

    monkeypatch.setattr(torchvision.datasets, "VOCDetection", fetch)
    assert command(prepare_voc, "--data_path", "Dataset/VOCdevkit", "--download").status == 0
    assert calls == [(Path("Dataset"), "2007", split, True) for split in ("trainval", "test")]

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "VOCDetection", no_network)
    says = ["--download would replace", "Dataset/VOCdevkit/VOC2007", "leave it out"]
    fails(prepare_voc, "--data_path", "Dataset/VOCdevkit", "--download", says=says)
    Path("Dataset/VOCdevkit/VOC2007/ImageSets/Main/test.txt").unlink()  # as if an archive were missing
    fails(prepare_voc, "--data_path", "Dataset/VOCdevkit", "--download", says=["no route to host"])


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco_targets_and_order(workdir, command, year):
    make_coco(workdir / "Dataset", year)
    result = command(
        prepare_coco, "--data_path", f"Dataset/COCO{year}", *(["--year", year] * (year != "2014"))
    )
    assert result.status == 0
    train, val = read(f"data/coco/train_coco{year}.json"), read(f"data/coco/val_coco{year}.json")
    assert train == {
        f"Dataset/COCO{year}/images/train{year}/000000000010.jpg": target("coco", 0, car=1),
        f"Dataset/COCO{year}/images/train{year}/000000000030.jpg": target("coco", 0, person=1, toothbrush=1),
    }
    assert list(train) == sorted(train)
    assert list(val.values()) == [target("coco", 0, person=1, toothbrush=1)]
    assert all(f"{split}{year}: 1 images left out" in result.out for split in ("train", "val"))
    name = "coco" if year == "2014" else "coco2017"
    assert len(load_split(DATASETS[name], "train", 32)) == 2


def test_an_image_of_coco_under_two_ids_is_one_entry(workdir, command, fails):
    coco = make_coco(workdir)
    path = coco / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        if image["id"] == 10:
            image["file_name"] = f"./{30:012d}.jpg"
    path.write_text(json.dumps(content))
    assert command(prepare_coco, "--data_path", "COCO2014").status == 0
    (entry,) = read("data/coco/train_coco2014.json").values()
    assert entry == target("coco", 0, car=1, person=1, toothbrush=1)
    assert len(load_split(DATASETS["coco"], "train", 32)) == 1
    shutil.rmtree("data")
    inside = coco / "images" / "val2014" / f"{5:012d}.jpg"
    inside.unlink()
    inside.symlink_to((coco / "images" / "train2014" / f"{30:012d}.jpg").resolve())
    says = ["000000000030.jpg", "is in train_coco2014.json and in val_coco2014.json"]
    fails(prepare_coco, "--data_path", "COCO2014", says=says)


def test_coco_errors_name_the_file(workdir, fails):
    coco = make_coco(workdir)
    path = coco / "annotations" / "instances_val2014.json"
    good = json.loads(path.read_text())

    def refused(content: str, *says: str) -> None:
        path.write_text(content)
        fails(prepare_coco, "--data_path", "COCO2014", says=[*says, "instances_val2014.json"])
        assert not Path("data/coco").exists()

    def without(key: str, name: str) -> str:
        return json.dumps({**good, key: [{k: v for k, v in item.items() if k != name} for item in good[key]]})

    refused("{", "JSONDecodeError")
    refused("[]", "not a COCO annotation file")
    refused(without("annotations", "image_id"), "image_id")
    refused(without("annotations", "category_id"), "category_id")
    refused(without("categories", "name"), "name")
    refused(without("images", "file_name"), "file_name")
    refused(json.dumps({**good, "annotations": []}), "annotates no image")
    refused(json.dumps({**good, "categories": good["categories"][1:]}), "'toothbrush'")
    unknown = [{**item, "category_id": 1000} for item in good["annotations"]]
    refused(json.dumps({**good, "annotations": unknown}), "1000")
    unknown = [{**item, "image_id": 1000} for item in good["annotations"]]
    refused(json.dumps({**good, "annotations": unknown}), "every id it refers to (KeyError: 1000)")
    refused(json.dumps({**good, "images": good["images"] * 2}), "appears twice in its images")
    refused(json.dumps({**good, "categories": good["categories"] * 2}), "appears twice in its categories")
    outside = [{**item, "file_name": f"../train2014/{item['file_name']}"} for item in good["images"]]
    refused(json.dumps({**good, "images": outside}), "../train2014/000000000005.jpg", "points outside")
    (coco / "images" / "val2014" / "000000000005.jpg").unlink()
    refused(json.dumps(good), "000000000005.jpg", "missing")
    path.unlink()
    fails(prepare_coco, "--data_path", "COCO2014", says=["instances_val2014.json", "missing"])
    fails(prepare_coco, "--data_path", "COCO2014", "--year", "2015", says=["2015", "2014"])
    fails(prepare_coco, "--year", "2017", says=["Dataset/COCO2017"])


def test_coco_reports_that_pycocotools_is_missing(workdir, fails, monkeypatch):
    make_coco(workdir)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    fails(prepare_coco, "--data_path", "COCO2014", says=["pip install pycocotools"])


def test_a_full_disk_leaves_the_old_label_file(workdir, command, monkeypatch):
    make_voc(workdir / "Dataset")
    command(prepare_voc)
    before = Path("data/voc07/trainval_voc07.json").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = command(prepare_voc)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "trainval_voc07.json cannot be written: No space left on device" in result.err
    assert Path("data/voc07/trainval_voc07.json").read_bytes() == before
    assert sorted(p.name for p in Path("data/voc07").iterdir()) == ["test_voc07.json", "trainval_voc07.json"]
