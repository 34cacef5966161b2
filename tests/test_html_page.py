"""demo.py --html and val.py --html: a page of photographs, without and with a browser."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import demo
import val
from helpers import SHAPES
from utils.checkpoint import load_model
from utils.inference import html_page, label_job
from utils.inference.html_page import Page, PageSettings, encode_map, page_photo
from utils.inference.photographs import Thumbnail
from utils.inference.predictor import Prediction

CPU = ["--num_workers", "0", "--device", "cpu"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOSTILE = [
    "</script><script>document.title='hacked'</script>",
    "\"'><b id=hacked>",
    "<!--<script>",
    "&lt;",
    "狗",
]


@pytest.fixture
def photos(shapes, trained, tmp_path, monkeypatch) -> Path:
    """Change to a folder with a checkpoint and three images."""
    shutil.copy(trained / "best.pth", tmp_path / "model.pth")
    (tmp_path / "photos").mkdir()
    for index in range(3):
        shutil.copy(shapes / f"data/shapes/images/test/{index:05d}.jpg", tmp_path / f"photos/{index}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def label(command, *options):
    return command(demo, "--load_from", "model.pth", *CPU, "--img_dir", "photos", *options)


def settings_of(folder: Path) -> dict:
    text = (folder / "index.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<script id="settings" type="application/json">(.*?)</script>', text)
    return json.loads(found)


def calls(path: Path) -> list:
    """The last argument of the call that a file of scores or maps is."""
    return json.loads(re.fullmatch(r"\w+\((?:\d+, )?(.*)\);\n", path.read_text(encoding="ascii")).group(1))


def entries_of(folder: Path) -> list[dict]:
    return [entry for path in sorted((folder / "scores").iterdir()) for entry in calls(path)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_page_holds_scores_thumbnails_and_maps(photos, command):
    result = label(command, "--html", "page", "--json", "s.json", "--threshold", 0.4)
    assert result.status == 0, result.err
    assert "written to page" in result.out
    settings = settings_of(Path("page"))
    expected = json.loads(Path("s.json").read_text())
    assert settings["classes"] == list(expected[0]["scores"])
    assert (settings["thresholds"], settings["top"], settings["has_true_labels"]) == ([0.4] * 8, None, False)
    entries = entries_of(Path("page"))
    assert [entry["name"] for entry in entries] == [row["image"] for row in expected]
    (maps,) = [calls(path) for path in Path("page/maps").iterdir()]
    attention = load_model("model.pth", device="cpu").attention("photos/0.jpg")
    for entry, row, own_maps in zip(entries, expected, maps, strict=True):
        scores = [row["scores"][settings["classes"][c]] for c, _ in entry["scores"]]
        assert scores == sorted(scores, reverse=True)
        assert [score for _, score in entry["scores"]] == pytest.approx(scores, abs=1e-4)
        assert all(shown <= score for (_, shown), score in zip(entry["scores"], scores))
        assert len(own_maps) == min(5, len(scores))
        with Image.open(Path("page") / entry["thumbnail"]) as image:
            assert (image.format, image.size) == ("JPEG", (entry["width"], entry["height"]))
        assert Path(entry["url"].removeprefix("file://")) == Path(row["image"]).absolute()
    for c, (width, height, largest, encoded) in maps[0].items():
        values = attention[settings["classes"][int(c)]]
        levels = np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(height, width)
        assert largest == pytest.approx(values.max(), abs=1e-4)
        np.testing.assert_allclose(levels / 255 * values.max(), values, atol=values.max() / 255)


def test_a_page_of_an_evaluated_set_holds_the_labels(photos, shapes, command):
    entries = json.loads((shapes / "data/shapes/test.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shapes)
        options = ["--load_from", photos / "model.pth", "--html", photos / "page"]
        result = command(val, *SHAPES, *options, "--save_scores", photos / "s.npz")
    assert result.status == 0, result.err
    settings = settings_of(Path("page"))
    assert settings["has_true_labels"]
    assert "mAP" in settings["title"]
    scores = np.load("s.npz")["scores"]
    for entry, labels, row in zip(entries_of(Path("page")), entries, scores, strict=True):
        assert entry["name"] == labels["img_path"]
        assert entry["labels"] == [c for c, target in enumerate(labels["target"]) if target]
        assert entry["unknown"] == []
        held = dict(map(tuple, entry["scores"]))
        assert set(entry["labels"]) <= set(held)  # a miss is shown, however low its score is
        assert all(held[c] == pytest.approx(row[c], abs=1e-4) for c in held)
    for earlier in ("page/index.html", "page"):
        options = ["--load_from", "model.pth", "--html", "page", "--out", f"{earlier}/r.json"]
        result = command(val, *SHAPES, *options)
        assert (result.status, result.err.count("\n")) == (2, 1)


def test_names_cannot_end_the_script_that_holds_them(photos, command):
    checkpoint = torch.load("model.pth", weights_only=True)
    checkpoint["classes"] = [*HOSTILE, "a", "b", "c"]
    torch.save(checkpoint, "model.pth")
    shutil.copy("photos/0.jpg", "photos/<b id=hacked>\"'.jpg")
    shutil.copy("photos/0.jpg", "photos/x<\\script>SETTINGS SCORES.jpg")
    assert label(command, "--html", "page").status == 0
    assert settings_of(Path("page"))["classes"] == checkpoint["classes"]
    text = Path("page/index.html").read_text()
    template = html_page.TEMPLATE.read_text()
    assert text.count("<script") == template.count("<script") + 1  # of the scores
    assert text.count("</script") == template.count("</script") + 1
    assert len(entries_of(Path("page"))) == 5
    assert all("<" not in path.read_text() for path in Path("page/scores").iterdir())


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("page/notes.txt", "notes.txt"),
        ("page/thumbnails/mine.png", "thumbnails/mine.png"),
        ("page/index.html", "index.html"),
        ("page", "is a file"),
    ],
)
def test_a_folder_that_is_no_page_is_refused(photos, fails, place, says):
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_text("<!DOCTYPE html>\nmine")
    arguments = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--html", "page"]
    fails(demo, *arguments, says=["--html page", says])
    fails(val, *SHAPES, "--load_from", "model.pth", "--html", "page", says=["--html page", says])
    assert Path(place).read_text() == "<!DOCTYPE html>\nmine"


def test_outputs_in_the_folder_of_the_page_are_refused(photos, fails):
    arguments = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--html", "page"]
    fails(demo, *arguments, "--csv", "page/s.csv", says=["--html page", "page/s.csv"])
    fails(demo, *arguments, "--heatmap", "--out_dir", "page", says=["--html page"])
    fails(demo, *arguments, "--html", "photos", says=["--html photos holds"])


def test_an_earlier_page_is_replaced_and_its_pictures_are_not_labelled(photos, command):
    Path("photos/page").mkdir()  # an empty folder is one's own, too
    assert label(command, "--html", "photos/page").status == 0
    Path("photos/page/.DS_Store").touch()
    Path("photos/2.jpg").unlink()
    assert label(command, "--html", "photos/page").status == 0
    assert [entry["name"] for entry in entries_of(Path("photos/page"))] == ["photos/0.jpg", "photos/1.jpg"]
    assert len(list(Path("photos/page/thumbnails").iterdir())) == 2
    assert sorted(path.name for path in Path("photos").iterdir()) == ["0.jpg", "1.jpg", "page"]


def test_an_error_leaves_the_earlier_page_and_the_rows(photos, command):
    assert label(command, "--html", "page", "--threshold", 0.3).status == 0
    before = snapshot(photos)

    def full(page, name: str, content: bytes) -> None:
        with html_page.reporting_write_errors(page.folder / name):
            raise OSError(28, "No space left on device")

    for method in ("write", "write_maps"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Page, method, lambda page, *rest: full(page, "x", b""))
            result = label(command, "--html", "page", "--resume" if method == "write_maps" else "--tta=off")
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert (
            "No space left on device; 3 rows are kept: to go on, run the same command with --resume"
            in result.err
        )
        left = snapshot(photos)
        assert left.pop(str(photos / "page.rows"))
        assert left == before
    assert sorted(path.name for path in photos.iterdir()) == ["model.pth", "page", "page.rows", "photos"]
    assert label(command, "--html", "page", "--resume").status == 0
    assert snapshot(photos) != before  # the thresholds are others
    assert sorted(path.name for path in photos.iterdir()) == ["model.pth", "page", "photos"]


def test_only_one_process_writes(photos, command, monkeypatch):
    monkeypatch.setattr(demo, "RANK", 1)
    monkeypatch.setattr(label_job, "RANK", 1)
    assert label(command, "--html", "page").status == 0
    assert not Path("page").exists()


def test_the_writer_holds_a_bounded_number_of_photographs(tmp_path):
    settings = PageSettings("x", [str(c) for c in range(200)], np.full(200, 0.5), None, True, True)
    page = Page(tmp_path / "page", settings)
    maps = np.zeros((200, 2, 2), np.float32)
    scores = np.linspace(1, 0, 200)
    target = np.zeros(200)
    target[-1] = 1
    result = Prediction(scores, maps, Thumbnail(b"jpeg", 3, 2))
    for number in range(2000):
        page.add(page_photo(f"{number}.jpg", result, target))
        assert len(page.entries) < 1000
        assert len(page.maps) < 20
    page.finish()
    for folder, size in (("scores", 1000), ("maps", 20)):
        assert [len(calls(path)) for path in (page.folder / folder).iterdir()] == [size] * (2000 // size)
    entries = entries_of(page.folder)
    assert [entry["name"] for entry in entries] == [f"{number}.jpg" for number in range(2000)]
    assert [c for c, _ in entries[0]["scores"]] == [*range(50), 199]
    assert list(calls(page.folder / "maps/000000.js")[0]) == ["0", "1", "2", "3", "4", "199"]


def test_maps_of_scores_are_cut_off_at_0():
    width, height, largest, encoded = encode_map(np.array([[-1.0, 0, 2], [4, 1, -3]]))
    assert (width, height, largest) == (3, 2, 4)
    assert list(base64.b64decode(encoded)) == [0, 0, 128, 255, 64, 0]
    assert encode_map(np.full((1, 2), -1.0)) == [2, 1, 0, "AAA="]


# ---- in a browser ----


@pytest.fixture
def dom(tmp_path):
    """Return what a browser makes of a page with a text after the #; skip if there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome here: the script of the page is not tested")

    def load(folder: Path, chosen: str = "") -> str:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        profile = f"--user-data-dir={tmp_path}/profile"
        address = f"{(folder / 'index.html').absolute().as_uri()}#{chosen}"
        command = [browser, *flags, profile, "--virtual-time-budget=5000", "--dump-dom", address]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return load


