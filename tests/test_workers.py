"""What DataLoader workers are given, and how long they live."""

import multiprocessing
import pickle

import pytest
import torch

from utils.data.datasets import DATASETS
from utils.data.loaders import EvaluationLoader
from utils.data.order import SampleKey
from utils.data.samples import load_split

CPU = torch.device("cpu")


@pytest.mark.parametrize(("method", "kept"), [("fork", False), ("forkserver", True), ("spawn", True)])
def test_evaluation_keeps_its_workers_where_their_start_is_slow(shapes, monkeypatch, method, kept):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    dataset = load_split(DATASETS["shapes"], "test", 40)
    assert EvaluationLoader(dataset, 4, 2, CPU).persistent_workers == kept
    assert not EvaluationLoader(dataset, 4, 0, CPU).persistent_workers


def test_a_started_worker_is_given_little_more_than_paths_and_targets(shapes):
    """A spawned worker receives its data set as a pickle."""
    dataset = load_split(DATASETS["shapes"], "train", 40, True)
    content = pickle.dumps(dataset)
    labels = dataset.labels
    assert len(content) < labels.paths.nbytes + labels.targets.nbytes + 5_000
    copy = pickle.loads(content)
    key = SampleKey(0, 3, True)
    for ours, theirs in zip(copy[key], dataset[key]):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
