"""The labels of a data set in memory, whose size follows the labels. It needs no torch.

Worker processes that start by fork share them; others get a copy.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

IGNORED = -1  # the target of an unknown label, which counts in no loss and no metric
MAX_HASHED = 2**31  # targets (N x C) up to which a fingerprint hashes each, so that stored ones stay equal
HASHED_AT_ONCE = 2**20  # targets that a fingerprint hashes at once
MAX_WAITING = 2**20  # bytes of targets that a TargetsBuilder turns into a sparse matrix at once


@dataclass(frozen=True, eq=False)
class Paths:
    """The paths of N images, one after the other in a single array of bytes.

    text: (B,) uint8. ends: (N + 1,) int64; path i is text[ends[i] : ends[i + 1]].
    """

    text: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, row: int) -> str:
        """Return a path; bytes that are not UTF-8 become what Python's file functions take for them."""
        return os.fsdecode(self.encoded(row))

    def encoded(self, row: int) -> bytes:
        """Return the bytes of a path."""
        row = range(len(self))[row]
        return self.text[self.ends[row] : self.ends[row + 1]].tobytes()

    @property
    def nbytes(self) -> int:
        """The memory of the arrays."""
        return self.text.nbytes + self.ends.nbytes

    @classmethod
    def of(cls, paths: Iterable[str | bytes]) -> "Paths":
        """Return the Paths of some paths."""
        builder = PathsBuilder()
        for path in paths:
            builder.add(path)
        return builder.build()


