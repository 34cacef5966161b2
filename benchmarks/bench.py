"""Time each stage against the textbook's way to do it, and check that both compute the same.

python benchmarks/bench.py [loader|head|metrics|startup|train|val|demo|shapes|prepare|all|gpu] [--quick]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
import argparse
import platform
import tempfile
from datetime import date

import utils.runtime.passive_waiting  # noqa: F401  before torch

import numpy
import PIL
import torch
import torchvision

from benchmarks import gpu, network, scripts, stages
from benchmarks.inputs import make_photos
from benchmarks.timing import Row, Settings, Variant
from utils.commands.options import add_run_options
from utils.data.decoding import load_image
from utils.runtime.cli import Parser, UserError, default_workers, given_path, number, run_script
from utils.runtime.device import choose_device
from utils.runtime.files import check_file, nan_to_none, write_json

STAGES = {
    "loader": stages.time_loader,
    "head": stages.time_head,
    "metrics": stages.time_metrics,
    "startup": stages.time_startup,
    "train": network.time_training,
    "val": network.time_validation,
    "demo": scripts.time_demo,
    "shapes": scripts.compare_shapes,
    "prepare": stages.time_prepare,
    "gpu": gpu.time_gpu,
}
QUICK = {
    "num_scored_images": 4_000,
    "num_coco_images": 8_278,
    "num_coco_boxes": 60_490,
    "num_demo_photos": 16,
    "num_seeds": 1,
    "num_rounds": 3,
    "num_long_rounds": 1,
}
COLUMNS = "| {:62} | {:>26} | {:>26} | {:5} | {:20} | {:35} | {} |"
STAGE_HELP = "what to time; all: everything but gpu; gpu: one GPU, in all precisions, within 8 minutes"
TITLES = ("stage", "textbook", "ours", "ratio", "target", "share of the limit", "same result")


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = choose_settings(args, Path(folder))
        machine = describe_machine()
        print("\n".join(f"{key:10} {value}" for key, value in machine.items()), end="\n\n", flush=True)
        print(COLUMNS.format(*TITLES), "|---|---|---|---|---|---|---|", sep="\n", flush=True)
        rows = []
        for stage in [name for name in STAGES if name != "gpu"] if args.stage == "all" else [args.stage]:
            for row in STAGES[stage](settings):
                rows.append(row)
                print(format_row(row), flush=True)
                if args.out:  # after each row, so that a run that is cut off leaves its figures
                    figures = {"machine": machine, "rows": [vars(row) for row in rows]}
                    write_json(args.out, nan_to_none(figures))
    if args.out:
        print(f"written to {args.out}")
    if not all(row.same in (True, None) for row in rows):
        sys.exit("a stage does not compute what the textbook computes")


def choose_settings(args: argparse.Namespace, folder: Path) -> Settings:
    """Return the settings that the options ask for; `folder` is for the files that the stages write."""
    device = choose_device(args.device, args.amp or "off", args.compile)
    amps = [args.amp] if args.amp else ["off", "bf16"] if can_use_bf16(device) else ["off"]
    variants = tuple(Variant(amp, "default" if args.compile else "") for amp in amps)
    chosen = {"device": device, "variants": variants} | (QUICK if args.quick else {})
    if args.stage == "gpu":
        if device.type != "cuda":
            raise UserError(f"gpu measures a CUDA GPU, and this runs on {device}: choose another stage")
        # main.py and val.py print a line after 100 steps.
        chosen |= {"variants": gpu.ALL, "num_steps": 96, "num_workers": 16, "num_long_rounds": 1}
    elif device.type != "cpu":
        chosen |= {"num_steps": 40, "num_workers": default_workers()}
    elif args.quick:
        chosen["batch_size"] = 4
    given = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    chosen |= {name: value for name, value in given.items() if value is not None}
    photos = find_photos(args.images) if args.images else make_photos(folder / "photos", num_photos=64)
    return Settings(folder, photos, **chosen)


def can_use_bf16(device: torch.device) -> bool:
    """Return whether --amp bf16 is possible on a device."""
    try:
        choose_device(device.type, "bf16")
    except UserError:
        return False
    return True


def format_row(row: Row) -> str:
    """Format a row of the table, in Markdown."""
    ratio = f"{row.textbook / row.ours:.2f}" if row.textbook else ""
    share = f"{100 * row.limit / row.ours:.0f} % ({row.limit_name})" if row.limit else ""
    verdict = {True: "yes: ", False: "NO: ", None: ""}[row.same] + row.check
    costs = format_cost(row.textbook, row.unit), format_cost(row.ours, row.unit)
    return COLUMNS.format(row.stage, *costs, ratio, format_target(row), share, verdict)


def format_cost(cost: float | None, unit: str) -> str:
    """Format a cost with its unit, and for milliseconds per image also as images per second."""
    rate = f" ({1000 / cost:.3g}/s)" if cost and unit == "ms/image" else ""
    return "" if cost is None else f"{cost:.4g} {unit}{rate}"


def format_target(row: Row) -> str:
    """Name what the row is to reach, and mark it if it does not."""
    if not row.target:
        return ""
    reached = (row.textbook / row.ours, 1000 / row.ours, 100 * row.limit / row.ours)
    wanted = ", ".join(f"≥ {low:.3g}{unit}" for low, unit in zip(row.target, ("", "/s", " %")) if low)
    return wanted + (" missed" if any(value < low for value, low in zip(reached, row.target)) else "")


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
    parser.add_argument("stage", nargs="?", choices=[*STAGES, "all"], default="all", help=STAGE_HELP)
    parser.add_argument("--quick", action="store_true", help="smaller inputs and fewer rounds: some minutes")
    images_help = "folder of photographs (JPEG) [default: synthetic ones]"
    parser.add_argument("--images", type=given_path, metavar="DIR", help=images_help)
    batch_help = "images per step of train and val [default: 16; 4 with --quick on a CPU]"
    parser.add_argument("--batch_size", type=number(int, 2), help=batch_help)
    workers_help = "processes that load images in train and val [default: as main.py on a GPU, else 0]"
    parser.add_argument("--num_workers", type=number(int, 0, high=1000), help=workers_help)
    parser.add_argument("--out", type=given_path, metavar="FILE", help="write the figures to this JSON file")
    add_run_options(parser.add_argument_group("run"))
    parser.set_defaults(amp=None)  # train, val, head, demo and shapes in float32, and in bf16 if possible
    args = parser.parse_args()
    check_file(args.out, "--out")
    return args


if __name__ == "__main__":
    run_script(main)
