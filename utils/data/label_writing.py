"""Writing label files, and counting the labels in them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from utils.data.label_entries import Entry, Splits, positives_of
from utils.data.label_files import UNKNOWN, is_label_file
from utils.runtime.files import write_json_list
from utils.runtime.output_checks import check_replaceable
from utils.runtime.progress import delayed_bar

MAX_NAMES = 20  # of classes, in a line
MAX_ROWS = 200  # of a table with a row for each class


class LabelCounts:
    """Counts the labels of entries that pass through it."""

    def __init__(self, num_classes: int) -> None:
        self.num_images = 0
        self.positives = [0] * num_classes
        self.num_unknown = 0

    def counted(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield the entries, and count them."""
        for entry in entries:
            self.num_images += 1
            for c in positives_of(entry):
                self.positives[c] += 1
            self.num_unknown += self.unknown_labels(entry)
            yield entry

    def unknown_labels(self, entry: Entry) -> int:
        """Return how many labels of an entry are unknown."""
        if "target" in entry:
            return entry["target"].count(UNKNOWN)
        if "negatives" not in entry:
            return 0
        return len(self.positives) - len(entry["positives"]) - len(entry["negatives"])


def write_labels(folder: Path, classes: list[str], splits: Splits) -> dict[str, LabelCounts]:
    """Write a label file for each split; print and return how many images of each class it has.

    Raises UserError if a file exists that is no label file; then nothing is written.
    """
    for name in splits:
        check_label_file(folder / name)
    counts = {}
    for name, entries in splits.items():
        counts[name] = LabelCounts(len(classes))
        write_label_file(folder / name, counts[name].counted(entries), len(entries))
        print(f"{folder / name}: {len(entries)} images, {sum(counts[name].positives)} labels")
        absent = [class_name for class_name, count in zip(classes, counts[name].positives) if count == 0]
        if absent:
            print(f"no image in {name} has {shortened(absent)}")
    print_counts(classes, counts)
    return counts


def write_label_file(path: Path, entries: Iterable[Entry], num_entries: int | None = None) -> None:
    """Write a label file, an entry a line, as the entries come; num_entries: for the progress bar."""
    bar = delayed_bar(entries, f"write {path.name}", total=num_entries)
    write_json_list(path, bar)


def shortened(names: list[str]) -> str:
    """Return names in a row; of many, the first ones and the number of the others."""
    shown = ", ".join(names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES} others"


def check_label_file(path: Path) -> None:
    """Raise UserError if a file exists that is no label file."""
    check_replaceable(path, "label file", is_label_file, "a script that makes label files")


def print_counts(classes: list[str], counts: dict[str, LabelCounts]) -> None:
    """Print a table with a row for each class and a column for each label file; a line for many classes."""
    if len(classes) > MAX_ROWS:
        for name, of_one_file in counts.items():
            fewest, middle, most = np.quantile(of_one_file.positives, [0, 0.5, 1])
            print(f"a class has {fewest:.0f} to {most:.0f} images of {Path(name).stem}, median {middle:.0f}")
        return
    head = "images of"
    width = max(len(head), *map(len, classes))
    print(f"{head:{width}}", *(f"{Path(name).stem:>18}" for name in counts))
    for class_name, *row in zip(classes, *(of_one_file.positives for of_one_file in counts.values())):
        print(f"{class_name:{width}}", *(f"{count:18}" for count in row))
