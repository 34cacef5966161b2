"""Label any images, and show where the model looked.

python demo.py --load_from MODEL.pth --img_dir photos [--heatmap]
"""

if __name__ == "__main__":
    import utils.runtime.quiet_interrupt  # first, see there

import argparse
import contextlib
import sys
from pathlib import Path

import utils.runtime.passive_waiting  # noqa: F401  before torch

import numpy as np

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
from utils.inference.html_page import Page, PageSettings, check_page_folder, new_page
from utils.inference.photographs import Unreadable
from utils.inference.predictor import Labelling, Predictor, best_classes
from utils.inference.search import find_photos
from utils.inference.tables import is_csv_table, is_json_table, write_csv_table, write_json_table
from utils.metrics.thresholds import read_thresholds, threshold
from utils.runtime import interrupt
from utils.runtime.arguments import Parser, expand_home, given_path, number
from utils.runtime.device import choose_device, set_up_device
from utils.runtime.errors import one_line, user_message
from utils.runtime.fonts import default_font, report_undrawable
from utils.runtime.output_checks import check_file, check_replaceable
from utils.runtime.processes import RANK
from utils.runtime.progress import progress_bar
from utils.runtime.script import run_script


def main() -> None:
    args = parse_args()
    paths, skipped = find_photos(args.img_dir, folders_to_write(args))
    folders = heatmap_folders(args.out_dir, paths) if args.heatmap else {}
    predictor = load_model_for(args)
    thresholds = read_thresholds(args.threshold, predictor.classes)
    device = choose_device(args.device, args.amp, args.compile)
    set_up_device(device)
    if args.compile:
        predictor.compile()
    predictor.to(device)
    report_slow_decoder()
    if args.heatmap:
        report_undrawable(predictor.classes, default_font())
    form = HeatmapForm(args.format, args.max_side)
    how = labelling(args)

    print(f"{len(paths)} images found")
    for path, reason in skipped:
        print(f"skipped: {one_line(f'{path}: {reason}')}", file=sys.stderr)
    scores = {}
    with (
        interrupt.deferring_signals("stopping"),
        open_page(args, predictor, thresholds) as page,
        progress_bar(len(paths), "label") as bar,
        contextlib.closing(predictor.label(paths, how)) as results,  # a stop leaves no file to be decoded
    ):
        for path, result in zip(paths, results):
            interrupt.stop_if_asked()
            bar.update(1)
            if isinstance(result, Unreadable):
                bar.write(f"skipped: {one_line(str(user_message(result.error)))}", file=sys.stderr)
                continue
            scores[path] = result.scores
            best = best_classes(result.scores, thresholds, args.top)
            bar.write(one_line(f"{path}: {describe(result.scores, predictor.classes, best)}"))
            if args.heatmap:
                maps = class_maps(predictor, result, best)
                write_heatmaps(folders[path], path, args.max_pixels, maps, form)
            if page:
                page.add(path, result)
        interrupt.stop_if_asked()

    write_tables(args, predictor.classes, scores)
    for written in folders_to_write(args).values():
        print(f"written to {written}")
    exit_if_skipped(len(scores), len(paths) + len(skipped))


def labelling(args: argparse.Namespace) -> Labelling:
    """Return how the options want photographs to be labelled."""
    has_page = args.html is not None
    return Labelling(
        batch_size=args.batch_size,
        num_threads=args.num_workers,
        max_pixels=args.max_pixels,
        tta=args.tta,
        amp=args.amp,
        with_maps=args.heatmap or has_page,
        with_thumbnails=has_page,
    )


def exit_if_skipped(num_labelled: int, num_found: int) -> None:
    """End with status 1 if not all files were labelled."""
    num_skipped = num_found - num_labelled
    if num_skipped:
        print(f"skipped {num_skipped} of {num_found} files: not readable as images", file=sys.stderr)
        sys.exit(1)


def folders_to_write(args: argparse.Namespace) -> dict[str, Path]:
    """Return the folders that the options let this command write to, by option."""
    folders = {}
    if args.heatmap:
        folders["--out_dir"] = args.out_dir
    if args.html:
        folders["--html"] = args.html
    return folders


def open_page(
    args: argparse.Namespace, predictor: Predictor, thresholds: np.ndarray
) -> contextlib.AbstractContextManager[Page | None]:
    """Return the page of --html, or None without it and in all processes but the first."""
    if not args.html or RANK > 0:
        return contextlib.nullcontext()
    settings = PageSettings(
        title=f"photographs labelled by {args.load_from}",
        classes=predictor.classes,
        thresholds=thresholds,
        top=args.top,
        has_true_labels=False,
        attention=predictor.has_attention,
    )
    return new_page(args.html, settings)


def write_tables(args: argparse.Namespace, classes: list[str], scores: dict[str, np.ndarray]) -> None:
    """Write {photograph: scores (C,)} to the files of --json and --csv."""
    if args.json:
        write_json_table(args.json, classes, scores)
        print(f"written to {args.json}")
    if args.csv:
        write_csv_table(args.csv, classes, scores)
        print(f"written to {args.csv}")


def describe(scores: np.ndarray, classes: list[str], best: list[int]) -> str:
    """Return the names and scores of the best classes in words; scores: (C,)."""
    words = [f"{classes[c]} {scores[c]:.2f}" for c in best]
    return ", ".join(words) or "-"


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Label images. Exit status 1: some files were skipped; 2: a mistake.")
    group = parser.add_argument_group("data")
    options.add_dataset_of_checkpoint(group)
    options.add_image_options(group, from_checkpoint=True)
    options.add_loader_options(group, batch_help="images per step")
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
    group.add_argument("--csv", type=given_path, metavar="FILE", help="write all scores to this .csv file")
    options.add_run_options(parser.add_argument_group("run"))
    args = complete_options(parser.parse_args())
    if args.threshold is None:
        args.threshold = 0.0 if args.top else 0.5
    check_file(args.json, "--json", ".json")
    check_file(args.csv, "--csv", ".csv")
    check_replaceable(args.json, "--json", is_json_table, "demo.py")
    check_replaceable(args.csv, "--csv", is_csv_table, "demo.py")
    if args.html:
        check_page_folder(args.html, [args.json, args.csv, args.out_dir if args.heatmap else None])
    return args


if __name__ == "__main__":
    run_script(main)
