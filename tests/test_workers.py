"""What DataLoader workers are given, and how long they live."""

import multiprocessing
import pickle

import pytest
import torch

from utils.data import samples
from utils.data.datasets import DATASETS
from utils.data.loaders import EvaluationLoader
from utils.data.order import SampleKey
from utils.data.samples import load_split
from utils.runtime.errors import UserError, user_message

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


ERRORS = [
    PermissionError(13, "Permission denied", "a\nb.jpg"),
    OSError(5, "Input/output error", "a.jpg"),
    OSError(24, "Too many open files", "a.jpg"),
    OSError("the disk is gone"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"),
    UserError("a.jpg cannot be read"),
]


@pytest.mark.parametrize("place", ["load_image", "default_collate"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__} {error!s:.9}")
def test_an_error_of_the_user_in_a_worker_gives_the_line_that_it_gives_without_workers(
    shapes, monkeypatch, error, place
):
    def fail(*args):
        raise error

    monkeypatch.setattr(samples, place, fail)
    dataset = load_split(DATASETS["shapes"], "test", 40)
    messages = []
    for num_workers in (0, 1):
        loader = EvaluationLoader(dataset, 4, num_workers, CPU)
        loader.multiprocessing_context = "fork" if num_workers else None
        with pytest.raises(Exception) as caught:  # noqa: PT011  the type is not the point
            next(iter(loader))
        messages.append(user_message(caught.value))
    expected = user_message(error)
    if isinstance(error, UserError) and place == "load_image":
        expected = f"{expected}; {samples.ALL_BAD_IMAGES}"
    assert messages[0] == messages[1] == expected


def test_an_error_of_the_program_in_a_worker_stays_a_traceback(shapes, monkeypatch):
    monkeypatch.setattr(samples, "load_image", lambda *args: {}["key"])
    loader = EvaluationLoader(load_split(DATASETS["shapes"], "test", 40), 4, 1, CPU)
    loader.multiprocessing_context = "fork"
    with pytest.raises(KeyError, match="Traceback") as caught:
        next(iter(loader))
    assert user_message(caught.value) is None
