"""Scores and labels are paired by index, and ignored labels stay out of the metrics."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pipeline.resnet_csra import ResNet_CSRA
from utils.datasets import DATASETS, LabelledImages, load_split, make_loader
from utils.evaluation import evaluate
from utils.inference import evaluate_model, predict
from utils.label_files import Labels
from utils.runtime.cli import UserError

CPU = torch.device("cpu")


def test_scores_go_by_index_whatever_the_order(shapes):
    dataset = load_split(DATASETS["shapes"], "test", 40)
    model = ResNet_CSRA(1, 0.1, 8, depth=18)
    in_order = predict(model, make_loader(dataset, 4, 0, CPU), CPU)
    # Shuffled, and the last batch filled up with images that came already.
    padded = [(0, i, True) for i in [7, 2, 9, 0, 5, 1, 8, 3, 6, 4, 7, 2]]
    loader = DataLoader(dataset, batch_size=4, sampler=padded)
    np.testing.assert_allclose(predict(model, loader, CPU), in_order, atol=1e-6)
    assert np.ptp(in_order, axis=0).min() > 0
    metrics = evaluate_model(model, loader, CPU)
    assert metrics["mAP"] == pytest.approx(evaluate(in_order, dataset.labels.targets)["mAP"])


def test_a_score_that_never_came_is_an_error(shapes):
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
            return torch.full((3, 2, 2), 50 * key[1], dtype=torch.uint8), self.labels.targets[key[1]], key[1]

    targets = np.array([[1, -1, 0], [0, -1, 1], [-1, 1, 1]], np.int8)
    loader = make_loader(Images(Labels(np.array([b"a", b"b", b"c"]), targets, None), 2), 2, 0, CPU)
    metrics = evaluate_model(Logits(), loader, CPU)
    # Class 0: without image 2, the positive ranks last. Class 1: only image 2 is left. Class 2: as ranked.
    assert metrics["AP"] == [0.5, 1, 1]
