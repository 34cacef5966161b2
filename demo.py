"""Label any images, and show where the model looked.

python demo.py --load_from MODEL.pth --img_dir photos [--heatmap]
"""

if __name__ == "__main__":
    import utils.runtime.quiet_interrupt  # first, see there

import argparse
import contextlib
import itertools
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import utils.runtime.passive_waiting  # before torch

import torch
from tqdm import tqdm

import utils.runtime.torchvision_alone  # noqa: F401  before torchvision
from utils.command_line import options
from utils.command_line.load_from import complete_options, load_model_for
from utils.data.decoding import report_slow_decoder
from utils.inference.heatmap_files import (
    HEATMAP_FORMATS,
    HeatmapForm,
    class_maps,
    heatmap_folders,
    write_heatmaps,
)
from utils.inference.html_page import check_page_folder, page_photo
from utils.inference.label_job import (
    Job,
    add_to_csv,
    is_finished,
    label_settings,
    open_rows_for,
    outputs,
    saying_how_to_resume,
    write_outputs,
)
from utils.inference.photographs import Unreadable, in_batches
from utils.inference.predictor import Prediction, Predictor, best_classes
from utils.inference.rows import Row, RowsFile, rows_path
from utils.inference.search import Found, find_photos
from utils.inference.speed_up import speed_up
from utils.inference.tables import is_csv_table, is_json_table, needs_utf8_mark
from utils.metrics.thresholds import read_thresholds, threshold
from utils.runtime import distributed, interrupt
from utils.runtime.arguments import Parser, expand_home, given_path, number
from utils.runtime.device import choose_device, set_up_device
from utils.runtime.errors import UserError, one_line, user_message
from utils.runtime.fonts import default_font, report_undrawable
from utils.runtime.output_checks import check_file, check_replaceable
from utils.runtime.processes import RANK, WORLD_SIZE
from utils.runtime.progress import progress_bar
from utils.runtime.script import run_script


def main() -> None:
    args = parse_args()
    found = find_photos(args.img_dir, folders_to_write(args)) if RANK == 0 else Found([], [])
    heatmaps = heatmap_folders(args.out_dir, found.images) if args.heatmap and RANK == 0 else None
    device = choose_device(args.device, args.amp, args.compile)
    set_up_device(device)
    distributed.suggest_torchrun(device)
    distributed.connect(device)
    if distributed.value_of_first(RANK == 0 and is_finished(args, found.images)):
        names = ", ".join(map(str, outputs(args)))
        print(f"{names}: finished, nothing to do; without --resume, all images are labelled again")
        distributed.disconnect()
        return
    predictor = load_predictor(args, device, distributed.value_of_first(len(found.images)))
    thresholds = read_thresholds(args.threshold, predictor.classes)
    utf8_mark = needs_utf8_mark([*predictor.classes, *found.images])
    job = Job(args, predictor, thresholds, distributed.value_of_first(heatmaps), utf8_mark)

    with open_rows_for(job) as rows, saying_how_to_resume(rows):
        num_skipped = report_found(found, rows)
        batches = batches_to_label(found.images, rows, args.batch_size)
        num_skipped += label_photographs(job, distributed.value_of_first(batches), rows)
        distributed.disconnect()
        if rows is not None:
            write_outputs(job, found.images, rows)
    for folder in folders_to_write(args).values():
        print(f"written to {folder}")
    report_skipped(num_skipped, len(found.images) + len(found.skipped))


def load_predictor(args: argparse.Namespace, device: torch.device, num_images: int) -> Predictor:
    """Return the network of --load_from, ready to label; print what will be slow or not drawn."""
    predictor = load_model_for(args).to(device)
    report_slow_decoder()
    if args.heatmap and RANK == 0:
        report_undrawable(predictor.classes, default_font())
    return speed_up(predictor, args, num_images)


