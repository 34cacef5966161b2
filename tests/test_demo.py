"""demo.py labels images and draws where the model looked."""

import csv
import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import demo
import val
from helpers import SHAPES
from utils.inference.heatmap import ClassMap, contact_sheet, overlay, single_picture
from utils.inference.heatmap_files import heatmap_folders
from utils.inference.search import find_photos
from utils.runtime.errors import UserError

CPU = ["--num_workers", "0", "--device", "cpu"]


@pytest.fixture
def photos(shapes, trained, tmp_path, monkeypatch) -> Path:
    """Change to a folder with a checkpoint and five images, two of them in subfolders."""
    shutil.copy(trained / "best.pth", tmp_path / "model.pth")
    for index, name in enumerate(["a.jpg", "b.jpg", "c.jpg", "deep/d.jpg", "deep/er/ä b.jpg"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / f"data/shapes/images/test/{index:05d}.jpg", path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def label(command, *options):
    return command(demo, "--load_from", "model.pth", *CPU, *options)


def test_scores_equal_those_of_val(photos, shapes, command):
    result = label(command, "--img_dir", "photos", "--json", "s.json", "--csv", "s.csv", "--batch_size", 2)
    assert result.status == 0, result.err
    entries = json.loads(Path("s.json").read_text())
    assert [entry["image"] for entry in entries] == [
        f"photos/{name}" for name in ("a.jpg", "b.jpg", "c.jpg", "deep/d.jpg", "deep/er/ä b.jpg")
    ]
    names = json.loads((shapes / "data/shapes/classes.json").read_text())
    with open("s.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["image", *names]
    assert float(table[1][1]) == pytest.approx(entries[0]["scores"]["circle"], rel=1e-5)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shapes)
        command(val, *SHAPES, "--load_from", photos / "model.pth", "--save_scores", photos / "s.npz")
    expected = np.load("s.npz")["scores"][:5]
    ours = np.array([[entry["scores"][name] for name in names] for entry in entries])
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    lines = [line for line in result.out.splitlines() if line.startswith("photos/")]
    for line, row in zip(lines, ours, strict=True):
        shown = line.rpartition(": ")[2]
        best = [f"{names[c]} {row[c]:.2f}" for c in np.argsort(-row) if row[c] >= 0.5]
        assert shown == (", ".join(best) or "-")


def test_threshold_and_top_choose_the_classes_to_show(photos, command):
    def shown(*options) -> list[list[float]]:
        result = label(command, "--img_dir", "photos/a.jpg", "photos/b.jpg", *options)
        lists = [line.partition(": ")[2] for line in result.out.splitlines()[-2:]]
        return [[float(item.split()[-1]) for item in line.split(", ") if line != "-"] for line in lists]

    assert [len(scores) for scores in shown("--top", 3)] == [3, 3]
    assert all(scores == sorted(scores, reverse=True) for scores in shown("--top", 8))
    assert [len(scores) for scores in shown("--threshold", 0)] == [8, 8]
    assert shown("--threshold", 1) == [[], []]
    assert [len(scores) for scores in shown("--threshold", 0, "--top", 2)] == [2, 2]


def test_thresholds_by_class_choose_the_classes_to_show(photos, shapes, command, fails):
    names = json.loads((shapes / "data/shapes/classes.json").read_text())
    Path("t.json").write_text(json.dumps({name: 0.0 if name in names[2:4] else 1.0 for name in names}))
    result = label(command, "--img_dir", "photos/a.jpg", "--threshold", "t.json")
    assert {item.split()[0] for item in result.out.split(": ")[-1].split(", ")} == set(names[2:4])
    wrong = [[], *(dict.fromkeys(*items) for items in ((names[1:], 0.5), (names, "a"), (names, math.nan)))]
    for content in wrong:
        Path("bad.json").write_text(json.dumps(content))
        options = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--threshold", "bad.json"]
        fails(demo, *options, says=["bad.json", "threshold for each class"])


def test_photographs_are_turned_upright(photos, command):
    with Image.open("photos/a.jpg") as image:
        turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    image.crop((0, 0, 40, 20)).save("photos/a.png")
    exif[0x0112] = 6
    turned.crop((0, 8, 20, 48)).save("photos/b.png", exif=exif)
    options = ["--heatmap", "--top", 1, "--json", "s.json"]
    assert label(command, "--img_dir", "photos/a.png", "photos/b.png", *options).status == 0
    plain, phone = (entry["scores"] for entry in json.loads(Path("s.json").read_text()))
    assert phone == pytest.approx(plain, abs=1e-6)
    plain, phone = (next(Path("heatmaps", name).glob("1_*.png")) for name in ("a.png", "b.png"))
    assert plain.read_bytes() == phone.read_bytes()


@pytest.mark.parametrize("place", ["photos/notes.csv", "photos/*"])
def test_files_that_are_not_images_are_reported_and_skipped(photos, command, place):
    (photos / "photos" / "notes.csv").write_text("no image")
    (photos / "photos" / "b.jpg").write_bytes((photos / "photos" / "b.jpg").read_bytes()[:300])
    result = label(command, "--img_dir", "photos", place, "--batch_size", 1, "--json", "s.json")
    assert result.status == 1
    skipped = [line for line in result.err.splitlines() if line.startswith("skipped: ")]
    assert ["photos/b.jpg" in skipped[0], "photos/notes.csv" in skipped[1], len(skipped)] == [True, True, 2]
    assert result.err.splitlines()[-1].startswith("skipped 2 of 6 images")
    assert len(json.loads(Path("s.json").read_text())) == 4


def test_a_folder_stands_for_its_visible_images(photos, command, fails):
    (photos / "photos" / "labels.csv").write_text("image,labels")
    (photos / "photos" / ".hidden.jpg").write_text("hidden files are not read")
    (photos / "photos" / "c.jpg").rename("photos/C.JPEG")
    result = label(command, "--img_dir", "photos")
    assert (result.status, result.err) == (0, "")
    assert "photos/C.JPEG: " in result.out
    (photos / "tables").mkdir()
    (photos / "photos" / "labels.csv").rename("tables/labels.csv")
    fails(demo, "--load_from", "model.pth", *CPU, "--img_dir", "tables", says=["tables", "without visible"])


def test_img_dir_takes_files_folders_and_patterns(photos):
    def images(*places: str) -> list[str]:
        found = find_photos(list(places))
        assert found.skipped == []
        return found.images

    assert images("photos/a.jpg", "photos/a.jpg") == ["photos/a.jpg"]
    assert images("photos/*.jpg") == ["photos/a.jpg", "photos/b.jpg", "photos/c.jpg"]
    assert images("photos/deep") == ["photos/deep/d.jpg", "photos/deep/er/ä b.jpg"]
    assert images("photos/**/d.jpg", "**/d.jpg") == ["photos/deep/d.jpg"]
    assert images("photos/**/deep") == images("photos/deep")
    assert len(images("photos/**/*.jpg")) == len(images("photos/**")) == len(images("**/*.jpg")) == 5


def test_released_checkpoints_need_the_data_set_for_class_names(photos, command, fails, shapes):
    shutil.copytree(shapes / "data", photos / "data")
    torch.save(torch.load("model.pth", weights_only=True)["model"], "model.pth")
    arguments = ["--img_dir", "photos/a.jpg", "--top", "1"]
    fails(demo, "--load_from", "model.pth", *CPU, *arguments, says=["8 classes", "voc07 has 20", "data set"])
    assert label(command, *arguments, "--dataset", "shapes", "--img_size", 40).status == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--img_dir", "nowhere"], ["nowhere"]),
        (["--img_dir", "photos/*.png"], ["photos/*.png"]),
        (["--img_dir", "photos", "--json", "photos/a.jpg"], ["--json photos/a.jpg", ".json"]),
        (["--img_dir", "photos", "--csv", "s.json"], ["--csv s.json", ".csv"]),
        (["--img_dir", "photos", "--threshold", "-1"], ["--threshold", "-1", "0 to 1"]),
        (["--img_dir", "photos", "--threshold", "2"], ["--threshold", "'2'", "0 to 1"]),
        (["--img_dir", "photos", "--threshold", "nan"], ["--threshold", "nan"]),
        (["--img_dir", "photos", "--threshold", "gone.json"], ["gone.json"]),
        (["--img_dir", "photos", "--top", "0"], ["--top", "'0'"]),
        (["--img_dir", "photos", "--heatmap", "--out_dir", "photos/a.jpg"], ["--out_dir", "photos/a.jpg"]),
        (["--img_dir", "photos", "--json", "photos/deep"], ["--json photos/deep"]),
        (["--img_dir", "photos/a.jpg", "--heatmap", "--out_dir", "photos"], ["--out_dir photos"]),
    ],
)
def test_bad_options_are_refused(photos, fails, command, options, says):
    fails(demo, "--load_from", "model.pth", *CPU, *options, says=says)


