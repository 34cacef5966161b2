"""Time each stage against the textbook way of doing it, and check that both compute the same.

python benchmarks/bench.py [loader|train|val|metrics|prepare|head|startup|all] [--quick]
"""

import argparse
import json
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy
import PIL
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from benchmarks import network, stages
from benchmarks.inputs import make_photos
from benchmarks.timing import Row
from utils.options import add_run_options
from utils.runtime.cli import Parser, UserError, default_workers, given_path, number, run_script
from utils.runtime.device import choose_device
from utils.runtime.files import check_folder, whole_file
from utils.transforms import load_image

STAGES = {
    "loader": stages.time_loader,
    "head": stages.time_head,
    "metrics": stages.time_metrics,
    "startup": stages.time_startup,
    "train": network.time_training,
    "val": network.time_validation,
    "prepare": stages.time_prepare,
}
COLUMNS = "{:46} {:>14} {:>14} {:>7}  {:14} {:34} {}"


def main() -> None:
    args = parse_args()
    args.device = choose_device(args.device, args.amp).type
    if args.num_workers is None:
        args.num_workers = 0 if args.device == "cpu" else default_workers()
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        args.photos = find_photos(args.images) if args.images else make_photos(args.folder / "photos", 64)
        machine = describe_machine()
        print("\n".join(f"{key:10} {value}" for key, value in machine.items()), end="\n\n", flush=True)
        print(
            COLUMNS.format(
                "stage", "textbook", "ours", "ratio", "target", "share of the limit", "same result"
            )
        )
        rows = []
        for name in STAGES if args.stage == "all" else [args.stage]:
            for row in STAGES[name](args):
                rows.append(row)
                print(format_row(row), flush=True)
    if args.out:
        with whole_file(args.out) as file:
            json.dump({"machine": machine, "rows": [vars(row) for row in rows]}, file, indent=2)
        print(f"written to {args.out}")
    if not all(row.same for row in rows):
        sys.exit("a stage did not compute what the textbook computes")


def format_row(row: Row) -> str:
    """Format a row of the table."""
    target = ""
    if row.target:
        target = f"≥ {row.target:.3g}" + (" missed" if row.textbook / row.ours < row.target else "")
    share = f"{100 * row.limit / row.ours:.0f} % ({row.limit_name})" if row.limit else ""
    verdict = f"{'yes' if row.same else 'NO'}: {row.check}" if row.check else ""
    values = (f"{value:.4g} {row.unit}" for value in (row.textbook, row.ours))
    return COLUMNS.format(row.stage, *values, f"{row.textbook / row.ours:.2f}", target, share, verdict)


def describe_machine() -> dict[str, str]:
    """Return what a reader needs to place the figures: command, date, processors and versions."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    versions = {"torch": torch, "torchvision": torchvision, "numpy": numpy, "pillow": PIL}
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "cpu": f"{cpu}, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {module.__version__}" for name, module in versions.items()),
    }


def find_photos(folder: Path) -> list[str]:
    """Return the JPEG files below a folder, sorted; UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"--images {folder}: there is no such folder")
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise UserError(f"--images {folder}: no JPEG files there")
    for path in paths:
        load_image(path)  # names a damaged one before anything is timed
    return paths


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Time each stage against the textbook way of doing it.")
    parser.add_argument("stage", nargs="?", choices=[*STAGES, "all"], default="all", help="[default: all]")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smaller inputs, fewer rounds: within 3 minutes on two cores",
    )
    parser.add_argument(
        "--images", type=given_path, metavar="DIR", help="photographs (JPEG) [default: made-up ones]"
    )
    parser.add_argument(
        "--batch_size", type=number(int, 2), help="of train and val [default: 16, 4 if quick on a CPU]"
    )
    parser.add_argument(
        "--num_workers",
        type=number(int, 0),
        help="of train and val [default: as main.py for a GPU, else 0]",
    )
    parser.add_argument("--out", type=given_path, metavar="FILE", help="write the figures to this JSON file")
    add_run_options(parser)
    args = parser.parse_args()
    if args.out:
        check_folder(args.out.parent, "--out")
        if args.out.is_dir():
            raise UserError(f"--out {args.out} is a folder: name a file in it")
    return args


if __name__ == "__main__":
    run_script(main)
