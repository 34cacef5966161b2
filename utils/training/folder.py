"""The folder of a run: what is in it, what is written when, and who may write.

best.pth is written after an epoch whose mAP is the highest so far. last.pth is written after each epoch's
training and evaluation, at a signal and every --save_every steps; the one before stays as previous.pth.
log.jsonl gets a line per epoch. damaged.pth is a last.pth that could not be read. With a val.json,
test_results.json holds the metrics of best.pth on the test images. While a run writes, it holds a lock.
"""

import argparse
import contextlib
import itertools
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from utils.runtime import distributed
from utils.runtime.errors import UserError
from utils.runtime.output_checks import check_folder
from utils.runtime.processes import RANK
from utils.training.folder_lock import FolderLock
from utils.training.log import read_log
from utils.weights.contents import load_checkpoint
from utils.weights.writing import save_checkpoint

RUN_FILES = ("log.jsonl", "best.pth", "last.pth", "previous.pth", "damaged.pth", "test_results.json")
START_SIZE = 2**24  # bytes; torch.save writes all but the numbers of the tensors first
ALL_RUNS = Path("checkpoint")


class SavedRun(NamedTuple):
    """The content of last.pth or previous.pth, and which file it is from."""

    content: dict[str, Any]
    file: Path


class RunFolder:
    """The folder of one run; `open` or `make` sets its path. At the end of a `with` block it is unlocked.

    Only the first process makes, locks and writes; the others learn the folder's path by `broadcast_path`.
    """

    def __init__(self) -> None:
        self.path = ALL_RUNS  # placeholders, until `open` or `make` sets path and lock
        self.lock = FolderLock(self.path)
        self.made: list[Path] = []  # folders to remove in the end if they are still empty
        self.replaced: list[Path] = []  # files of an earlier run to remove at the first save

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.lock.release()
        for folder in self.made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    def open(self, path: Path) -> None:
        """Lock the folder of a run to resume, and check its log."""
        self.path = path
        if RANK == 0:
            self.take_lock()
            read_log(path)

    def make(self, path: Path | None, args: argparse.Namespace) -> None:
        """Make the folder of a new run and lock it; UserError if it holds a run and --overwrite is not given.

        path: None means checkpoint/<options of the run>.
        """
        if RANK > 0:
            return
        check_folder(path or ALL_RUNS, "--output_dir")
        self.made = missing_folders(path or ALL_RUNS)
        if path is None:
            self.path = make_new_folder(args)
            self.made.insert(0, self.path)
        else:
            path.mkdir(parents=True, exist_ok=True)
            self.path = path
        self.take_lock()
        if args.overwrite:
            check_is_run(self.path)
            self.replaced = [self.path / file for file in RUN_FILES]
        else:
            check_holds_no_run(self.path)

    def take_lock(self) -> None:
        """Lock the folder; UserError if another run has it."""
        self.lock = FolderLock(self.path)
        self.lock.acquire()

    def broadcast_path(self) -> None:
        """Tell the path to all processes, which all call this."""
        self.path = distributed.gather(self.path)[0]

    def remove_leftovers(self) -> None:
        """Remove the part files of a killed run; without the lock, they may be those of a live run."""
        if not self.lock.held:
            return
        for file in RUN_FILES:
            for part in self.path.glob(f".{file}.*.part"):
                part.unlink(missing_ok=True)

    def read_last(self) -> SavedRun:
        """Read last.pth, or previous.pth if it is damaged; UserError if neither can be used."""
        last = self.path / "last.pth"
        previous = self.path / "previous.pth"
        try:
            return SavedRun(load_checkpoint(last), last)
        except UserError as error:
            if not previous.exists():
                raise
            checkpoint = load_checkpoint(previous)
            if RANK == 0:
                print(f"{error}; resuming from {previous}", file=sys.stderr)
                if last.exists():  # set it aside, so that the next save does not keep it as previous.pth
                    last.replace(self.path / "damaged.pth")
            return SavedRun(checkpoint, previous)

    def write_last(self, checkpoint: dict[str, Any]) -> None:
        """Write last.pth, and keep the one before as previous.pth."""
        for file in self.replaced:  # not before there is something to replace the earlier run
            file.unlink(missing_ok=True)
        self.replaced = []
        keep_previous(self.path)
        save_checkpoint(self.path / "last.pth", checkpoint)


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run that can be resumed."""
    return (folder / "last.pth").exists() or (folder / "previous.pth").exists()


def check_holds_no_run(folder: Path) -> None:
    """Raise UserError if a folder holds files of a run."""
    if any((folder / file).exists() for file in RUN_FILES):
        way_out = "add --resume or --overwrite" if holds_run(folder) else "replace it with --overwrite"
        raise UserError(f"--output_dir {folder} holds a run: name another folder, or {way_out}")


def check_is_run(folder: Path) -> None:
    """Raise UserError if a folder holds files with names of a run's, and main.py wrote none of them."""
    present = [folder / file for file in RUN_FILES if (folder / file).exists()]
    if present and not any(map(is_from_main, present)):
        raise UserError(f"--overwrite: {present[0]} is not from main.py: move it, or name another folder")


def is_from_main(path: Path) -> bool:
    """Return whether main.py wrote a file of RUN_FILES, which may be damaged; only its start is read."""
    with open(path, "rb") as file:
        start = file.read(START_SIZE)
    if path.suffix == ".pth":
        return all(word in start for word in (b"config", b"classes", b"record", b"img_size"))
    return start.startswith((b'{"epoch"', b'{\n  "mAP"'))


def missing_folders(path: Path) -> list[Path]:
    """Return the folders of a path that do not exist, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def make_new_folder(args: argparse.Namespace) -> Path:
    """Make checkpoint/<options>, with -2, -3, … after a name that is taken."""
    model = args.model.replace(":", "_")  # of timm:NAME; Windows takes no colon
    name = f"{args.dataset}_{model}_h{args.num_heads}_lam{args.lam:g}"
    for number in itertools.count(1):
        folder = ALL_RUNS / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)  # fails if another run took the name just now
            break
    return folder


def keep_previous(folder: Path) -> None:
    """Make last.pth available as previous.pth too; last.pth stays complete at every moment."""
    last = folder / "last.pth"
    previous = folder / "previous.pth"
    if last.exists():
        previous.unlink(missing_ok=True)
        try:
            previous.hardlink_to(last)
        except OSError:  # the file system has no links
            shutil.copyfile(last, previous)