def test_a_data_set_other_than_that_of_the_checkpoint_is_refused(photos, command, fails):
    assert label(command, "--img_dir", "photos", "--dataset", "shapes").status == 0
    arguments = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--dataset"]
    fails(demo, *arguments, "elsewhere", says=["--dataset elsewhere"])
    fails(demo, *arguments, "voc07", says=["class 1 is circle, not aeroplane", "--dataset voc07 has 20"])


def test_file_names_of_any_bytes_are_labelled_and_pipes_are_skipped(photos, command):
    name = os.fsdecode(b"photos/\xff\nb.png")
    Image.new("RGB", (50, 50)).save(name)
    os.mkfifo("photos/pipe")
    result = label(command, "--img_dir", "photos/pipe", name, "--csv", "s.csv", "--heatmap", "--top", 1)
    assert result.status == 1
    assert "skipped: photos/pipe is a folder or" in result.err
    assert b"photos/\xff" in Path("s.csv").read_bytes()
    assert "\\udcff b.png: " in result.out  # one line


@pytest.mark.slow
def test_earlier_heatmaps_are_not_labelled_and_are_replaced(photos, command):
    def pictures(*options) -> list[str]:
        assert label(command, "--img_dir", ".", "photos", "--heatmap", *options).status == 0
        return sorted(str(path) for path in Path("heatmaps").rglob("*.png"))

    assert len(pictures("--top", 3)) == 5 * 4
    assert len(pictures("--top", 1)) == 5 * 2


