"""Load a checkpoint, run a network, match scores to labels by index, and leave out ignored labels."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pipeline.resnet_csra import ResNet_CSRA
from utils.checkpoint import load_model
from utils.data.classes import class_names
from utils.data.datasets import DATASETS
from utils.data.labels import IGNORED, Labels, Paths, Targets
from utils.data.loaders import EvaluationLoader
from utils.data.samples import LabelledImages, load_split
from utils.evaluation import evaluate
from utils.inference.network_metrics import LogitScores, evaluate_model, evaluate_scores
from utils.inference.outputs import OutputRows, compute_outputs, sigmoid
from utils.inference.sweep import LogitTerms
from utils.metrics.blocks import ArrayScores
from utils.metrics.score_files import read_scores, write_scores
from utils.runtime.errors import UserError
from utils.weights.contents import load_checkpoint

CPU = torch.device("cpu")


def test_scores_are_ordered_by_index(shapes):
    dataset = load_split(DATASETS["shapes"], "test", 40)
    model = ResNet_CSRA(1, 0.1, 8, depth=18)
    in_order = compute_outputs(model, EvaluationLoader(dataset, 4, 0, CPU), CPU)
    # Shuffled; the last batch repeats two images.
    padded = [(0, i, True) for i in [7, 2, 9, 0, 5, 1, 8, 3, 6, 4, 7, 2]]
    loader = DataLoader(dataset, batch_size=4, sampler=padded)
    np.testing.assert_allclose(compute_outputs(model, loader, CPU), in_order, atol=1e-5)
    assert np.ptp(in_order, axis=0).min() > 0
    metrics = evaluate_model(model, loader, CPU)
    assert metrics["mAP"] == pytest.approx(evaluate(in_order, dataset.labels.targets.rows())["mAP"])


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.bfloat16, np.float32),
        (torch.float16, np.float32),
        (torch.float32, np.float32),
        (torch.float64, np.float64),
    ],
)
def test_logits_take_no_more_memory_than_their_precision_needs(shapes, dtype, stored):
    class Logits(nn.Module):
        def forward(self, images):
            return 30 * images.double().mean((2, 3)).to(dtype)

    dataset = load_split(DATASETS["shapes"], "test", 40)
    loader = EvaluationLoader(dataset, 10, 0, CPU)
    logits = compute_outputs(Logits(), loader, CPU)
    (batch,) = loader
    expected = Logits()(batch.images.float().div(255))[batch.rows.argsort()].double().numpy()
    assert logits.dtype == stored
    assert (logits == expected).all()
    before = logits.copy()
    scores = sigmoid(logits)
    assert scores.dtype == np.float64
    assert (logits == before).all()
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected)), rtol=1e-15)


def test_outputs_are_fetched_and_gathered_in_parts(monkeypatch):
    outputs = torch.rand(10, 3, generator=torch.manual_seed(0))
    order = torch.tensor([7, 2, 9, 0, 5, 1, 8, 3, 6, 4])
    for limit in (1, 24, 10**6):
        monkeypatch.setattr("utils.inference.outputs.MAX_OUTPUT_BYTES", limit)
        rows = OutputRows(12)
        for start in range(0, 10, 2):
            rows.add(order[start : start + 2], outputs[order[start : start + 2]])
        gathered = rows.gathered()
        assert (gathered[:10] == outputs.numpy()).all()
        assert np.isnan(gathered[10:]).all()


def test_a_process_without_a_batch_takes_the_outputs_of_the_others(monkeypatch):
    others = OutputRows(4)
    others.add(torch.arange(4), torch.ones(4, 2))
    answers = iter(
        [
            [None, np.empty((0, 2), np.float32)],
            [(np.arange(0), np.empty((0, 2))), (np.arange(4), np.ones((4, 2)))],
        ]
    )
    monkeypatch.setattr("utils.inference.outputs.gather", lambda value: next(answers))
    gathered = OutputRows(4).gathered()
    assert gathered.dtype == np.float32
    assert (gathered == 1).all()


def test_blocks_of_logits_have_the_metrics_of_all_scores():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=9, size=(500, 23)).astype(np.float32)  # float32 scores would have ties
    targets = rng.choice([0, 0, 0, 1, IGNORED], (500, 23)).astype(np.int8)
    targets[:, 3] = 0
    targets[7:20] = np.where(targets[7:20] == 0, IGNORED, targets[7:20])
    thresholds = np.linspace(0.2, 0.8, 23)
    for unknown_is_negative in (False, True):
        labels = Labels(Paths.of(["a.jpg"] * 500), Targets.of(targets), None, unknown_is_negative)
        expected = evaluate(
            sigmoid(logits), targets == 1, targets == IGNORED, thresholds, unknown_is_negative
        )
        metrics = evaluate_scores(LogitScores(logits), labels, thresholds)
        np.testing.assert_equal(metrics, expected)


def test_an_evaluation_needs_less_memory_than_its_logits(tmp_path):
    logits = np.random.default_rng(0).normal(size=(2000, 1000)).astype(np.float32)
    targets = np.zeros(logits.shape, np.int8)
    targets[np.arange(2000), np.arange(2000) % 1000] = 1
    labels = Labels(Paths.of(["a.jpg"] * 2000), Targets.of(targets))
    tracemalloc.start()
    try:
        evaluate_scores(LogitScores(logits), labels)
        write_scores(tmp_path / "s.npz", LogitScores(logits), labels, [str(c) for c in range(1000)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < logits.nbytes / 2
    assert (read_scores(tmp_path / "s.npz").scores == sigmoid(logits)).all()


def test_a_long_path_does_not_make_the_memory_of_writing_all_paths_long(tmp_path):
    paths = [f"{i}.jpg" for i in range(2000)]
    paths[7] = "ä" * 4000
    labels = Labels(Paths.of(paths), Targets.of(np.zeros((2000, 1), np.int8)))
    tracemalloc.start()
    try:
        write_scores(tmp_path / "s.npz", ArrayScores(np.zeros((2000, 1))), labels, ["cat"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2000 * 4000 / 8
    assert read_scores(tmp_path / "s.npz").paths == paths
    with np.load(tmp_path / "s.npz") as file:
        assert file["paths"].tolist() == paths


def test_scores_of_high_logits_keep_their_order():
    scores = sigmoid(np.array([17, 18, 30], np.float32))
    assert (np.diff(scores) > 0).all()
    assert scores[-1] < 1


def test_logits_of_a_sweep_are_computed_in_float64():
    terms = LogitTerms(np.array([[1.0]], np.float32), {None: np.array([[3.0]], np.float32)})
    scores = terms.scores(0.1, None)
    for block in (scores.of_images(slice(1)), scores.of_classes(slice(1))):
        assert block.tolist() == sigmoid(np.array([[1 + 0.1 * 3.0]])).tolist()


def test_a_missing_score_is_reported(shapes):
    dataset = load_split(DATASETS["shapes"], "test", 40)
    loader = DataLoader(dataset, batch_size=4, sampler=[(0, 0, True), (0, 1, True)])
    with pytest.raises(UserError, match=r"damaged, .*--lr, .*--amp fp16: .*NaN for 8 of 10"):
        evaluate_model(ResNet_CSRA(1, 0.1, 8, depth=18), loader, CPU)


def test_difficult_labels_are_ignored_in_evaluation():
    class Logits(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    class Images(LabelledImages):
        def __getitem__(self, key):
            return (
                torch.full((3, 2, 2), 50 * key[1], dtype=torch.uint8),
                self.labels.targets.row(key[1]),
                key[1],
            )

    targets = np.array([[1, -1, 0], [0, -1, 1], [-1, 1, 1]], np.int8)
    labels = Labels(Paths.of(["a", "b", "c"]), Targets.of(targets))
    loader = EvaluationLoader(Images(labels, 2), 2, 0, CPU)
    metrics = evaluate_model(Logits(), loader, CPU)
    # Class 0: without image 2, the positive ranks last. Class 1: only image 2 counts. Class 2: all count.
    assert metrics["AP"] == [0.5, 1, 1]


def test_load_model_returns_the_network_as_trained(trained, shapes):
    path = trained / "best.pth"
    model = load_model(str(path))
    assert not model.network.training
    assert model.classes == class_names("shapes")
    options = {"model": "resnet18", "num_heads": 1, "num_cls": 8, "lam": 0.1, "img_size": 40}
    assert model.options == options
    changed = load_model(path, lam=0.5, img_size=64)
    assert changed.options == options | {"lam": 0.5, "img_size": 64}
    assert [model.network.classifier.lam, changed.network.classifier.lam] == [0.1, 0.5]


def test_load_model_needs_the_data_set_of_a_bare_state_dict(trained, shapes, tmp_path):
    torch.save(load_checkpoint(trained / "best.pth")["model"], tmp_path / "bare.pth")
    with pytest.raises(UserError, match="8 classes, --dataset voc07 has 20"):
        load_model(tmp_path / "bare.pth")
    assert load_model(tmp_path / "bare.pth", dataset="shapes").classes == class_names("shapes")


@pytest.mark.parametrize(("dataset", "normalization"), [("wider", "0.5"), ("voc07", "none")])
def test_load_model_sets_the_normalisation_of_the_data_set(tmp_path, dataset, normalization):
    names = class_names(dataset)
    state = ResNet_CSRA(1, 0.1, len(names), depth=18).state_dict()
    config = {"model": "resnet18", "dataset": dataset, "lam": 0.1, "img_size": 64}
    torch.save({"model": state, "config": config, "classes": names, "record": {}}, tmp_path / "m.pth")
    model = load_model(tmp_path / "m.pth")
    assert model.network.normalization == normalization


def test_classes_are_compared_in_one_unicode_form(trained, shapes, tmp_path, monkeypatch):
    content = torch.load(trained / "best.pth", weights_only=True)
    content["classes"] = ["cafe\u0301", *content["classes"][1:]]
    torch.save(content, tmp_path / "nfd.pth")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "shapes").mkdir(parents=True)
    for name in ("caf\u00e9", "cafe\u0301"):
        names = [name, *content["classes"][1:]]
        (tmp_path / "data" / "shapes" / "classes.json").write_text(json.dumps(names))
        assert load_model("nfd.pth", dataset="shapes").classes[0] == "caf\u00e9"
