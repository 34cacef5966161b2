"""The loaders of training and evaluation."""

import multiprocessing
from argparse import Namespace
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from utils.data.datasets import DatasetSpec, label_file
from utils.data.decoding import report_slow_decoder
from utils.data.order import EvaluationBatches, TrainingBatches
from utils.data.samples import LabelledImages, Sample, collate, load_split
from utils.data.shapes import make_missing_shapes
from utils.runtime import distributed, workers
from utils.runtime.open_files import check_open_files
from utils.runtime.script import ignore_decoder_warnings

MAX_EVALUATION_BATCH = 16  # fits a GPU whatever the training batch is
Batches = TrainingBatches | EvaluationBatches


def prepare_worker(worker: int) -> None:
    """Prepare a worker process: its parent handles the signals, and it prints no warnings."""
    workers.ignore_signals()
    ignore_decoder_warnings()


class Loader(DataLoader[Sample]):
    """Loads labelled images, a Batch at a time, in workers that see no signals.

    There are at most as many workers as batches.
    """

    dataset: LabelledImages

    def __init__(
        self,
        dataset: LabelledImages,
        batches: Batches,
        num_workers: int,
        device: torch.device,
        keep_workers: bool,
    ):
        report_slow_decoder()
        num_workers = min(num_workers, len(batches))  # 0 for a process that gets no batch
        check_open_files(num_workers)
        super().__init__(
            dataset,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=prepare_worker,
            persistent_workers=keep_workers and num_workers > 0,
        )

    def __iter__(self) -> Any:
        with workers.sheltering_children():
            return super().__iter__()

    def check_worker_number_rationality(self) -> None:
        """Replace PyTorch's check, which warns: the user may choose more workers than there are cores."""


class TrainingLoader(Loader):
    """Loads the samples of an epoch in random order; see TrainingBatches."""

    batch_sampler: TrainingBatches

    def __init__(self, dataset: LabelledImages, batch_size: int, num_workers: int, device: torch.device):
        batches = TrainingBatches(len(dataset), batch_size, dataset.seed)
        super().__init__(dataset, batches, num_workers, device, keep_workers=True)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch (from 0) and the batch (from 0) at which the next iteration starts."""
        self.batch_sampler.set_epoch(epoch, start)


class EvaluationLoader(Loader):
    """Loads the samples in order; each process gets its part, see EvaluationBatches."""

    def __init__(self, dataset: LabelledImages, batch_size: int, num_workers: int, device: torch.device):
        batches = EvaluationBatches(len(dataset), batch_size)
        super().__init__(dataset, batches, num_workers, device, keep_workers=keeps_evaluation_workers())


def keeps_evaluation_workers() -> bool:
    """Return whether the workers of an evaluation stay for the next one, or start anew for each.

    A forked worker starts within a second, but keeps a copy of the training process's memory, which is
    gigabytes with a large network, so it ends with the evaluation. A spawned worker first imports all modules
    again, for seconds to a minute, and a worker of a forkserver may have to. Neither holds memory of
    training, so both stay.
    """
    return multiprocessing.get_start_method() != "fork"


class Loaders(NamedTuple):
    """What main.py trains on, chooses the best epoch on, and reports at the end.

    Without a val.json the best epoch is chosen on the test images, and `val` is the same loader as `test`.
    """

    train: TrainingLoader
    val: EvaluationLoader
    test: EvaluationLoader
    has_val: bool

    @property
    def workers_at_once(self) -> int:
        """The largest number of workers that exist at the same time; those of training stay."""
        if self.val is self.test:
            evaluation = self.test.num_workers
        elif keeps_evaluation_workers():
            evaluation = self.val.num_workers + self.test.num_workers
        else:
            evaluation = max(self.val.num_workers, self.test.num_workers)
        return self.train.num_workers + evaluation


def make_loaders(args: Namespace, spec: DatasetSpec, device: torch.device) -> Loaders:
    """Return the loaders of main.py's options, and make the data set shapes if it is missing."""
    if args.dataset == "shapes":
        distributed.first_process_first(make_missing_shapes)

    def evaluation_loader(split: str) -> EvaluationLoader:
        images = load_split(spec, split, args.img_size, max_pixels=args.max_pixels)
        # In evaluation each process takes whole batches.
        batch_size = min(args.batch_size, MAX_EVALUATION_BATCH)
        return EvaluationLoader(images, batch_size, args.num_workers, device)

    images = load_split(spec, "train", args.img_size, train=True, seed=args.seed, max_pixels=args.max_pixels)
    train = TrainingLoader(images, args.batch_size, args.num_workers, device)
    test = evaluation_loader("test")
    has_val = label_file(spec, "val").exists()
    val = evaluation_loader("val") if has_val else test
    loaders = Loaders(train, val, test, has_val)
    check_open_files(loaders.workers_at_once)
    return loaders
