"""An output replaces only a file of its own kind, and every path may start with ~."""

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import demo
import export
import main
import val
from benchmarks import bench
from experiments import claims
from helpers import RUN, SHAPES, make_own
from utils import evaluation, plot, prepare_csv, prepare_shapes
from utils.data.drawing import SHAPES as CLASSES
from utils.data.label_writing import check_label_file
from utils.inference.tables import is_csv_table, is_json_table, write_csv_table, write_json_table
from utils.runtime.arguments import expand_home, given_path
from utils.runtime.errors import UserError
from utils.runtime.output_checks import check_replaceable
from utils.training.folder import is_from_main

CPU = ["--num_workers", "0", "--device", "cpu"]
LABELS = "image,circle,ring\na.jpg,1,0\nb.jpg,0,1\n"


@pytest.fixture
def model(trained, shapes, tmp_path, monkeypatch) -> Path:
    """Change to an empty folder with a checkpoint and a photograph; return the checkpoint."""
    shutil.copy(trained / "best.pth", tmp_path / "model.pth")
    shutil.copy(shapes / "data/shapes/images/test/00000.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model.pth"


def keep(name: str, content: str | bytes) -> Path:
    """Make a file of the user."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_demo_replaces_its_own_tables_and_no_other(model, command, fails):
    options = ["--load_from", model, *CPU, "--img_dir", "photo.jpg"]
    for option, own, content in (
        ("--csv", "labels.csv", LABELS),
        ("--csv", "lists.csv", "image,labels\na.jpg,dog;cat\n"),
        ("--csv", "names.csv", "image\na.jpg\nb.jpg\n"),
        ("--csv", "soft.csv", "image,circle,ring\na.jpg,0.5,0.25\n"),
        ("--csv", "other.csv", "name,score\na,0.123456\n"),
        ("--json", "settings.json", '{"image": 1}'),
        ("--json", "labels.json", '[{"image": "a.jpg", "labels": ["dog"]}]'),
        ("--json", "damaged.json", '[{"image": "a.jpg", "sco'),
    ):
        path = keep(own, content)
        fails(demo, *options, option, path, says=[f"{option} {path} exists and is not from demo.py"])
        assert path.read_text() == content
    keep("empty.csv", "")
    for tables in (["--csv", "scores.csv", "--json", "scores.json"], ["--csv", "empty.csv"]):
        for _ in range(2):
            result = command(demo, *options, *tables)
            assert result.status == 0, result.err


def test_scores_of_almost_certain_networks_are_still_a_table_of_demo(workdir):
    scores = [np.array([1.0, 1.23456e-9, 0.999988]), np.array([0.123456, 0.5, 3.21e-12])]
    for photos in (["a.jpg", "b.jpg"], []):
        write_csv_table(Path("s.csv"), ["x", "y", "z"], photos, scores, utf8_mark=False)
        write_json_table(Path("s.json"), ["x", "y", "z"], photos, scores)
        assert is_csv_table(Path("s.csv"))
        assert is_json_table(Path("s.json"))


def test_tables_of_earlier_versions_are_still_those_of_demo(workdir):
    rows = [{"image": 'a "b" \\.jpg', "scores": {"x": 0.5}}]
    for content in (rows, []):
        assert is_json_table(keep("s.json", json.dumps(content, indent=1)))


def test_heatmaps_replace_only_heatmaps(model, command, fails):
    options = ["--load_from", model, *CPU, "--img_dir", "photo.jpg", "--heatmap", "--top"]
    mine = Path("heatmaps/photo.jpg/1_beach.png")
    mine.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(mine)
    fails(demo, *options, 1, says=["--out_dir", mine, "is not from demo.py"])
    holiday = mine.rename(mine.with_name("holiday_2026.png"))
    assert command(demo, *options, 3).status == 0
    assert command(demo, *options, 1).status == 0
    assert holiday.exists()
    assert len(list(holiday.parent.iterdir())) == 3  # the sheet and one class


def test_val_replaces_only_its_own_scores(trained, shapes, command, fails, tmp_path):
    options = [*SHAPES, "--load_from", trained / "best.pth", "--save_scores"]
    features = tmp_path / "features.npz"
    np.savez(features, scores=np.zeros((2, 2)), targets=np.zeros((2, 2)))  # of another program
    fails(val, *options, features, says=[features, "is not from val.py"])
    for _ in range(2):
        assert command(val, *options, tmp_path / "scores.npz").status == 0


def test_two_outputs_of_val_are_two_files(trained, shapes, fails):
    options = [*SHAPES, "--load_from", trained / "best.pth", "--out", "a.npz", "--save_scores", "a.npz"]
    fails(val, *options, says=["--out and --save_scores are both a.npz"])


@pytest.mark.parametrize("name", ["best.pth", "last.pth", "log.jsonl", "test_results.json"])
def test_overwrite_replaces_only_a_run(shapes, tmp_path, fails, name):
    (tmp_path / "run").mkdir()
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}, "config": {}}, tmp_path / "run" / name)
    options = [*RUN, "--output_dir", tmp_path / "run", "--overwrite"]
    fails(main, *options, says=["--overwrite", tmp_path / "run" / name, "is not from main.py"])


def test_the_files_of_a_run_are_known(uninterrupted, shapes, tmp_path):
    for name in ("best.pth", "last.pth", "previous.pth", "log.jsonl"):
        assert is_from_main(uninterrupted / name)
    cut = tmp_path / "last.pth"
    cut.write_bytes((uninterrupted / "last.pth").read_bytes()[:1_000_000])
    assert is_from_main(cut)


@pytest.mark.slow
def test_export_replaces_only_exported_networks(model, command, fails):
    options = ["--load_from", model, "--img_size", 40, "--out"]
    for path in (keep("model.pt2", model.read_bytes()), keep("notes.onnx", "classes: my notes")):
        fails(export, *options, path, says=[f"--out {path} exists and is not from export.py"])
    Path("model.pt2").unlink()
    for _ in range(2):
        result = command(export, *options, "model.pt2")
        assert result.status == 0, result.err


def test_exported_onnx_files_are_known_by_their_class_names(workdir):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    own, other = (onnx.helper.make_model(graph) for _ in range(2))
    own.metadata_props.add(key="classes", value='["a"]')
    other.metadata_props.add(key="author", value="me")
    onnx.save(own, "own.onnx")
    onnx.save(other, "other.onnx")
    assert export.is_export(Path("own.onnx"))
    assert not export.is_export(Path("other.onnx"))


def test_fitted_thresholds_replace_only_thresholds(workdir, command, fails):
    rng = np.random.default_rng(0)
    np.savez("s.npz", scores=rng.random((9, 2)), targets=rng.integers(0, 2, (9, 2)), names=["a", "b"])
    for content in ('{"a": 0.5, "b": 0.5, "note": "mine"}', '{"x": 0.5}', "[0.5, 0.5]"):
        keep("t.json", content)
        fails(evaluation, "s.npz", "--fit_thresholds", "t.json", says=["t.json", "utils/evaluation.py"])
    keep("t.json", '{"a": 0.5, "b": 1}')
    assert command(evaluation, "s.npz", "--fit_thresholds", "t.json").status == 0
    assert json.loads(Path("t.json").read_text()).keys() == {"a", "b"}


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_charts_replace_only_charts(trained, workdir, command, fails, ending):
    plt = pytest.importorskip("matplotlib.figure")
    mine = workdir / "charts" / f"curves.{ending}"
    mine.parent.mkdir()
    plt.Figure().savefig(mine)
    options = [trained, "--out", "charts", "--format", ending]
    fails(plot, *options, says=["--out", f"charts/curves.{ending}", "is not from utils/plot.py"])
    mine.unlink()
    for _ in range(2):
        result = command(plot, *options)
        assert result.status == 0, result.err


def test_label_files_replace_only_label_files(workdir, command, fails):
    make_own(workdir)
    table = keep("table.csv", "image,labels\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    options = [table, "--dataset", "mine", "--val_fraction", 0, "--test_fraction", 0.5]
    notes = keep("data/mine/val.json", '{"my": "notes"}')
    fails(prepare_csv, *options, says=["data/mine already holds a data set", "--overwrite"])
    fails(prepare_csv, *options, "--overwrite", says=["data/mine/val.json exists", "label files"])
    notes.unlink()
    assert command(prepare_csv, *options, "--overwrite").status == 0

    keep("data/hand/classes.json", '["b", "a"]')
    options[2] = "hand"
    fails(prepare_csv, *options, says=["data/hand already holds a data set", "--overwrite"])
    assert command(prepare_csv, *options, "--overwrite").status == 0

    for content in ("[1, 2]", '[{"target": [1]}]', "text"):
        with pytest.raises(UserError, match="label file data/other.json exists and is not from"):
            check_label_file(keep("data/other.json", content))
    check_label_file(keep("data/other.json", '[{"target": [1], "img_path": "a.jpg"}]'))


@pytest.mark.parametrize("name", ["images/mine.jpg", "options.txt", "train.json"])
def test_shapes_replace_no_file_of_the_user(workdir, fails, name):
    shutil.copytree(Path(prepare_shapes.__file__).parents[1] / "data/shapes", "data/shapes")
    keep(f"data/shapes/{name}", "mine")
    options = ["--num_train", 2, "--num_test", 1, "--overwrite"]
    fails(prepare_shapes, *options, says=["data/shapes"])


def test_the_held_out_images_of_claims_replace_no_data_set(shapes_folder, workdir, command):
    shutil.copytree(shapes_folder / "data", "data")
    mine = keep("data/shapes_choice/classes.json", '["mine"]')
    pytest.importorskip("matplotlib")
    result = command(claims, "--dataset", "shapes", "--out", "out", "--rows", "pooling")
    assert result.status == 2
    assert f"{mine} exists and is not from experiments/claims.py" in result.err
    assert mine.read_text() == '["mine"]'
    keep("out/lambda.png", "mine")
    result = command(claims, "--dataset", "shapes", "--out", "out", "--rows", "pooling")
    assert "out/lambda.png exists and is not from experiments/claims.py" in result.err


def test_the_benchmark_replaces_only_its_own_figures(workdir, fails):
    keep("figures.json", '{"rows": []}')
    fails(bench, "metrics", "--quick", "--out", "figures.json", says=["figures.json", "benchmarks/bench.py"])
    check_replaceable(keep("own.json", '{"machine": {}, "rows": []}'), "", bench.is_figures_file, "")


def test_what_is_no_file_is_not_replaced(workdir):
    for path in (Path("/dev/null"), workdir):
        with pytest.raises(UserError, match="exists and is not from"):
            check_replaceable(path, "--out", lambda path: True, "val.py")


@pytest.fixture
def home(workdir, monkeypatch) -> Path:
    """Make another folder the home folder."""
    (workdir / "home").mkdir()
    monkeypatch.setenv("HOME", str(workdir / "home"))
    return workdir / "home"


def test_paths_start_at_the_home_folder(home):
    assert given_path("~/runs/a") == home / "runs" / "a"
    assert given_path("~") == home
    assert given_path("~root/a") == Path("/root/a")
    assert given_path("a/~/b") == Path("a/~/b")
    assert given_path("./~x") == Path("~x")
    assert expand_home("~/photos/**/*.jpg") == f"{home}/photos/**/*.jpg"
    with pytest.raises(argparse.ArgumentTypeError, match="'~nobody-here/a': ~nobody-here is no user's"):
        given_path("~nobody-here/a")


def test_every_command_takes_paths_from_the_home_folder(home, model, command, fails):
    shutil.copy(model, home)
    shutil.copy("photo.jpg", home)
    options = [f"--load_from=~/{model.name}", *CPU, "--img_dir", "~/*.jpg", "--csv=~/s.csv"]
    keep("home/t.json", json.dumps(dict.fromkeys(CLASSES, 0.0)))
    result = command(demo, *options, "--threshold=~/t.json")
    assert result.status == 0, result.err
    with open(home / "s.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["image", f"{home}/photo.jpg"]
    assert not Path("~").exists()
    fails(demo, *options[:-2], "~nobody-here/*.jpg", says=["--img_dir", "~nobody-here"])
