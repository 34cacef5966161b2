"""The parts of a training run, in one object."""

import argparse
from dataclasses import dataclass

from utils.training.folder import RunFolder
from utils.training.state import Progress, TrainingState


@dataclass(eq=False)
class Run:
    """A training run: its options, its data, its state and its folder.

    labels: the fingerprints of its label files. num_images: the number of training images. steps_per_epoch:
    the number of batches that they make.
    """

    args: argparse.Namespace
    classes: list[str]
    labels: str
    num_images: int
    steps_per_epoch: int
    state: TrainingState
    folder: RunFolder

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.state.progress
