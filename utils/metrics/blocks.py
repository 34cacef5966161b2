"""Scores and labels (N, C) that metrics read in blocks, so that large arrays of them need not exist."""

from typing import NamedTuple, Protocol

import numpy as np

from utils.data.labels import IGNORED, Targets


class LabelBlock(NamedTuple):
    """Whether labels are known and positive, and whether they are known; two bool arrays of one shape."""

    positives: np.ndarray
    known: np.ndarray


class Scores(Protocol):
    """Scores (N, C)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def of_images(self, images: slice) -> np.ndarray:
        """Return the scores of some images, (n, C)."""
        ...

    def of_classes(self, classes: slice) -> np.ndarray:
        """Return the scores of some classes, (c, N), those of a class next to each other in memory."""
        ...


class LabelBlocks(Protocol):
    """Labels (N, C)."""

    def of_images(self, images: slice) -> LabelBlock:
        """Return the labels of some images, (n, C)."""
        ...

    def of_classes(self, classes: slice) -> LabelBlock:
        """Return the labels of some classes, (c, N)."""
        ...


class ArrayScores:
    """The scores of an array (N, C)."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores

    @property
    def shape(self) -> tuple[int, ...]:
        return self.scores.shape

    def of_images(self, images: slice) -> np.ndarray:
        return self.scores[images]

    def of_classes(self, classes: slice) -> np.ndarray:
        return np.ascontiguousarray(self.scores[:, classes].T)


class ArrayLabels:
    """The labels of two arrays (N, C): targets of 0 and 1, and bool for what to ignore."""

    def __init__(self, targets: np.ndarray, ignore: np.ndarray) -> None:
        self.targets = targets
        self.ignore = ignore

    def of_images(self, images: slice) -> LabelBlock:
        return label_block(self.targets[images], self.ignore[images])

    def of_classes(self, classes: slice) -> LabelBlock:
        columns = [np.ascontiguousarray(array[:, classes].T) for array in (self.targets, self.ignore)]
        return label_block(*columns)


def label_block(targets: np.ndarray, ignore: np.ndarray) -> LabelBlock:
    """Return the labels of targets and of what to ignore, two arrays of one shape."""
    known = ~ignore
    return LabelBlock((targets == 1) & known, known)


class TargetLabels:
    """The labels of Targets, and the same sorted by class."""

    def __init__(self, targets: Targets) -> None:
        num_images, num_classes = targets.shape
        self.targets = targets
        order = np.argsort(targets.classes, kind="stable")
        self.images = np.arange(num_images, dtype=np.int32).repeat(np.diff(targets.offsets))[order]
        self.classes = targets.classes[order]
        self.values = targets.values[order]
        self.starts = np.searchsorted(self.classes, np.arange(num_classes + 1))

    def of_images(self, images: slice) -> LabelBlock:
        return known_block(self.targets.rows(images))

    def of_classes(self, classes: slice) -> LabelBlock:
        first, last, _ = classes.indices(self.targets.num_classes)
        block = np.tile(self.targets.rest, (last - first, 1))
        listed = slice(self.starts[first], self.starts[last])
        block[self.classes[listed] - first, self.images[listed]] = self.values[listed]
        return known_block(block)


def known_block(targets: np.ndarray) -> LabelBlock:
    """Return the labels of targets of 1, 0 and IGNORED."""
    return LabelBlock(targets == 1, targets != IGNORED)