def report_found(found: Found, rows: RowsFile | None) -> int:
    """Print how many images there are and which are left out so far; return how many are left out."""
    left_out = [one_line(f"{path}: {reason}") for path, reason in found.skipped]
    num_done = 0
    if rows is not None:
        left_out += [rows.skipped[path] for path in found.images if path in rows.skipped]
        num_done = sum(path in rows.starts for path in found.images)
    line = f"{len(found.images) + len(found.skipped)} images found"
    if found.skipped:
        line += f", {len(found.skipped)} of them not readable"
    if num_done:
        line += f", {num_done} of them labelled already"
    print(line)
    for reason in left_out:
        print(f"skipped: {reason}", file=sys.stderr)
    return len(left_out)


def batches_to_label(paths: list[str], rows: RowsFile | None, batch_size: int) -> list[list[str]]:
    """Return the batches that hold a photograph without a row, and empty ones so that all get equally many.

    The batches are those of a run without a stop, because the last digits of a score depend on its batch.
    """
    done = {} if rows is None else rows.starts
    batches = [batch for batch in in_batches(paths, batch_size) if any(path not in done for path in batch)]
    return batches + [[]] * (-len(batches) % WORLD_SIZE)


def label_photographs(job: Job, batches: list[list[str]], rows: RowsFile | None) -> int:
    """Label photographs, and write and print their rows in order; return how many were skipped."""
    done = set() if rows is None else set(rows.starts)
    num_to_label = sum(path not in done for batch in batches for path in batch)
    num_skipped = 0
    with (
        interrupt.deferring_signals("stopping"),
        progress_bar(num_to_label, "label") as bar,
        contextlib.closing(new_rows(job, batches[RANK::WORLD_SIZE], done)) as labelled,
    ):
        for number, row in enumerate(labelled):
            bar.update(1)
            if rows is not None:
                rows.add(row)
                add_to_csv(job, row, rows, is_first=number == 0)
            print_row(job, row, bar)
            num_skipped += row.scores is None
    return num_skipped


def new_rows(job: Job, own_batches: list[list[str]], done: set[str]) -> Generator[Row, None, None]:
    """Label photographs, and yield their rows in order, all of them in the first process.

    The processes share the batches: in each round, every process labels one, and the first process takes the
    rows of all. done: photographs that have a row, in batches that were stopped halfway.
    """
    photos = itertools.chain.from_iterable(own_batches)
    with contextlib.closing(job.predictor.label(photos, label_settings(job.args))) as results:
        for batch in own_batches:
            for row in rows_of_all(label_batch(job, batch, results)):
                if row.path not in done:
                    yield row
            interrupt.stop_if_asked()


def label_batch(job: Job, batch: list[str], results: Iterator[Prediction | Unreadable]) -> Iterator[Row]:
    """Yield the row of each photograph of a batch; a signal ends it early. results: the next are its own."""
    for path, result in zip(batch, results):
        if interrupt.received:
            return
        yield make_row(job, path, result)


