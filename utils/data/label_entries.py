"""The entries of label files, as the preparers make them."""

from collections.abc import Iterator, Mapping
from typing import NotRequired, Protocol, TypedDict

from utils.data.drawing import DrawnObject
from utils.data.labels import Listed, Paths, Targets
from utils.runtime.paths import FileKey


class Entry(TypedDict):
    """An entry of a label file. It has `target`, or `positives` and perhaps `negatives`.

    target: (C,); what its numbers mean depends on the data set. positives, negatives: see Listed.
    bbox: x, y, w, h of the part of the image to cut out. objects: what a scene of the data set shapes shows.
    """

    target: NotRequired[list[int]]
    positives: NotRequired[list[int]]
    negatives: NotRequired[list[int]]
    img_path: str
    bbox: NotRequired[list[float]]
    objects: NotRequired[list[DrawnObject]]


class Entries(Protocol):
    """The entries of a label file. A list will do; so does what makes them one by one."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Entry]: ...


class ListedEntries:
    """The entries of a label file by index, which are made one by one from arrays that need little memory."""

    def __init__(self, paths: Paths, targets: Targets) -> None:
        self.paths = paths
        self.targets = targets

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Entry]:
        for row, path in enumerate(self.paths):
            yield listed_entry(path, self.targets.listed(row))


def listed_entry(path: str, labels: Listed) -> Entry:
    """Return the entry of an image by class index."""
    if labels.negatives is None:
        return {"positives": labels.positives, "img_path": path}
    return {"positives": labels.positives, "negatives": labels.negatives, "img_path": path}


Splits = Mapping[str, Entries]  # the entries of each label file or split, by its name
Pictures = dict[FileKey, Entry]  # the entry of each image file


def positives_of(entry: Entry) -> list[int]:
    """Return the indices of the classes that an entry has."""
    if "positives" in entry:
        return entry["positives"]
    return [c for c, value in enumerate(entry["target"]) if value == 1]
