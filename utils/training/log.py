"""A run's log.jsonl: one line of JSON for each epoch."""

import json
from pathlib import Path

from utils.runtime.cli import reporting_errors
from utils.runtime.files import atomic_write, nan_to_none


def read_log(folder: Path) -> list[dict]:
    """Return the lines of a run's log.jsonl, [] if it is missing; UserError if one is malformed."""
    path, records = folder / "log.jsonl", []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
        with reporting_errors(f"{path}, line {number} is not the record of an epoch: delete the line"):
            records.append(json.loads(line.decode("utf-8-sig")))
            if not isinstance(records[-1]["epoch"], int):
                raise TypeError("its epoch is not a whole number")
    return records


def log_epoch(folder: Path, record: dict) -> None:
    """Add an epoch to log.jsonl by rewriting the file, and print its summary."""
    # A resumed run can repeat an epoch, which replaces the earlier line.
    earlier = [entry for entry in read_log(folder) if entry["epoch"] < record["epoch"]]
    with atomic_write(folder / "log.jsonl") as file:
        file.writelines(json.dumps(nan_to_none(entry)) + "\n" for entry in [*earlier, record])
    rates = " (head ".join(f"{rate:.2g}" for rate in record["lr"].values()) + ")" * (len(record["lr"]) - 1)
    results = f"loss {record['train_loss']:.4f}  mAP {100 * record['mAP']:6.2f} %  lr {rates}"
    speed = f"{record['images_per_second']:.1f} images/s  {record['seconds']:.1f} s"
    print(f"epoch {record['epoch']:3}  {results}  {speed}")
