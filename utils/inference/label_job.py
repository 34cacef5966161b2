"""A job of demo.py: what it labels with, and how its rows become tables and a page."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.network import MIN_SIDE
from utils.inference.heatmap_files import HeatmapFolders
from utils.inference.html_page import PageSettings, new_page
from utils.inference.photographs import Loaded, load_photo
from utils.inference.predictor import LabelSettings, Predictor
from utils.inference.rows import Row, RowsFile, open_rows, rows_path
from utils.inference.tables import (
    append_csv_row,
    csv_photos,
    json_photos,
    write_csv_table,
    write_json_table,
)
from utils.runtime.errors import UserError, user_message
from utils.runtime.processes import RANK
from utils.runtime.signals import Interrupted


class Job(NamedTuple):
    """What every process labels with.

    thresholds: (C,). heatmaps: where they go, None without them. utf8_mark: see needs_utf8_mark; only the
    first process, which writes the table, knows it.
    """

    args: argparse.Namespace
    predictor: Predictor
    thresholds: np.ndarray
    heatmaps: HeatmapFolders | None
    utf8_mark: bool


def label_settings(args: argparse.Namespace) -> LabelSettings:
    """Return how the options want photographs to be labelled."""
    has_page = args.html is not None
    return LabelSettings(
        batch_size=args.batch_size,
        num_threads=args.num_workers,
        max_pixels=args.max_pixels,
        tta=args.tta,
        amp=args.amp,
        with_maps=args.heatmap or has_page,
        with_thumbnails=has_page,
    )


def outputs(args: argparse.Namespace) -> list[Path]:
    """Return the tables and the page that the options ask for."""
    return [path for path in (args.csv, args.json, args.html) if path]


def is_finished(args: argparse.Namespace, images: list[str]) -> bool:
    """Return whether --resume has nothing to do, because the tables and the page are complete.

    Raises UserError if some of them are there, but cannot be gone on with: they have no rows.
    """
    if not args.resume or rows_path(outputs(args)).exists():
        return False
    files = [path for path in (args.csv, args.json, args.html and args.html / "index.html") if path]
    there = [path for path in files if path.exists() and path.stat().st_size > 0]
    if not there:
        return False
    again = "without --resume, all images are labelled again"
    missing = [path for path in files if path not in there]
    if missing:
        raise UserError(f"{there[0]} is finished, but {missing[0]} is not there: {again}")
    for table, photos_of in ((args.csv, csv_photos), (args.json, json_photos)):
        if table and (lacking := first_lacking(images, photos_of(table), args.max_pixels)):
            raise UserError(f"{table} has no row of {lacking}, and nothing to go on with: {again}")
    return True


def first_lacking(images: list[str], photos: Iterator[str], max_pixels: float) -> str | None:
    """Return the first image that is not among the photographs of a table, though it can be read."""
    labelled = set(photos)
    for path in images:
        if path not in labelled and isinstance(load_photo(path, MIN_SIDE, max_pixels), Loaded):
            return path
    return None


def open_rows_for(job: Job) -> contextlib.AbstractContextManager[RowsFile | None]:
    """Return the open file of rows; None without a table or page, and in all processes but the first."""
    args, predictor = job.args, job.predictor
    if RANK > 0 or not outputs(args):
        return contextlib.nullcontext()
    made_with = {
        "weights": predictor.weights_hash(),
        "class names": predictor.classes,
        "img_size": predictor.options["img_size"],
        "lam": predictor.options["lam"],
        "normalize": predictor.network.normalization,
        "tta": args.tta,
        "amp": args.amp,
        "max_pixels": args.max_pixels,
        "html": args.html is not None,
    }
    return open_rows(outputs(args), made_with, args.resume)


@contextlib.contextmanager
def saying_how_to_resume(rows: RowsFile | None) -> Iterator[None]:
    """If a signal or an error of the user stops the block, say how to go on with the rows that are there."""
    try:
        yield
    except (Interrupted, BrokenPipeError):
        if rows is not None and rows.starts:
            kept = f"{len(rows.starts)} rows are in {rows.path}"
            print(f"{kept}; to go on, run the same command with --resume", file=sys.stderr)
        raise
    except Exception as error:
        message = user_message(error)
        if message is None or rows is None or not rows.starts:
            raise
        kept = f"{len(rows.starts)} rows are kept"
        raise UserError(f"{message}; {kept}: to go on, run the same command with --resume") from None


def write_outputs(job: Job, images: list[str], rows: RowsFile) -> None:
    """Make the tables and the page from the rows, in the order of the images; then remove the rows."""
    args, classes = job.args, job.predictor.classes
    photos = [path for path in images if path not in rows.skipped]
    if args.json:
        write_json_table(args.json, classes, photos, rows.scores(photos))
        print(f"written to {args.json}")
    if args.csv:
        write_csv(job, images, rows)
        print(f"written to {args.csv}")
    if args.html:
        with new_page(args.html, page_settings(job)) as page:
            for row in rows.read(photos):
                assert row.on_page is not None
                page.add(row.on_page)
    rows.remove()


def add_to_csv(job: Job, row: Row, rows: RowsFile, is_first: bool) -> None:
    """Add a row to the table of --csv; the first one of this run begins the table with all rows so far."""
    if not job.args.csv:
        return
    if is_first:
        write_csv(job, list(rows.starts), rows)
    elif row.scores is not None:
        append_csv_row(job.args.csv, row.path, row.scores)


def write_csv(job: Job, images: list[str], rows: RowsFile) -> None:
    """Write the table of --csv with the rows that there are, in the order of the images."""
    photos = [path for path in images if path in rows.starts and path not in rows.skipped]
    write_csv_table(job.args.csv, job.predictor.classes, photos, rows.scores(photos), job.utf8_mark)


def page_settings(job: Job) -> PageSettings:
    """Return what the page of --html is made with."""
    return PageSettings(
        title=f"photographs labelled by {job.args.load_from}",
        classes=job.predictor.classes,
        thresholds=job.thresholds,
        top=job.args.top,
        has_true_labels=False,
        attention=job.predictor.has_attention,
    )
