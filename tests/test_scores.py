"""Test saved scores, and sweeps over λ and T."""

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import val
from helpers import OWN, SHAPES, TINY, make_own
from utils import evaluation
from utils.command_line.sweep_option import axis
from utils.data.labels import IGNORED, Labels, Paths, Targets
from utils.evaluation import evaluate
from utils.inference.sweep import SweepPoint
from utils.inference.sweep_report import format_sweep
from utils.metrics.blocks import ArrayScores
from utils.metrics.score_files import read_scores, write_scores
from utils.metrics.thresholds import read_thresholds, threshold
from utils.runtime.errors import UserError


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_saved_scores_give_the_same_metrics(trained, shapes, command, tmp_path):
    arguments = [*SHAPES, "--load_from", trained / "best.pth"]
    result = command(val, *arguments, "--save_scores", tmp_path / "s.npz", "--out", tmp_path / "r.json")
    assert result.status == 0, result.err
    saved = read_scores(tmp_path / "s.npz")
    entries = json.loads(Path("data/shapes/test.json").read_text())
    assert saved.paths == [entry["img_path"] for entry in entries]
    assert saved.targets.tolist() == [entry["target"] for entry in entries]
    metrics = evaluate(saved.scores, saved.targets, saved.ignore)
    assert metrics["mAP"] == json.loads((tmp_path / "r.json").read_text())["mAP"]
    again = command(evaluation, tmp_path / "s.npz")
    assert last_line(again.out) == next(line for line in result.out.splitlines() if line.startswith("mAP"))
    assert again.out.splitlines()[1:-1] == result.out.splitlines()[-len(again.out.splitlines()) - 1 : -3]


def test_written_scores_are_read_back_the_same(workdir):
    scores, targets = np.array([[0.25, 0.5], [1e-9, 1]]), np.array([[1, IGNORED], [IGNORED, 0]])
    paths = Paths.of([b"a.jpg", b"\xff \xc3\xa4.jpg"])
    labels = Labels(paths, Targets.of(targets), unknown_is_negative=True)
    write_scores(Path("s.npz"), ArrayScores(scores), labels, ["cat", "dög"])
    saved = read_scores(Path("s.npz"))
    assert (saved.scores == scores).all()
    assert saved.targets.tolist() == [[1, 0], [0, 0]]
    assert saved.ignore.tolist() == [[False, True], [True, False]]
    assert saved.unknown_is_negative is True
    assert saved.names == ["cat", "dög"]
    assert saved.paths == ["a.jpg", os.fsdecode(b"\xff \xc3\xa4.jpg")]
    with np.load("s.npz") as file:
        assert set(file) == {"scores", "targets", "ignore", "names", "paths", "unknown_is_negative"}
        assert (file["targets"].dtype, file["ignore"].dtype) == (np.int8, bool)
    assert os.listdir() == ["s.npz"]


def test_logits_of_another_program_need_a_threshold(workdir, tmp_path, command, fails):
    path, names = tmp_path / "logits.npz", np.array(["a", "b"])
    scores, targets = np.array([[2.0, -1], [-3, 4], [0.2, 0.1]]), np.array([[1, 0], [0, 1], [0, 1]])
    np.savez(path, scores=scores, targets=targets, names=names)
    fails(evaluation, path, says=["logits.npz", "-3 to 4", "--threshold"])
    result = command(evaluation, path, "--threshold", 0.15)
    assert result.status == 0, result.err
    assert "CP  75.00  CR  75.00" in result.out  # a: 1 of 2 and 1 of 1; b: 1 of 1 and 1 of 2
    assert last_line(result.out) == "mAP 100.0000 %"


