"""Rows of an image, a label and a value, each packed into one number: a table of millions in little memory.

The rows of 15 million labels take 120 MB, and sort in seconds.
"""

import numpy as np

from utils.data.labels import IGNORED, Targets

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


def settle(packed: np.ndarray) -> tuple[np.ndarray, int]:
    """Sort packed rows, keep equal ones once, and leave out those that contradict each other.

    Return the rows that stay, and how many pairs of an image and a label have both values. Sorts in place.
    """
    packed.sort()
    is_first = np.ones(len(packed), bool)
    is_first[1:] = packed[1:] != packed[:-1]
    packed = packed[is_first]
    contradicts_next = np.zeros(len(packed), bool)
    contradicts_next[:-1] = packed[1:] == packed[:-1] | 1  # 0 sorts before 1
    contradicts = contradicts_next.copy()
    contradicts[1:] |= contradicts_next[:-1]
    return packed[~contradicts], int(contradicts_next.sum())


def labels_with_positive(packed: np.ndarray) -> np.ndarray:
    """Return the labels that have the value 1 in a row, ascending and each once."""
    return np.unique(labels_of(packed[values_of(packed) == 1]))


def with_classes(packed: np.ndarray, class_of: np.ndarray) -> np.ndarray:
    """Replace the label of each packed row by its class, leave out the rows of none, and sort.

    class_of: int64 (L,), the class of each label, or NOT_CHOSEN.
    """
    classes = class_of[labels_of(packed)]
    is_chosen = classes != NOT_CHOSEN
    packed = packed[is_chosen]
    packed = pack(images_of(packed), classes[is_chosen], values_of(packed))
    packed.sort()
    return packed


def unpack(packed: np.ndarray, num_images: int, num_classes: int) -> Targets:
    """Return sorted packed rows as the targets of num_images images; labels without a row are unknown."""
    return Targets(
        num_classes=num_classes,
        offsets=np.searchsorted(packed, np.arange(num_images + 1) << 32),
        classes=labels_of(packed).astype(np.int32),
        values=values_of(packed).astype(np.int8),
        rest=np.full(num_images, IGNORED, np.int8),
    )
