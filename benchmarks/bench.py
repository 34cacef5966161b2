"""Time each stage against the textbook's way to do it, and check that both compute the same.

python benchmarks/bench.py [STAGE] [--quick], where STAGE is a key of STAGES, or "all", the default
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # first, see there

import argparse
import itertools
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import utils.runtime.passive_waiting  # noqa: F401  before torch

import numpy
import PIL
import torch
import torchvision

from benchmarks import commands, engines, gpu, network, parts, scripts
from benchmarks.engine_table import ENGINE_HEAD, EngineRow
from benchmarks.inputs import make_photos
from benchmarks.settings import NETWORKS, QUICK, Settings, Sizes, Variant
from benchmarks.table import HEAD, Row
from utils.command_line.options import add_run_options
from utils.data.decoding import load_image
from utils.runtime.arguments import Parser, given_path, number
from utils.runtime.device import choose_device, set_up_device
from utils.runtime.errors import UserError
from utils.runtime.files import nan_to_none, read_json, write_json
from utils.runtime.output_checks import check_file, check_replaceable
from utils.runtime.script import run_script
from utils.runtime.workers import default_workers

ON_CPU = ("engines", "commands")
STAGES: dict[str, Callable[[Settings], Iterator[Row] | Iterator[EngineRow]]] = {
    "loader": parts.time_loader,
    "head": parts.time_head,
    "metrics": parts.time_metrics,
    "startup": scripts.time_startup,
    "train": network.time_training,
    "val": network.time_validation,
    "demo": scripts.time_demo,
    "shapes": scripts.compare_shapes,
    "prepare": scripts.time_prepare,
    "gpu": gpu.time_gpu,
    "engines": engines.time_engines,
    "commands": commands.time_commands,
}
NOT_IN_ALL = ("gpu", *ON_CPU)
STAGE_HELP = (
    "what to time; all: everything but gpu, engines and commands; "
    "gpu: one GPU, in all precisions, within 8 minutes; "
    "engines: the CPU, against ONNX Runtime and OpenVINO; commands: demo.py on the CPU, with its start"
)


def main() -> None:
    args = parse_args()
    stages = [args.stage]
    if args.stage == "all":
        stages = [name for name in STAGES if name not in NOT_IN_ALL]
    with tempfile.TemporaryDirectory() as folder:
        settings = choose_settings(args, Path(folder))
        machine = describe_machine()
        for key, value in machine.items():
            print(f"{key:10} {value}")
        print(f"\n{ENGINE_HEAD if args.stage == 'engines' else HEAD}", flush=True)
        rows: list[Row | EngineRow] = []
        for row in itertools.chain.from_iterable(STAGES[stage](settings) for stage in stages):
            rows.append(row)
            print(row.format(), flush=True)
            if args.out:  # after each row, so that a run that is cut off leaves its figures
                figures = {"machine": machine, "rows": [asdict(row) for row in rows]}
                write_json(args.out, nan_to_none(figures))
    if args.out:
        print(f"written to {args.out}")
    if any(row.same not in (True, None) for row in rows):
        sys.exit("a stage does not compute what the textbook computes")


def choose_settings(args: argparse.Namespace, folder: Path) -> Settings:
    """Return the settings that the options ask for; `folder` is for the files that the stages write."""
    device = choose_device(args.device, args.amp or "off", args.compile)
    set_up_device(device)
    if args.stage == "gpu" and device.type != "cuda":
        raise UserError(f"gpu measures a CUDA GPU, and this runs on {device}: choose another stage")
    if args.stage in ON_CPU and device.type != "cpu":
        raise UserError(f"{args.stage} measures the CPU, and this runs on {device}: add --device cpu")
    photos = find_jpegs(args.images) if args.images else make_photos(folder / "photos", num_photos=64)
    sizes = QUICK if args.quick else Sizes()
    if args.networks:
        sizes = replace(sizes, networks=tuple((name, NETWORKS[name]) for name in args.networks))
    if args.stage == "gpu":
        sizes = replace(sizes, long_rounds=1)
        # 96 steps, because main.py and val.py print a line after 100.
        settings = Settings(folder, photos, device, gpu.ALL, num_steps=96, num_workers=16, sizes=sizes)
    else:
        settings = Settings(folder, photos, device, choose_variants(args, device), sizes=sizes)
        if device.type != "cpu":
            settings = replace(settings, num_steps=40, num_workers=default_workers())
        elif args.quick:
            settings = replace(settings, batch_size=4)
    if args.batch_size is not None:
        settings = replace(settings, batch_size=args.batch_size)
    if args.num_workers is not None:
        settings = replace(settings, num_workers=args.num_workers)
    return settings


def choose_variants(args: argparse.Namespace, device: torch.device) -> tuple[Variant, ...]:
    """Return a variant in the precision that --amp names, or one in each that the device can compute in."""
    amps = ["off"]
    if args.amp:
        amps = [args.amp]
    elif can_use_bf16(device):
        amps = ["off", "bf16"]
    return tuple(Variant(amp, "default" if args.compile else "") for amp in amps)


def can_use_bf16(device: torch.device) -> bool:
    """Return whether --amp bf16 is possible on a device; say on stderr why not."""
    try:
        choose_device(device.type, "bf16")
    except UserError as error:
        print(f"bf16 is left out: {error}", file=sys.stderr)
        return False
    return True


def describe_machine() -> dict[str, str]:
    """Return what the figures depend on: the command, the date, the processors and the versions."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    versions = {"torch": torch, "torchvision": torchvision, "numpy": numpy, "pillow": PIL}
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "cpu": f"{cpu}, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {module.__version__}" for name, module in versions.items()),
    }


def find_jpegs(folder: Path) -> list[str]:
    """Return the JPEG files in a folder and below it, sorted; UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"--images {folder}: there is no such folder")
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise UserError(f"--images {folder}: no JPEG files there")
    for path in paths:
        load_image(path)  # raises UserError for a damaged file before anything is timed
    return paths


def make_parser() -> Parser:
    parser = Parser("Time each stage against the textbook's way to do it.")
    parser.add_argument("stage", nargs="?", choices=[*STAGES, "all"], default="all", help=STAGE_HELP)
    parser.add_argument("--quick", action="store_true", help="smaller inputs and fewer rounds: some minutes")
    images_help = "folder of photographs (JPEG) [default: synthetic ones]"
    parser.add_argument("--images", type=given_path, metavar="DIR", help=images_help)
    networks_help = "networks of the stage engines [default: all; with --quick resnet18]"
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME", help=networks_help)
    batch_help = "images per step of train and val [default: 16; 4 with --quick on a CPU]"
    parser.add_argument("--batch_size", type=number(int, 2), help=batch_help)
    workers_help = "processes that load images in train and val [default: as main.py on a GPU, else 0]"
    parser.add_argument("--num_workers", type=number(int, 0, high=1000), help=workers_help)
    parser.add_argument("--out", type=given_path, metavar="FILE", help="write the figures to this JSON file")
    add_run_options(parser.add_argument_group("run"), chooses_compile=False)
    parser.set_defaults(amp=None)  # train, val, head, demo and shapes in float32, and in bf16 if possible
    return parser


def parse_args() -> argparse.Namespace:
    args = make_parser().parse_args()
    check_file(args.out, "--out")
    check_replaceable(args.out, "--out", is_figures_file, "benchmarks/bench.py")
    return args


def is_figures_file(path: Path) -> bool:
    """Return whether this script wrote a file."""
    return read_json(path).keys() == {"machine", "rows"}


if __name__ == "__main__":
    run_script(main)