class PathsBuilder:
    """Collects Paths."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.ends = array("q", [0])

    def add(self, path: str | bytes) -> None:
        """Add the path of an image."""
        self.text += os.fsencode(path)
        self.ends.append(len(self.text))

    def build(self) -> Paths:
        """Return the paths; more cannot be added."""
        return Paths(np.asarray(self.text), np.asarray(self.ends))


class Listed(NamedTuple):
    """The labels of an image by class index, ascending.

    negatives: None stands for all classes but the positives; in a list, all other classes are unknown.
    """

    positives: list[int]
    negatives: list[int] | None


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets (N, C) of N images, each 1, 0 or IGNORED, as a sparse matrix in the CSR format.

    Of each image, the matrix holds `rest`, which is 0 or IGNORED, and the classes that have another target.
    TargetsBuilder makes rest IGNORED if more than half of the labels are unknown, else 0, so that its matrix
    depends on the targets alone, not on the form that a label file gives them. `unpack` of label_rows.py
    always makes it IGNORED.
    offsets: (N + 1,) int64; the labels of image i are at offsets[i] : offsets[i + 1] of the next two.
    classes: (P,) int32, ascending for each image. values: (P,) int8. rest: (N,) int8, 0 or IGNORED.
    """

    num_classes: int
    offsets: np.ndarray
    classes: np.ndarray
    values: np.ndarray
    rest: np.ndarray

    def __len__(self) -> int:
        return len(self.rest)

    @property
    def shape(self) -> tuple[int, int]:
        """N and C."""
        return len(self), self.num_classes

    @property
    def nbytes(self) -> int:
        """The memory of the arrays."""
        return sum(part.nbytes for part in (self.offsets, self.classes, self.values, self.rest))

    def row(self, row: int) -> np.ndarray:
        """Return the targets of an image, int8 (C,)."""
        start, end = self.offsets[row], self.offsets[row + 1]
        target = np.full(self.num_classes, self.rest[row], np.int8)
        target[self.classes[start:end]] = self.values[start:end]
        return target

    def rows(self, images: slice = slice(None)) -> np.ndarray:
        """Return the targets of consecutive images, int8 (n, C); by default those of all."""
        first, last, _ = images.indices(len(self))
        offsets = self.offsets[first : max(first, last) + 1]
        num_listed = np.diff(offsets)
        targets = np.empty((len(num_listed), self.num_classes), np.int8)
        targets[:] = self.rest[images, None]
        listed = slice(offsets[0], offsets[-1])
        targets[np.repeat(np.arange(len(targets)), num_listed), self.classes[listed]] = self.values[listed]
        return targets

    def listed(self, row: int) -> Listed:
        """Return the labels of an image as a label file by index holds them."""
        start, end = self.offsets[row], self.offsets[row + 1]
        classes, values = self.classes[start:end], self.values[start:end]
        positives = classes[values == 1].tolist()
        if self.rest[row] == IGNORED:
            return Listed(positives, classes[values == 0].tolist())
        if (values == IGNORED).any():
            return Listed(positives, np.flatnonzero(self.row(row) == 0).tolist())
        return Listed(positives, None)

    def num_known(self) -> np.ndarray:
        """Return for each class the number of images whose label is known, int (C,)."""
        rest = np.repeat(self.rest, np.diff(self.offsets))
        listed_known = self.classes[(rest == IGNORED) & (self.values != IGNORED)]
        listed_unknown = self.classes[self.values == IGNORED]
        counts = np.full(self.num_classes, np.count_nonzero(self.rest != IGNORED))
        counts += np.bincount(listed_known, minlength=self.num_classes)
        counts -= np.bincount(listed_unknown, minlength=self.num_classes)
        return counts

    def positives(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image and the class of each positive label, two arrays (P,)."""
        images = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        is_positive = self.values == 1
        return images[is_positive], self.classes[is_positive]

    def select(self, rows: np.ndarray) -> "Targets":
        """Return the targets of some images, in their order; rows: (n,) int."""
        starts, num_listed = self.offsets[rows], np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(num_listed)])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], num_listed)
        return Targets(self.num_classes, offsets, self.classes[places], self.values[places], self.rest[rows])

    @classmethod
    def of(cls, rows: np.ndarray) -> "Targets":
        """Return the Targets of an array (N, C) of 1, 0 and IGNORED."""
        builder = TargetsBuilder(rows.shape[1])
        for row in rows.astype(np.int8):
            builder.add_row(row.tobytes())
        return builder.build()


class TargetsBuilder:
    """Collects Targets. Rows with a target for each class wait for others: NumPy is slow on single ones."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.offsets = array("q", [0])
        self.classes = array("i")
        self.values = array("b")
        self.rest = array("b")
        self.waiting = bytearray()

    def add(self, labels: Listed) -> None:
        """Add an image by its class indices, in any order."""
        positives, negatives = labels
        if negatives is None:
            self.add_listed(sorted(positives), b"\1" * len(positives), rest=0)
            return
        num_known = len(positives) + len(negatives)
        if is_mostly_unknown(self.num_classes - num_known, self.num_classes):
            known = sorted([*((c, 1) for c in positives), *((c, 0) for c in negatives)])
            self.add_listed([c for c, _ in known], bytes(value for _, value in known), rest=IGNORED)
            return
        row = np.full(self.num_classes, IGNORED, np.int8)
        row[negatives] = 0
        row[positives] = 1
        self.add_row(row.tobytes())

    def add_listed(self, classes: list[int], values: bytes, rest: int) -> None:
        """Add an image by the classes, ascending, whose targets differ from its rest, and these targets."""
        self.add_waiting()
        self.classes.extend(classes)
        self.values.frombytes(values)
        self.rest.append(rest)
        self.offsets.append(len(self.classes))

    def add_row(self, row: bytes) -> None:
        """Add an image by its targets: the bytes of an int8 array (C,)."""
        self.waiting += row
        if len(self.waiting) > MAX_WAITING:
            self.add_waiting()

    def add_waiting(self) -> None:
        """Add the rows that wait."""
        if not self.waiting:
            return
        rows = np.frombuffer(self.waiting, np.int8).reshape(-1, self.num_classes)
        num_unknown = (rows == IGNORED).sum(axis=1)
        rest = np.where(is_mostly_unknown(num_unknown, self.num_classes), IGNORED, 0).astype(np.int8)
        is_listed = rows != rest[:, None]
        offsets = len(self.classes) + is_listed.sum(axis=1).cumsum()
        self.offsets.frombytes(offsets.tobytes())
        self.classes.frombytes(is_listed.nonzero()[1].astype(np.int32).tobytes())
        self.values.frombytes(rows[is_listed].tobytes())
        self.rest.frombytes(rest.tobytes())
        self.waiting = bytearray()

    def build(self) -> Targets:
        """Return the targets; more cannot be added."""
        self.add_waiting()
        parts = (self.offsets, self.classes, self.values, self.rest)
        return Targets(self.num_classes, *map(np.asarray, parts))


def is_mostly_unknown(num_unknown: Any, num_classes: int) -> Any:
    """Return whether more than half of the labels of an image, or of each of several, are unknown."""
    return 2 * num_unknown > num_classes


class Labels(NamedTuple):
    """The labels of N images.

    boxes: (N, 4) int32, the edges of the parts to cut out (see `box_edges`), or None for whole images.
    unknown_is_negative: see `evaluate`.
    """

    paths: Paths
    targets: Targets
    boxes: np.ndarray | None = None
    unknown_is_negative: bool = False


def fingerprint(labels: Labels) -> str:
    """Return 12 hex digits of a hash of the targets, boxes and file names, without the folders' names."""
    digest = hashlib.sha256()
    for part in hashed_targets(labels.targets):
        digest.update(part.data)
    if labels.boxes is not None:
        digest.update(labels.boxes.data)
    for row in range(len(labels.paths)):
        digest.update(b"/" if row else b"")
        digest.update(labels.paths.encoded(row).rpartition(b"/")[2])
    return digest.hexdigest()[:12]


def hashed_targets(targets: Targets) -> Iterator[np.ndarray]:
    """Yield what a fingerprint hashes: every target or, if they are too many, the sparse matrix."""
    num_images, num_classes = targets.shape
    if num_images * num_classes > MAX_HASHED:
        yield from (targets.offsets, targets.classes, targets.values, targets.rest)
        return
    size = max(1, HASHED_AT_ONCE // num_classes)
    for start in range(0, num_images, size):
        yield targets.rows(slice(start, start + size))