@pytest.mark.parametrize("num_heads", [0, 1])
def test_heatmaps_are_written(photos, command, num_heads):
    if num_heads == 0:
        checkpoint = torch.load("model.pth", weights_only=True)
        weight = checkpoint["model"].pop("classifier.multi_head.0.head.weight")
        checkpoint["model"] |= {"classifier.head.weight": weight, "classifier.head.bias": torch.zeros(8)}
        torch.save(checkpoint, "model.pth")
    result = label(command, "--img_dir", "photos", "--heatmap", "--top", 3, "--out_dir", "maps")
    assert result.status == 0, result.err
    pictures = sorted(str(path.relative_to("maps")) for path in Path("maps").rglob("*.png"))
    assert len(pictures) == 5 * 4
    assert "deep/er/ä b.jpg/sheet.png" in pictures
    best = next(line for line in result.out.splitlines() if "a.jpg: " in line).split(": ")[1].split()[0]
    with Image.open(f"maps/a.jpg/1_{best}.png") as image:
        assert image.size == (280, 280 + 42)  # a small image is enlarged, and has a legend of two rows


def test_a_heatmap_is_brightest_at_the_largest_value():
    grey = Image.new("RGB", (120, 80), (100, 100, 100))
    values = np.zeros((2, 3))
    values[1, 2] = 0.6
    pixels = np.asarray(overlay(grey, values)).astype(int).sum(axis=2)
    assert pixels.shape == (80, 120)
    assert np.unravel_index(pixels.argmax(), pixels.shape) == pytest.approx((60, 100), abs=20)
    assert (np.asarray(overlay(grey, -values)) == np.asarray(overlay(grey, 0 * values))).all()


def test_a_map_of_few_places_is_drawn_as_blocks():
    grey = Image.new("RGB", (120, 80), (100, 100, 100))
    coarse = np.asarray(overlay(grey, np.array([[0, 1], [0.5, 0]])))
    for top, left in ((0, 0), (0, 60), (40, 0), (40, 60)):
        block = coarse[top : top + 40, left : left + 60].reshape(-1, 3)
        assert (block == block[0]).all()
    assert len(np.unique(coarse.reshape(-1, 3), axis=0)) == 3
    fine = np.asarray(overlay(grey, np.eye(14)))
    assert len(np.unique(fine.reshape(-1, 3), axis=0)) > 50


def test_heatmaps_of_large_photographs_are_reduced(photos, command):
    Image.new("RGB", (3000, 2000), "white").save("photos/a.jpg")
    options = ["--img_dir", "photos/a.jpg", "photos/b.jpg", "--heatmap", "--top", 1]
    for more, width in (([], 1600), (["--max_side", 500], 500)):
        assert label(command, *options, *more).status == 0
        (picture,) = Path("heatmaps/a.jpg").glob("1_*.png")
        with Image.open(picture) as image:
            assert image.width == width
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        with Image.open("heatmaps/a.jpg/sheet.png") as image:
            assert image.width == 2 * 540 + 10


