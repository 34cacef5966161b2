"""Rows of an image, a label and a value, each packed into one number: a table of millions in little memory.

The rows of 15 million labels take 120 MB. Functions named in_place change the array that they are given, so
that they need no copy.
"""

import numpy as np

from utils.data.labels import IGNORED, Targets

BLOCK = 2**20  # rows for which there are intermediate results at the same time
NOT_CHOSEN = -1  # in place of a class: a label that is none of the classes


def pack(images: np.ndarray, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a number for each row that holds its image, its label and its value, and sorts by them.

    All arrays are int64 (R,). images, labels: numbers from 0 to below 2^31. values: 1 or 0.
    """
    return images << 32 | labels << 1 | values


def images_of(packed: np.ndarray) -> np.ndarray:
    """Return the images (R,) of packed rows."""
    return packed >> 32


def labels_of(packed: np.ndarray) -> np.ndarray:
    """Return the labels (R,) of packed rows."""
    return packed >> 1 & (2**31 - 1)


def values_of(packed: np.ndarray) -> np.ndarray:
    """Return the values (R,) of packed rows."""
    return packed & 1


def join_rows(blocks: list[np.ndarray]) -> np.ndarray:
    """Return the numbers of all blocks as one array, in any order; to free memory, `blocks` is emptied."""
    joined = np.empty(sum(map(len, blocks)), np.int64)
    filled = 0
    while blocks:
        block = blocks.pop()
        joined[filled : filled + len(block)] = block
        filled += len(block)
    return joined


def select_in_place(packed: np.ndarray, is_kept: np.ndarray) -> np.ndarray:
    """Move the packed rows for which is_kept (R,) is true to the front; return that part of the array."""
    filled = 0
    for start in range(0, len(packed), BLOCK):
        kept = packed[start : start + BLOCK][is_kept[start : start + BLOCK]]
        packed[filled : filled + len(kept)] = kept
        filled += len(kept)
    return packed[:filled]


def deduplicate_in_place(packed: np.ndarray) -> tuple[np.ndarray, int]:
    """Sort packed rows, keep equal ones once, and leave out those that contradict each other.

    Return the rows that stay, in the memory of `packed`, and how many pairs of an image and a label have both
    values.
    """
    packed.sort()
    packed = select_in_place(packed, np.append(True, packed[1:] != packed[:-1])[: len(packed)])
    contradicts_next = np.zeros(len(packed), bool)
    for start in range(0, len(packed) - 1, BLOCK):
        block = packed[start : start + BLOCK + 1]
        contradicts_next[start : start + len(block) - 1] = block[1:] == block[:-1] | 1  # 0 sorts before 1
    contradicts = contradicts_next.copy()
    contradicts[1:] |= contradicts_next[:-1]
    return select_in_place(packed, ~contradicts), int(contradicts_next.sum())


def labels_with_positive(packed: np.ndarray) -> set[int]:
    """Return the labels that have the value 1 in a packed row."""
    found: set[int] = set()
    for start in range(0, len(packed), BLOCK):
        block = packed[start : start + BLOCK]
        found.update(labels_of(block[values_of(block) == 1]).tolist())
    return found


def replace_labels_in_place(packed: np.ndarray, class_of: np.ndarray) -> np.ndarray:
    """Replace the label of each packed row by its class, leave out the rows of none, and sort.

    class_of: int64 (L,), the class of each label, or NOT_CHOSEN. Return the rows in the memory of `packed`.
    """
    is_chosen = np.empty(len(packed), bool)
    for start in range(0, len(packed), BLOCK):
        block = packed[start : start + BLOCK]
        classes = class_of[labels_of(block)]
        is_chosen[start : start + BLOCK] = classes != NOT_CHOSEN
        block[:] = pack(images_of(block), classes, values_of(block))
    packed = select_in_place(packed, is_chosen)
    packed.sort()
    return packed


def unpack(packed: np.ndarray, num_images: int, num_classes: int) -> tuple[np.ndarray, Targets]:
    """Return the images below num_images that have a packed row, ascending, and their targets.

    packed: sorted. A label of an image without a row is unknown, and `rest` is IGNORED for all images.
    """
    offsets = np.searchsorted(packed, np.arange(num_images + 1) << 32)
    images = np.flatnonzero(np.diff(offsets))
    classes = np.empty(len(packed), np.int32)
    values = np.empty(len(packed), np.int8)
    for start in range(0, len(packed), BLOCK):
        block = packed[start : start + BLOCK]
        classes[start : start + BLOCK] = labels_of(block)
        values[start : start + BLOCK] = values_of(block)
    targets = Targets(
        num_classes=num_classes,
        offsets=np.append(offsets[images], len(packed)),
        classes=classes,
        values=values,
        rest=np.full(len(images), IGNORED, np.int8),
    )
    return images, targets
