"""Choosing images to hold out, so that each class keeps its share. It needs no torch."""

import heapq
from typing import NamedTuple

import numpy as np

from utils.data.labels import Targets
from utils.runtime.progress import progress_bar


class Groups(NamedTuple):
    """Groups of numbers in one array: group i is members[starts[i] : starts[i + 1]]."""

    starts: np.ndarray
    members: np.ndarray

    def of(self, group: int) -> np.ndarray:
        """Return the members of a group."""
        return self.members[self.starts[group] : self.starts[group + 1]]

    def of_all(self, groups: np.ndarray) -> np.ndarray:
        """Return the members of several groups in a row."""
        if len(groups) == 0:
            return self.members[:0]
        sizes = self.starts[groups + 1] - self.starts[groups]
        ends = np.cumsum(sizes)
        return self.members[np.arange(sizes.sum()) + np.repeat(self.starts[groups] - ends + sizes, sizes)]


def grouped(groups: np.ndarray, members: np.ndarray, num_groups: int) -> Groups:
    """Return members in the group of each, in their order; groups, members: (P,)."""
    sizes = np.bincount(groups, minlength=num_groups)
    return Groups(np.append(0, np.cumsum(sizes)), members[np.argsort(groups, kind="stable")])


def stratify(targets: Targets, fraction: float, seed: int) -> np.ndarray:
    """Return which images to hold out, bool (N,): the same share of each class, but never a whole class.

    This is the iterative stratification of Sechidis et al. (2011): it takes the class with the fewest images
    left, holds out as many of them as its share still lacks, and so on; images without labels come last.
    The time follows the number of labels.
    """
    rng = np.random.default_rng(seed)
    num_images, num_classes = targets.shape
    order = rng.permutation(num_images)
    images, classes = targets.positives()
    place = np.empty(num_images, int)
    place[order] = np.arange(num_images)
    by_place = np.argsort(place[images], kind="stable")
    images_of = grouped(classes[by_place], images[by_place], num_classes)  # in random order
    classes_of = grouped(images, classes, num_images)

    held_out = np.zeros(num_images, bool)
    left = np.ones(num_images, bool)
    num_left = np.diff(images_of.starts)
    num_held = np.zeros(num_classes, int)
    rarest = [(count, c) for c, count in enumerate(num_left.tolist()) if count]
    heapq.heapify(rarest)
    with progress_bar(num_images, "divide", delay=1) as bar:
        while rarest:
            count, c = heapq.heappop(rarest)
            if count != num_left[c] or count == 0:
                continue  # images of the class were divided with those of another one
            members = images_of.of(c)
            candidates = members[left[members]]
            chosen = choose(candidates, len(members), int(num_held[c]), fraction, rng)
            held_out[chosen] = True
            left[candidates] = False
            np.add.at(num_held, classes_of.of_all(chosen), 1)
            changed = classes_of.of_all(candidates)
            np.subtract.at(num_left, changed, 1)
            for other in set(changed.tolist()):
                heapq.heappush(rarest, (int(num_left[other]), other))
            bar.update(len(candidates))
    without_labels = order[left[order]]
    if len(without_labels):
        held_out[choose(without_labels, num_images, int(held_out.sum()), fraction, rng)] = True
    return held_out


def choose(
    candidates: np.ndarray, num_members: int, num_held: int, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Return those of a group's images that are left, in random order, that are to be held out.

    num_members, num_held: of the group, all its images, and those that are held out already.
    """
    lacking = max(0.0, fraction * num_members - num_held)
    num_chosen = int(lacking)
    if rng.random() < lacking % 1:  # a fraction of an image is rounded at random
        num_chosen += 1
    num_training = num_members - len(candidates) - num_held
    if num_training == 0:
        num_chosen = min(num_chosen, len(candidates) - 1)
    return candidates[:num_chosen]