def shown_names(html: str) -> list[str]:
    return re.findall(r'<div class="name" title="([^"]*)"', html)


def shown_labels(html: str) -> list[str]:
    return re.findall(r'<button type="button" class="label [^"]*">([^<]*)</button>', html)


def make_page(folder: Path, labelled: bool, number: int = 4) -> Path:
    """A page of photographs 0.jpg, 1.jpg and so on, for which dog has the scores 0.1, 0.3 and so on."""
    classes = ["dog", "cat", *HOSTILE]
    settings = PageSettings("a </title> b", classes, np.full(len(classes), 0.5), None, labelled, True)
    with html_page.new_page(folder, settings) as page:
        for index in range(number):
            scores = np.zeros(len(classes))
            scores[:2] = (0.1 + 0.2 * index) % 1, 0.6
            maps = np.full((len(classes), 2, 2), 0.25)
            target = np.zeros(len(classes), int)
            target[0] = index % 2 == 0
            target[2] = index == 0
            target[1] = -1 if index == 0 else 0
            result = Prediction(scores, maps, Thumbnail(b"", 30, 20))
            page.add(page_photo(f"{index}.jpg", result, target if labelled else None))
    return folder


@pytest.mark.slow
def test_class_threshold_and_order_choose_what_the_browser_shows(tmp_path, dom):
    page = make_page(tmp_path / "page", labelled=False)
    html = dom(page)
    assert "<title>a &lt;/title&gt; b</title>" in html
    assert len(shown_names(html)) == 4
    assert "4 of 4 photographs" in html
    assert 'src="maps/000000.js"' in html
    assert html.count('<canvas width="2" height="2" class="blocks"') == 4
    html = dom(page, "class=dog&threshold=0.4")
    assert shown_names(html) == ["3.jpg", "2.jpg"]
    assert shown_labels(html) == ["dog 0.70", "cat 0.60", "cat 0.60", "dog 0.50"]
    assert "dog (2)" in html
    assert "2 of 4 photographs" in html
    assert shown_names(dom(page, "class=dog&threshold=0&sort=unsure")) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert "<b id" not in html
    assert f"{HOSTILE[1]} (0)".replace("<", "&lt;").replace(">", "&gt;") in html


