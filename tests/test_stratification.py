"""Held-out images, compared with the definition of iterative stratification on dense arrays."""

import time

import numpy as np
import pytest

from utils.data.labels import IGNORED, Targets
from utils.data.stratification import stratify


def stratify_dense(positives: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return which images to hold out as `stratify` does, in a time of images x classes²."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(positives))
    held_out, left = np.zeros(len(positives), bool), np.ones(len(positives), bool)
    while left.any():
        counts = positives[left].sum(axis=0)
        members = np.ones_like(left)
        if counts.any():
            members = positives[:, np.where(counts > 0, counts, len(positives) + 1).argmin()]
        is_candidate = left & members
        candidates = order[is_candidate[order]]
        lacking = max(0, fraction * members.sum() - (held_out & members).sum())
        num_held = int(lacking) + (rng.random() < lacking % 1)
        if not (members & ~held_out & ~left).any():
            num_held = min(num_held, len(candidates) - 1)
        held_out[candidates[:num_held]] = True
        left &= ~members
    return held_out


def long_tail(num_images: int, num_classes: int) -> np.ndarray:
    """Return targets (N, C) whose classes are ever rarer, down to none; some images have no label."""
    shares = 0.4 * np.arange(1, num_classes + 1) ** -1.2
    return (np.random.default_rng(0).random((num_images, num_classes)) < shares).astype(np.int8)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("images", "classes"), [(1, 1), (7, 3), (300, 12), (400, 90)])
def test_the_images_are_those_of_the_definition(images, classes, fraction, seed):
    targets = long_tail(images, classes)
    expected = stratify_dense(targets == 1, fraction, seed)
    assert (stratify(Targets.of(targets), fraction, seed) == expected).all()
    targets[np.random.default_rng(1).random(targets.shape) < 0.3] = IGNORED
    targets[::3] = np.where(targets[::3] == 0, IGNORED, targets[::3])  # mostly unknown
    expected = stratify_dense(targets == 1, fraction, seed)
    assert (stratify(Targets.of(targets), fraction, seed) == expected).all()


def test_images_without_any_label_are_divided():
    held_out = stratify(Targets.of(np.zeros((10, 2))), 0.3, seed=0)
    assert held_out.sum() == 3


def test_many_classes_take_little_time():
    """The definition on dense arrays takes a minute here."""
    rng = np.random.default_rng(0)
    targets = np.zeros((5000, 4000), np.int8)
    targets[np.arange(5000).repeat(3), rng.integers(0, 4000, 15_000)] = 1
    sparse = Targets.of(targets)
    start = time.perf_counter()
    held_out = stratify(sparse, 0.2, seed=0)
    assert time.perf_counter() - start < 5
    assert 0.15 < held_out.mean() < 0.25
