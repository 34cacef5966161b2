"""The data set shapes: the same seed, the same files; labels match the objects."""

import contextlib
import json
from pathlib import Path

import pytest
from PIL import Image

from helpers import REPOSITORY, finish, start
from utils import prepare_shapes
from utils.data import shapes
from utils.data.drawing import DIFFICULTIES


def test_the_same_seed_makes_the_same_shapes(workdir, command):
    def make(folder: str, *options: str) -> dict[str, bytes]:
        result = command(prepare_shapes, "--num_train", 6, "--num_test", 3, "--out_dir", folder, *options)
        assert result.status == 0, result.err
        return {
            str(path.relative_to(folder)): path.read_bytes().replace(folder.encode(), b"the folder")
            for path in Path(folder).rglob("*")
            if path.is_file()
        }

    first = make("folder_a")
    assert len(first) == 9 + 4
    assert make("folder_b") == first
    assert make("folder_a") == first
    assert make("folder_c", "--seed", "1") != first
    assert len(make("folder_a", "--num_train", "2", "--overwrite")) == 5 + 4
    images = [content for name, content in first.items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_shapes_labels_match_the_objects(workdir, command, difficulty):
    assert command(prepare_shapes, "--difficulty", difficulty, "--num_train", 60, "--num_test", 1).status == 0
    entries = json.loads(Path("data/shapes/train.json").read_text())
    classes = json.loads(Path("data/shapes/classes.json").read_text())
    assert classes == json.loads((REPOSITORY / "data/shapes/classes.json").read_text())
    assert len(classes) >= 8
    assert {len(entry["objects"]) for entry in entries} == {1, 2, 3, 4}
    for entry in entries:
        present = {item["name"] for item in entry["objects"]}
        assert entry["target"] == [int(name in present) for name in classes]
        for item in entry["objects"]:
            x, y, w, h = item["bbox"]
            assert x >= 0
            assert y >= 0
            assert 4 < w <= 64 - x
            assert 4 < h <= 64 - y
    with Image.open(entries[0]["img_path"]) as image:
        assert (image.format, image.size) == ("JPEG", (64, 64))


def test_other_shapes_are_replaced_only_with_overwrite(workdir, command, fails):
    make = ["--num_train", 2, "--num_test", 1]
    made = "difficulty easy, num_train 2, num_test 1, size 64, seed 0"
    assert command(prepare_shapes, *make).out.splitlines()[-1] == f"made shapes in data/shapes with {made}"
    others = {"--difficulty": "hard", "--num_train": 3, "--num_test": 2, "--size": 48, "--seed": 1}
    for other in others.items():
        fails(prepare_shapes, *make, *other, says=["data/shapes holds", made, "add --overwrite"])
    assert command(prepare_shapes, *make).status == 0
    result = command(prepare_shapes, *make, "--difficulty", "hard", "--overwrite")
    assert "difficulty hard, num_train 2" in result.out
    Path("data/shapes/options.txt").unlink()
    fails(prepare_shapes, *make, says=["unknown options", "--overwrite"])


def test_interrupted_shapes_leave_no_partial_images(workdir, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_shapes.main([])
    assert [path.name for path in Path("data/shapes").iterdir()] == ["classes.json"]


def test_shapes_errors_name_the_option(workdir, fails):
    fails(prepare_shapes, "--difficulty", "absurd", says=["absurd", "easy"])
    fails(prepare_shapes, "--num_train", 0, says=["--num_train", "'0'"])
    (workdir / "file").touch()
    fails(prepare_shapes, "--out_dir", "file/shapes", says=["--out_dir", "file/shapes"])
    (workdir / "photos" / "images").mkdir(parents=True)
    fails(prepare_shapes, "--out_dir", "photos", says=["--out_dir photos", "name another"])
    assert (workdir / "photos" / "images").exists()


@pytest.mark.slow
def test_processes_that_make_the_shapes_at_once_make_one_data_set(workdir):
    options = ["--num_train", 200, "--num_test", 50, "--out_dir", "data/shapes"]
    for process in [start("utils/prepare_shapes.py", *options) for _ in range(3)]:
        status, out, err = finish(process)
        assert (status, err) == (0, "")
        assert "made shapes in data/shapes" in out
    names = sorted(path.name for path in Path("data/shapes").iterdir())
    assert names == ["classes.json", "images", "options.txt", "test.json", "train.json"]
    entries = json.loads(Path("data/shapes/train.json").read_text())
    assert len(entries) == 200
    assert all(Path(entry["img_path"]).is_file() for entry in entries)


def test_a_process_that_waits_for_another_one_uses_its_data_set(workdir, monkeypatch):
    """The other process has the lock first, and has made the data set when it gives the lock back."""
    options = shapes.ShapesOptions(num_train=2, num_test=1)
    folder = Path("data/shapes")

    @contextlib.contextmanager
    def wait(path: Path):
        shapes.write_shapes(folder, options)
        monkeypatch.setattr(shapes, "draw_scene", None)  # it would fail
        yield

    monkeypatch.setattr(shapes, "waiting_for_lock", wait)
    shapes.make_shapes(folder, options)