@pytest.mark.slow
def test_a_browser_shows_the_worst_mistakes_first(tmp_path, dom):
    page = make_page(tmp_path / "page", labelled=True)  # dog: 0.1 miss, 0.3 rightly absent, 0.5, 0.7 wrong
    assert shown_names(dom(page, "class=dog")) == ["0.jpg", "3.jpg", "2.jpg"]
    assert shown_names(dom(page, "class=dog&show=wrong")) == ["3.jpg"]
    assert shown_names(dom(page, "class=dog&show=missed")) == ["0.jpg"]
    assert shown_names(dom(page, "class=dog&show=right")) == ["2.jpg"]
    assert shown_names(dom(page, "class=cat&show=wrong")) == ["1.jpg", "2.jpg", "3.jpg"]  # 0.jpg: unknown
    html = dom(page, "class=dog&show=missed")
    labels = [label.replace("&lt;", "<").replace("&gt;", ">") for label in shown_labels(html)]
    assert labels == ["cat 0.60", "missed: dog 0.10", f"missed: {HOSTILE[0]} 0.00"]


@pytest.mark.slow
def test_the_controls_choose_what_the_browser_shows(tmp_path, dom):
    page = make_page(tmp_path / "page", labelled=False, number=130)
    use_controls = """
        const use = (id, value, event) => {
          const control = document.getElementById(id);
          control.value = value;
          control.dispatchEvent(new Event(event));
        };
        use("class", 0, "change");
        use("threshold", 0.65, "input");
        use("sort", "unsure", "change");
        document.getElementById("attention").click();
        const labels = document.querySelectorAll("figure .label");
        labels[0].dispatchEvent(new Event("mouseenter"));
        labels[2].dispatchEvent(new Event("mouseenter"));
        labels[2].dispatchEvent(new Event("mouseleave"));
        document.body.dataset.address = location.hash;
    """
    index = page / "index.html"
    index.write_text(index.read_text().replace("</body>", f"<script>{use_controls}</script></body>"))
    html = dom(page)
    assert 'data-address="#class=dog&amp;threshold=0.65&amp;sort=unsure&amp;attention=off"' in html
    names = shown_names(html)
    assert "52 of 130 photographs" in html  # 0.1 + 0.2 i: two of five are 0.7 or 0.9
    assert len(names) == 52
    assert all(round(0.1 + 0.2 * int(name[:-4]), 6) % 1 >= 0.65 for name in names)
    assert html.count('<canvas width="2" height="2"') == 1  # of the label that is pointed at
    assert html.count("<canvas hidden") == 51


@pytest.mark.slow
def test_a_browser_shows_some_photographs_at_a_time(tmp_path, dom):
    page = make_page(tmp_path / "page", labelled=False, number=130)
    html = dom(page, "sort=name&page=3")
    assert "page 3 of 3" in html
    assert len(shown_names(html)) == 10
    assert html.count('loading="lazy"') == 10