def test_thresholds_are_fitted_written_and_taken_again(trained, shapes, command, tmp_path):
    checkpoint = [*SHAPES, "--load_from", trained / "best.pth"]
    saved, thresholds, out = (tmp_path / name for name in ("s.npz", "t.json", "r.json"))
    assert command(val, *checkpoint, "--split", "train", "--save_scores", saved).status == 0
    fixed = json.loads(json.dumps(evaluated_scores(saved, 0.5)))
    result = command(evaluation, saved, "--fit_thresholds", thresholds)
    assert result.status == 0, result.err
    assert f"written to {thresholds}" in result.out
    values = json.loads(thresholds.read_text())
    assert list(values) == read_scores(saved).names
    fitted = evaluated_scores(saved, np.array(list(values.values())))
    assert all(a >= b for a, b in zip(fitted["F1"], fixed["F1"]))
    assert fitted["F1"] != fixed["F1"]

    again = command(evaluation, saved, "--threshold", thresholds)
    assert again.out.splitlines()[1:] == result.out.splitlines()[2:]
    assert command(evaluation, saved, "--fit_thresholds", thresholds).status == 0  # replaces its own file
    result = command(val, *checkpoint, "--split", "train", "--threshold", thresholds, "--out", out)
    assert result.status == 0, result.err
    metrics = json.loads(out.read_text())
    for name in ("precision", "recall", "F1", "positives", "predicted", "correct", "AP"):
        assert list(metrics[name]) == list(values)
    assert list(metrics["F1"].values()) == pytest.approx(fitted["F1"])
    assert metrics["OF1"] == pytest.approx(fitted["OF1"])
    assert list(metrics["F1"].values()) != pytest.approx(fixed["F1"])


def evaluated_scores(path: Path, threshold: float | np.ndarray) -> dict:
    saved = read_scores(path)
    return evaluate(saved.scores, saved.targets, saved.ignore, threshold)


def test_val_takes_a_threshold_for_all_classes_and_for_the_sweep(trained, shapes, command, tmp_path):
    arguments = [*SHAPES, "--load_from", trained / "best.pth", "--out", tmp_path / "r.json"]
    result = command(val, *arguments, "--threshold", 0, "--sweep", "lam=0.1")
    assert result.status == 0, result.err
    metrics = json.loads((tmp_path / "r.json").read_text())
    assert metrics["CR"] == metrics["sweep"][0]["CR"] == 1
    assert set(metrics["predicted"].values()) == {10}


def test_a_class_without_positives_keeps_the_threshold(workdir, tmp_path, command, fails):
    path, out = tmp_path / "s.npz", tmp_path / "t.json"
    scores, targets = np.array([[0.2, 0.6], [0.1, 0.9]]), np.array([[1, 0], [0, 0]])
    np.savez(path, scores=scores, targets=targets, names=np.array(["cat", "dog"]))
    for options, dog in (([], 0.5), (["--threshold", 0.7], 0.7)):
        assert command(evaluation, path, *options, "--fit_thresholds", out).status == 0
        assert json.loads(out.read_text()) == {"cat": pytest.approx(0.15), "dog": dog}
    (tmp_path / "labels.json").write_text("[1, 2]")
    for name, says in (("labels.json", "threshold for each class"), ("t.txt", "ends in .json")):
        fails(evaluation, path, "--fit_thresholds", tmp_path / name, says=[name, says])
    assert (tmp_path / "labels.json").read_text() == "[1, 2]"


@pytest.mark.parametrize(
    "content", ['{"cat": 0.5}', '{"cat": 0.5, "dog": NaN}', '{"mAP": 0.5}', "[0.5, 0.5]", "text"]
)
def test_fitted_thresholds_replace_no_file_of_another_kind(workdir, tmp_path, fails, content):
    path, out = tmp_path / "s.npz", tmp_path / "t.json"
    np.savez(path, scores=np.eye(2), targets=np.eye(2), names=np.array(["cat", "dog"]))
    out.write_text(content)
    fails(evaluation, path, "--fit_thresholds", out, says=["t.json"])
    assert out.read_text() == content


