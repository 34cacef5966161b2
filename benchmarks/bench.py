"""Time each stage against the textbook's way to do it, and check that both compute the same.

python benchmarks/bench.py [loader|head|metrics|startup|train|val|prepare|all] [--quick]
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
from benchmarks.timing import Row, Settings
from utils.options import add_run_options
from utils.runtime.cli import Parser, UserError, default_workers, given_path, number, run_script
from utils.runtime.device import choose_device
from utils.runtime.files import atomic_write, check_file
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
QUICK = {
    "num_scored_images": 4_000,
    "num_coco_images": 8_278,
    "num_coco_boxes": 60_490,
    "num_rounds": 3,
    "num_long_rounds": 1,
}
COLUMNS = "{:46} {:>14} {:>14} {:>7}  {:14} {:34} {}"
TITLES = ("stage", "textbook", "ours", "ratio", "target", "share of the limit", "same result")


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = choose_settings(args, Path(folder))
        machine = describe_machine()
        print("\n".join(f"{key:10} {value}" for key, value in machine.items()), end="\n\n", flush=True)
        print(COLUMNS.format(*TITLES))
        rows = []
        for stage in STAGES if args.stage == "all" else [args.stage]:
            for row in STAGES[stage](settings):
                rows.append(row)
                print(format_row(row), flush=True)
    if args.out:
        with atomic_write(args.out) as file:
            json.dump({"machine": machine, "rows": [vars(row) for row in rows]}, file, indent=2)
        print(f"written to {args.out}")
    if not all(row.same for row in rows):
        sys.exit("a stage does not compute what the textbook computes")


def choose_settings(args: argparse.Namespace, folder: Path) -> Settings:
    """Return the settings that the options ask for; `folder` is for the files that the stages write."""
    device = choose_device(args.device, args.amp, args.compile)
    chosen = {"device": device, "amp": args.amp, "compile": args.compile} | (QUICK if args.quick else {})
    if device.type != "cpu":
        chosen |= {"num_steps": 40, "num_workers": default_workers()}
    elif args.quick:
        chosen["batch_size"] = 4
    given = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    chosen |= {name: value for name, value in given.items() if value is not None}
    photos = find_photos(args.images) if args.images else make_photos(folder / "photos", num_photos=64)
    return Settings(folder, photos, **chosen)


def format_row(row: Row) -> str:
    """Format a row of the table."""
    ratio, target = row.textbook / row.ours, ""
    if row.target:
        target = f"≥ {row.target:.3g}" + (" missed" if ratio < row.target else "")
    share = f"{100 * row.limit / row.ours:.0f} % ({row.limit_name})"
    verdict = f"{'yes' if row.same else 'NO'}: {row.check}" if row.check else ""
    costs = (f"{cost:.4g} {row.unit}" for cost in (row.textbook, row.ours))
    return COLUMNS.format(row.stage, *costs, f"{ratio:.2f}", target, share, verdict)


def describe_machine() -> dict[str, str]:
    """Return what the figures depend on: the command, the date, the processors and the versions."""
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
    """Return the JPEG files in a folder and below it, sorted; UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"--images {folder}: there is no such folder")
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise UserError(f"--images {folder}: no JPEG files there")
    for path in paths:
        load_image(path)  # raises UserError for a damaged file before anything is timed
    return paths


def parse_args() -> argparse.Namespace:
    parser = Parser("Time each stage against the textbook's way to do it.")
    parser.add_argument("stage", nargs="?", choices=[*STAGES, "all"], default="all", help="what to time")
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer rounds: about 3 minutes")
    images_help = "folder of photographs (JPEG) [default: synthetic ones]"
    parser.add_argument("--images", type=given_path, metavar="DIR", help=images_help)
    batch_help = "images per step of train and val [default: 16; 4 with --quick on a CPU]"
    parser.add_argument("--batch_size", type=number(int, 2), help=batch_help)
    workers_help = "processes that load images in train and val [default: as main.py on a GPU, else 0]"
    parser.add_argument("--num_workers", type=number(int, 0, high=1000), help=workers_help)
    parser.add_argument("--out", type=given_path, metavar="FILE", help="write the figures to this JSON file")
    add_run_options(parser)
    args = parser.parse_args()
    if args.out:
        check_file(args.out, "--out")
    return args


if __name__ == "__main__":
    run_script(main)
