"""Load a checkpoint, run a network, match scores to labels by index, and leave out ignored labels."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pipeline.resnet_csra import ResNet_CSRA
from utils.checkpoint import load_model
from utils.data.classes import class_names
from utils.data.datasets import DATASETS
from utils.data.labels import Labels, Paths, Targets
from utils.data.loaders import EvaluationLoader
from utils.data.samples import LabelledImages, load_split
from utils.evaluation import evaluate
from utils.inference.outputs import compute_outputs, evaluate_model, sigmoid
from utils.inference.sweep import LogitTerms
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


def test_scores_of_high_logits_keep_their_order():
    scores = sigmoid(np.array([17, 18, 30], np.float32))
    assert (np.diff(scores) > 0).all()
    assert scores[-1] < 1


def test_logits_of_a_sweep_are_computed_in_float64():
    terms = LogitTerms(np.array([[1.0]], np.float32), {None: np.array([[3.0]], np.float32)})
    assert terms.logits(0.1, None).tolist() == [[1 + 0.1 * 3.0]]


def test_a_missing_score_is_reported(shapes):
    dataset = load_split(DATASETS["shapes"], "test", 40)
    loader = DataLoader(dataset, batch_size=4, sampler=[(0, 0, True), (0, 1, True)])
    with pytest.raises(UserError, match="NaN for 8 of 10"):
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
