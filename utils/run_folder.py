"""The folder of a training run: found or made, and its log."""

import json
from pathlib import Path

from utils.cli import UserError
from utils.files import check_folder, plain

RUN_FILES = ("log.jsonl", "best.pth", "last.pth")


def choose_folder(output_dir: Path | None, name: str, overwrite: bool) -> Path:
    """Return the folder of a new run: output_dir, or else checkpoint/<name>, or <name>-2, … if that is taken.

    Raises UserError where it cannot be written to, or holds a run already and may not be overwritten.
    """
    if output_dir is None:
        output_dir, count = Path("checkpoint", name), 1
        while holds_run(output_dir):
            count += 1
            output_dir = Path("checkpoint", f"{name}-{count}")
    elif holds_run(output_dir) and not overwrite:
        raise UserError(
            f"--output_dir {output_dir} holds a run already: name another folder, or add --overwrite"
        )
    check_folder(output_dir, "--output_dir")
    return output_dir


def holds_run(folder: Path) -> bool:
    """Tell whether a folder holds any file of a run."""
    return any((folder / file).exists() for file in RUN_FILES)


def start_run(folder: Path) -> None:
    """Make the folder of a run, without the run that it may hold."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in RUN_FILES:
        (folder / file).unlink(missing_ok=True)


def log_epoch(folder: Path, record: dict) -> None:
    """Append an epoch to log.jsonl and print its summary line."""
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(plain(record)) + "\n")
    rates = "/".join(f"{rate:.2g}" for rate in record["lr"].values())
    print(
        f"epoch {record['epoch']:3}  loss {record['train_loss']:.4f}  mAP {100 * record['mAP']:6.2f} %  "
        f"lr {rates}  {record['images_per_second']:.1f} images/s  {record['seconds']:.1f} s",
        flush=True,
    )