def test_heatmaps_can_be_pdf_files_and_replace_those_of_other_formats(photos, command):
    options = ["--img_dir", "photos/a.jpg", "photos/b.jpg", "--heatmap", "--top", 1]
    assert label(command, *options).status == 0
    Path("heatmaps/a.jpg/my_notes.png").touch()
    assert label(command, *options, "--format", "pdf").status == 0
    names = sorted(path.name for path in Path("heatmaps/a.jpg").iterdir())
    assert [name.partition("_")[0] for name in names] == ["1", "my", "sheet.pdf"]
    content = Path("heatmaps/a.jpg/sheet.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    width, _ = re.search(rb"MediaBox \[ 0 0 ([\d.]+) ([\d.]+)", content).groups()
    assert float(width) == pytest.approx((2 * 540 + 10) / 300 * 72)  # points
    assert label(command, *options).status == 0  # demo.py knows its own PDF files
    Path("heatmaps/a.jpg/2_mine.pdf").write_bytes(b"%PDF")
    result = label(command, *options)
    assert (result.status, "2_mine.pdf" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("classes", "start"), [("abcdefgh", b"image,a,"), ("äbcdefgh", b"\xef\xbb\xbfimage,\xc3\xa4,")]
)
def test_tables_start_with_a_mark_if_a_spreadsheet_needs_it(photos, command, classes, start):
    checkpoint = torch.load("model.pth", weights_only=True)
    torch.save(checkpoint | {"classes": list(classes)}, "model.pth")
    assert label(command, "--img_dir", "photos/a.jpg", "--csv", "s.csv").status == 0
    assert Path("s.csv").read_bytes().startswith(start)


def test_legends_shorten_long_names_and_sheets_show_all_maps():
    image = Image.new("RGB", (500, 300))
    item = ClassMap("a name much too long for the place that there is for it", 0.5, np.ones((2, 2)), "25 %")
    assert single_picture(image, item).size == (500, 300 + 7 * 7)
    sheet = contact_sheet(image, [item] * 5, "long.jpg")
    assert sheet.size == (10 + 4 * 540, 10 + 2 * (318 + 7 * 15 + 10))
    assert sheet.width / 300 == pytest.approx(7.2, abs=0.05)  # inches: the width of a page
    assert max(contact_sheet(Image.new("RGB", (1, 3000)), [item], "a\nb").size) < 1200


def test_the_bar_is_labelled_and_small_images_are_enlarged(monkeypatch):
    texts, draw_text = [], ImageDraw.ImageDraw.text

    def record(self, place, text, *rest, **options) -> None:
        texts.append(text)
        draw_text(self, place, text, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    item = ClassMap("dog", 0.5, np.zeros((2, 2)), "25 %")
    for size, expected in (((64, 32), (280, 182)), ((900, 600), (900, 698)), ((3, 270), (280, 322))):
        assert single_picture(Image.new("RGB", size), item).size == expected
    assert texts == ["share of attention  0", "25 %", "dog  0.50"] * 3
    single_picture(Image.new("RGB", (64, 64)), item._replace(measure="score of the place"))
    assert texts[-3] == "score of the place  0"
    legend = np.asarray(single_picture(Image.new("RGB", (280, 280), "white"), item))[-14:-8]
    assert len(np.unique(legend.reshape(-1, 3), axis=0)) > 80  # the colours of the bar


def test_heatmaps_of_photographs_on_two_drives_are_refused_with_the_way_out(monkeypatch):
    def on_two_drives(paths: object) -> str:
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("utils.inference.heatmap_files.os.path.commonpath", on_two_drives)
    with pytest.raises(UserError, match=r"--out_dir: .*a and .*b are on two drives: .* on their own"):
        heatmap_folders(Path("maps"), ["a/x.jpg", "b/x.jpg"])


def test_of_the_folders_of_heatmaps_each_that_exists_is_tried_once(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr("utils.inference.heatmap_files.check_folder", lambda folder, _: tried.append(folder))
    (tmp_path / "maps/a").mkdir(parents=True)
    heatmap_folders(tmp_path / "maps", [f"{folder}/{i}.jpg" for folder in ("a", "b", "c") for i in range(9)])
    assert tried == [tmp_path / "maps", tmp_path / "maps/a"]


def test_a_file_in_the_place_of_a_heatmap_folder_is_reported(photos, command):
    Path("maps").mkdir()
    for place in ("c.jpg", "deep"):  # of the pictures of an image, and of a folder of images
        (Path("maps") / place).write_text("a file")
        result = label(command, "--img_dir", "photos", "--heatmap", "--out_dir", "maps")
        assert (result.status, result.out, result.err.count("\n")) == (
            2,
            "",
            1,
        )  # before any image is labelled
        assert f"--out_dir: the folder maps/{place}" in result.err
        (Path("maps") / place).unlink()
    assert not list(Path("maps").iterdir())


def test_options_are_checked_against_the_checkpoint(photos, command, fails):
    agreeing = ["--model", "resnet18", "--num_heads", 1, "--num_cls", 8, "--lam", 0.1]
    assert label(command, "--img_dir", "photos/a.jpg", *agreeing).status == 0
    for option, value, held in (("model", "resnet50", "resnet18"), ("num_heads", 4, 1), ("num_cls", 20, 8)):
        arguments = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", f"--{option}", value]
        fails(demo, *arguments, says=[f"--{option} {value}", "model.pth", f"{option} {held}"])