def rows_of_all(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows of all processes in order, in the first process alone; all processes call this."""
    if WORLD_SIZE == 1:
        yield from rows
    else:
        yield from itertools.chain.from_iterable(distributed.gather_in_first(list(rows)))


def make_row(job: Job, path: str, result: Prediction | Unreadable) -> Row:
    """Return the row of a photograph, and write its heatmaps."""
    args = job.args
    if isinstance(result, Unreadable):
        return Row(path, skipped=one_line(str(user_message(result.error))))
    if job.heatmaps is not None:
        best = best_classes(result.scores, job.thresholds, args.top)
        maps = class_maps(job.predictor, result, best)
        form = HeatmapForm(args.format, args.max_side)
        write_heatmaps(job.heatmaps.folder(path), path, args.max_pixels, maps, form)
    return Row(path, result.scores, on_page=page_photo(path, result) if args.html else None)


def print_row(job: Job, row: Row, bar: "tqdm[Any]") -> None:
    """Print the classes to show of a photograph, or why it was skipped."""
    if row.scores is None:
        bar.write(f"skipped: {row.skipped}", file=sys.stderr)
        return
    best = best_classes(row.scores, job.thresholds, job.args.top)
    words = [f"{job.predictor.classes[c]} {row.scores[c]:.2f}" for c in best]
    bar.write(one_line(f"{row.path}: {', '.join(words) or '-'}"))


def report_skipped(num_skipped: int, num_found: int) -> None:
    """If images were left out, say how many, and end with status 1; torchrun would take that for a crash."""
    if num_skipped:
        print(f"skipped {num_skipped} of {num_found} images: not readable", file=sys.stderr)
        if WORLD_SIZE == 1:
            sys.exit(1)


def folders_to_write(args: argparse.Namespace) -> dict[str, Path]:
    """Return the folders that the options let this command write to, by option."""
    folders = {}
    if args.heatmap:
        folders["--out_dir"] = args.out_dir
    if args.html:
        folders["--html"] = args.html
    return folders


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Label images. Exit status 1: some files were skipped; 2: a mistake.")
    group = parser.add_argument_group("data")
    options.add_dataset_of_checkpoint(group)
    options.add_image_options(group, from_checkpoint=True)
    options.add_loader_options(group, batch_help="images per step and process")
    dir_help = "image files, folders (with all below them) or quoted patterns such as 'photos/**/*.jpg'"
    group.add_argument(
        "--img_dir", type=expand_home, nargs="+", required=True, metavar="PLACE", help=dir_help
    )
    group = parser.add_argument_group("model")
    options.add_model_options(group, from_checkpoint=True)
    options.add_checkpoint(group)
    options.add_tta(group)
    group = parser.add_argument_group("output")
    threshold_help = (
        "lowest score to show, or a .json file with one per class [default: 0.5, or 0 if --top is given]"
    )
    group.add_argument("--threshold", type=threshold, metavar="NUMBER|FILE", help=threshold_help)
    group.add_argument("--top", type=number(int, 1), help="largest number of classes to show")
    group.add_argument("--heatmap", action="store_true", help="draw where the model saw each class shown")
    group.add_argument("--out_dir", type=given_path, default=Path("heatmaps"), help="folder for the heatmaps")
    group.add_argument("--format", choices=HEATMAP_FORMATS, default="png", help="of the heatmaps")
    side_help = "largest side of a heatmap in pixels; larger photographs are reduced"
    group.add_argument("--max_side", type=number(int, 1), default=1600, help=side_help)
    html_help = "make this folder a page that a browser opens: FOLDER/index.html"
    group.add_argument("--html", type=given_path, metavar="FOLDER", help=html_help)
    group.add_argument("--json", type=given_path, metavar="FILE", help="write all scores to this .json file")
    csv_help = (
        "write all scores to this .csv file; if a name is not ASCII, it starts with the UTF-8 mark, for Excel"
    )
    group.add_argument("--csv", type=given_path, metavar="FILE", help=csv_help)
    resume_help = "go on with the rows of a stopped run with these outputs; if there are none, begin"
    group.add_argument("--resume", action="store_true", help=resume_help)
    options.add_run_options(parser.add_argument_group("run"), chooses_compile=True)
    args = complete_options(parser.parse_args())
    if args.threshold is None:
        args.threshold = 0.0 if args.top else 0.5
    if args.resume and not outputs(args):
        raise UserError("--resume goes on with a table or a page: add --csv, --json or --html")
    check_file(args.json, "--json", ".json")
    check_file(args.csv, "--csv", ".csv")
    check_replaceable(args.json, "--json", is_json_table, "demo.py")
    if not (args.resume and rows_path(outputs(args)).exists()):  # else it is the table of those rows
        check_replaceable(args.csv, "--csv", is_csv_table, "demo.py")
    if args.html:
        check_page_folder(args.html, [args.json, args.csv, args.out_dir if args.heatmap else None])
    return args


if __name__ == "__main__":
    run_script(main)
