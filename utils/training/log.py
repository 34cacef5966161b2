"""A run's log.jsonl: one line of JSON for each epoch."""

import json
from pathlib import Path
from typing import Any

from utils.runtime.errors import reporting_errors
from utils.runtime.files import atomic_write, nan_to_none


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log.jsonl, [] if it is missing; UserError if one is malformed."""
    path = folder / "log.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        with reporting_errors(f"{path}, line {number} is not the record of an epoch: delete the line"):
            records.append(parse_record(line))
    return records


def parse_record(line: bytes) -> dict[str, Any]:
    """Return the record in a line of a log; raise an exception if the line holds none."""
    record = json.loads(line.decode("utf-8-sig"))
    if not isinstance(record["epoch"], int):
        raise TypeError("its epoch is not a whole number")
    return record


def log_epoch(folder: Path, record: dict[str, Any]) -> None:
    """Add an epoch to log.jsonl by rewriting the file."""
    # A resumed run can repeat an epoch, which replaces the earlier line.
    earlier = [entry for entry in read_log(folder) if entry["epoch"] < record["epoch"]]
    with atomic_write(folder / "log.jsonl") as file:
        for entry in [*earlier, record]:
            file.write(json.dumps(nan_to_none(entry)) + "\n")