@pytest.mark.parametrize(("low", "high"), [(-0.25, 1.0), (0.0, 1.25)])
def test_scores_beyond_0_and_1_need_a_threshold(workdir, tmp_path, command, fails, low, high):
    np.savez(tmp_path / "s.npz", scores=np.array([[low], [high]]), targets=np.array([[0], [1]]))
    fails(evaluation, tmp_path / "s.npz", says=["s.npz", f"{low:g} to {high:g}", "--threshold"])
    assert command(evaluation, tmp_path / "s.npz", "--threshold", -0.5).status == 0


def test_scores_of_exactly_0_and_1_have_the_usual_threshold(tmp_path, command):
    np.savez(tmp_path / "s.npz", scores=np.array([[0.0], [1.0]]), targets=np.array([[0], [1]]))
    result = command(evaluation, tmp_path / "s.npz")
    assert result.status == 0, result.err
    assert "2 images, threshold 0.5" in result.out


def test_a_threshold_is_a_number_in_its_range_or_a_json_file():
    assert [threshold(text) for text in ("0", "1", "0.25")] == [0, 1, 0.25]
    assert threshold("thresholds.json") == Path("thresholds.json")
    assert threshold("-3", low=-math.inf, high=math.inf) == -3
    for text in ("-0.01", "1.01", "nan", "half", "thresholds.txt", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="number from 0 to 1"):
            threshold(text)


def test_a_number_is_the_threshold_of_each_class():
    assert read_thresholds(0.3, ["cat", "dog"]).tolist() == [0.3, 0.3]


