"""The folder of a training run: found or made, and its log."""

import contextlib
import itertools
import json
from pathlib import Path

from utils.runtime.cli import UserError
from utils.runtime.files import check_folder, plain, whole_file

RUN_FILES = ("log.jsonl", "best.pth", "last.pth", "previous.pth", "damaged.pth")


def check_run(output_dir: Path | None, overwrite: bool) -> None:
    """Raise UserError unless a run can be written to output_dir, or to checkpoint/ where it is None."""
    check_folder(output_dir or Path("checkpoint"), "--output_dir")
    if output_dir and not overwrite and any((output_dir / file).exists() for file in RUN_FILES):
        raise UserError(
            f"--output_dir {output_dir} holds a run already: name another folder, "
            "or add --resume or --overwrite"
        )


def make_run(output_dir: Path | None, name: str) -> Path:
    """Make the folder of a new run: output_dir, or a new checkpoint/<name>, with -2, … if that is taken."""
    if output_dir:
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_parts(output_dir)
        return output_dir
    for suffix in itertools.chain([""], (f"-{number}" for number in itertools.count(2))):
        folder = Path("checkpoint", name + suffix)
        try:
            folder.mkdir(parents=True)  # claims the name, also from another run that starts just now
            return folder
        except FileExistsError:
            continue


def remove_parts(folder: Path) -> None:
    """Remove the files that a killed run was writing."""
    for file in RUN_FILES:
        for part in folder.glob(f".{file}.*.part"):
            part.unlink(missing_ok=True)


def remove_if_empty(folder: Path | None) -> None:
    """Remove the folder of a run that ended before it saved anything."""
    if folder:
        with contextlib.suppress(OSError):  # it is not empty, or another process's
            folder.rmdir()


def read_log(folder: Path) -> list[dict]:
    """Return the records in a run's log.jsonl, none if there is no log yet; UserError if one is malformed."""
    path = folder / "log.jsonl"
    if not path.exists():
        return []
    records, number = [], 1
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):  # noqa: B007
            records.append(json.loads(line.decode("utf-8-sig")))
            if not isinstance(records[-1]["epoch"], int):
                raise TypeError("its epoch is no whole number")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}, line {number} is no epoch's record ({fault}): delete the line") from None
    return records


def log_epoch(folder: Path, record: dict) -> None:
    """Write an epoch to log.jsonl, behind the earlier ones, and print its summary line."""
    # After an interruption the same epoch may come again.
    earlier = [entry for entry in read_log(folder) if entry["epoch"] < record["epoch"]]
    with whole_file(folder / "log.jsonl") as file:
        file.writelines(json.dumps(plain(entry)) + "\n" for entry in [*earlier, record])
    rates = "/".join(f"{rate:.2g}" for rate in record["lr"].values())
    print(
        f"epoch {record['epoch']:3}  loss {record['train_loss']:.4f}  mAP {100 * record['mAP']:6.2f} %  "
        f"lr {rates}  {record['images_per_second']:.1f} images/s  {record['seconds']:.1f} s",
        flush=True,
    )