def test_a_threshold_that_is_not_finite_is_refused(tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "t.json"
    for value in (math.inf, -math.inf, math.nan):
        file.write_text(json.dumps({"cat": 0.5, "dog": value}))
        with pytest.raises(UserError, match=rf"t\.json must hold .* that of dog is {value}\)"):
            read_thresholds(file, ["cat", "dog"])
        with pytest.raises(UserError, match=f"the threshold is {value}"):
            read_thresholds(value, ["cat", "dog"])
    file.unlink()
    np.savez(tmp_path / "s.npz", scores=[[0.5, -np.inf], [0.4, -np.inf]], targets=[[1, 1], [0, 0]])
    says = ["--fit_thresholds", "threshold of 1 is -inf"]
    fails(evaluation, tmp_path / "s.npz", "--threshold", 0, "--fit_thresholds", file, says=says)
    assert not file.exists()


def test_a_class_of_a_threshold_file_may_be_in_another_unicode_form(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({"cafe\u0301": 0.25, "dog": 0.5}))
    assert read_thresholds(tmp_path / "t.json", ["dog", "caf\u00e9"]).tolist() == [0.5, 0.25]


def test_unknown_labels_of_wider_count_as_negative_when_thresholds_are_fitted(tmp_path, command):
    scores, targets = np.array([[0.5], [0.4], [0.4], [0.4], [0.3]]), np.array([[1], [0], [0], [0], [1]])
    for flag, expected in ((False, 0.3), (True, 0.45)):
        arrays = {"scores": scores, "targets": targets, "ignore": targets == 0, "unknown_is_negative": flag}
        np.savez(tmp_path / "s.npz", **arrays)
        assert command(evaluation, tmp_path / "s.npz", "--fit_thresholds", tmp_path / "t.json").status == 0
        assert json.loads((tmp_path / "t.json").read_text()) == {"0": pytest.approx(expected)}


def test_ignored_labels_of_saved_scores_change_no_metric(tmp_path, command):
    arrays = {"scores": np.array([[0.9], [0.8], [0.1]]), "targets": np.array([[0], [1], [0]])}
    np.savez(tmp_path / "a.npz", **arrays, ignore=np.array([[True], [False], [False]]))
    assert last_line(command(evaluation, tmp_path / "a.npz").out) == "mAP 100.0000 %"


def test_saved_scores_say_whether_unknown_labels_are_negative(tmp_path, command):
    arrays = {"scores": np.array([[0.9, 0.8]]), "targets": np.array([[0, 1]]), "ignore": np.array([[1, 0]])}
    np.savez(tmp_path / "old.npz", **arrays)
    np.savez(tmp_path / "wider.npz", **arrays, unknown_is_negative=True)
    old, wider = (command(evaluation, tmp_path / name).out for name in ("old.npz", "wider.npz"))
    assert "OP 100.00" in old
    assert "OP  50.00" in wider
    assert last_line(old) == last_line(wider) == "mAP 100.0000 %"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "scores"),
        ({"scores": np.zeros((2, 2))}, "targets"),
        ({"scores": np.zeros((2, 2)), "targets": np.zeros((2, 3))}, "(2, 2)"),
        ({"scores": np.full((2, 2), math.nan), "targets": np.zeros((2, 2))}, "NaN"),
        ({"scores": np.zeros((2, 2)), "targets": np.full((2, 2), 7)}, "0 or 1"),
        (
            {"scores": np.zeros((2, 2)), "targets": np.zeros((2, 2)), "names": np.array(["a"])},
            "names are (1,)",
        ),
        ({"scores": np.zeros((2, 2)), "targets": np.zeros((2, 2)), "paths": np.array(["a"])}, "paths (1,)"),
        ({"scores": np.zeros((2, 2)), "targets": np.zeros((2, 2)), "names": np.eye(2)}, "names are (2, 2)"),
        (
            {"scores": np.eye(2), "targets": np.eye(2), "unknown_is_negative": np.array([True, False])},
            "truth value",
        ),
        ({"scores": np.array([["a", "b"]]), "targets": np.zeros((1, 2))}, "could not convert"),
        ({"scores": np.array([object()]), "targets": np.zeros((1, 2))}, "allow_pickle"),
    ],
)
def test_files_without_usable_scores_are_reported(workdir, tmp_path, fails, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    fails(evaluation, tmp_path / "a.npz", says=["a.npz", says])
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nonsense")
    fails(evaluation, tmp_path / "a.npz", says=["a.npz"])
    fails(evaluation, tmp_path / "b.npz", says=["b.npz", "no such file"])


def test_a_sweep_matches_separate_evaluations(trained, shapes, command, tmp_path):
    def evaluated(*options) -> dict:
        arguments = [*SHAPES, "--load_from", trained / "best.pth", "--out", tmp_path / "r.json", *options]
        result = command(val, *arguments)
        assert result.status == 0, result.err
        return {"out": result.out} | json.loads((tmp_path / "r.json").read_text())

    swept = evaluated("--sweep", "lam=0:0.5:0.25", "T=1,inf,trained")
    assert [(row["lam"], row["T"]) for row in swept["sweep"]] == [
        (lam, T) for T in ("1", "inf", "as trained") for lam in (0, 0.25, 0.5)
    ]
    assert [row["mAP"] for row in swept["sweep"][:3]] == [row["mAP"] for row in swept["sweep"][6:]]
    for row in swept["sweep"][:3]:  # one head, trained with T = 1
        alone = evaluated("--lam", row["lam"])
        for name in ("mAP", "CF1", "OF1_3"):
            assert row[name] == pytest.approx(alone[name], abs=1e-6)
        assert row["AP"] == pytest.approx(alone["AP"], abs=1e-6)  # by class
    assert swept["mAP"] == pytest.approx(evaluated()["mAP"], abs=1e-6)
    maximum, mean = swept["sweep"][5], swept["sweep"][2]
    assert [maximum[name] for name in ("lam", "T")] == [0.5, "inf"]
    assert maximum["AP"] != mean["AP"]
    best = max(row["mAP"] for row in swept["sweep"])
    assert f"{100 * best:.4f} *" in swept["out"]
    assert "not a fair result" in swept["out"]


@pytest.mark.slow
def test_attention_can_be_added_to_a_trained_average_pooling_model(shapes, command, fails, tmp_path):
    options = ["--dataset", "shapes", *TINY, "--num_heads", 0, "--output_dir", tmp_path / "run"]
    fails(main, *options, "--lam", 0.1, says=["--num_heads 0", "--lam"])
    assert command(main, *options).status == 0
    logged = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["mAP"]
    arguments = [*SHAPES, "--load_from", tmp_path / "run" / "last.pth", "--num_heads", 0]
    result = command(val, *arguments, "--sweep", "lam=0,1", "--out", tmp_path / "r.json")
    assert result.status == 0, result.err
    assert "T as trained" in result.out
    swept = json.loads((tmp_path / "r.json").read_text())["sweep"]
    assert swept[0]["mAP"] == pytest.approx(logged, abs=1e-6)
    command(val, *arguments, "--lam", 1, "--out", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["mAP"] == pytest.approx(swept[1]["mAP"], abs=1e-6)


def test_a_baseline_state_dict_is_evaluated_without_attention(trained, shapes, command, tmp_path):
    state = torch.load(trained / "best.pth", weights_only=True)["model"]
    weight = state.pop("classifier.multi_head.0.head.weight")
    torch.save(
        state | {"classifier.head.weight": weight, "classifier.head.bias": torch.zeros(8)}, tmp_path / "b.pth"
    )
    result = command(val, *SHAPES, "--load_from", tmp_path / "b.pth", "--img_size", 40)
    assert "using 0.0" in result.out


@pytest.mark.slow
def test_unknown_labels_are_saved_as_ignored(workdir, command):
    entries = make_own(workdir)
    entries[0]["target"] = [99, 1]
    Path("data/mine/test.json").write_text(json.dumps(entries))
    assert command(main, *OWN, *TINY, "--output_dir", "run").status == 0
    options = ["--dataset", "mine", "--num_workers", 0, "--device", "cpu", "--load_from", "run/best.pth"]
    assert command(val, *options, "--save_scores", "s.npz").status == 0
    assert read_scores(Path("s.npz")).ignore.tolist() == [[True, False], *[[False, False]] * 3]


def test_equally_good_points_of_a_sweep_are_all_marked():
    points = [SweepPoint(lam, 1, {"mAP": mAP}) for lam, mAP in ((0, 0.5), (0.1, 0.75), (0.2, 0.75))]
    assert [line.endswith("75.0000 *") for line in format_sweep(points).splitlines()[2:5]] == [
        False,
        True,
        True,
    ]


def test_sweep_axes_are_parsed():
    assert axis("lam=0:1:0.1") == ("lam", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert axis("lam=0.3") == ("lam", [0.3])
    assert axis("T=1,2.5,inf,99") == ("T", [1, 2.5, math.inf])
    assert axis("T=trained,2") == ("T", [None, 2])
    for text in (
        "lam",
        "lam=",
        "lam=a",
        "lam=-1",
        "lam=0:1",
        "lam=1:0:0.1",
        "lam=0:1:0",
        "lam=0:1e9:1",
        "T=0",
        "lam=trained",
        "x=1",
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            axis(text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sweep", "T=1,2"], "lam= once"),
        (["--sweep", "lam=0:1:0.1", "lam=0"], "lam= once"),
        (["--sweep", "lam=nan"], "'nan'"),
        (["--save_scores", "scores.txt"], "ends in .npz"),
        (["--threshold", "1.01"], "'1.01'"),
        (["--threshold", "half"], "'half'"),
        (["--threshold", "gone.json"], "gone.json"),
        (["--threshold", "data/shapes/test.json"], "threshold for each class"),
        (["--save_scores", "/proc/scores.npz"], "--save_scores"),
    ],
)
def test_invalid_options_are_reported_in_one_line(trained, shapes, fails, options, says):
    fails(val, *SHAPES, "--load_from", trained / "best.pth", *options, says=[says])
