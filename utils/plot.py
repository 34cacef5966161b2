"""Draw charts of training runs, of average precision by class, and of precision against recall.

python utils/plot.py RUN [RUN ...] --out DIR [--format pdf] [--names NAME ...]
"""

from __future__ import annotations  # matplotlib is optional, so its types are only names

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.charts.class_bars import draw_average_precisions, read_results
from utils.charts.figures import is_chart, use_fonts_for, write_chart
from utils.charts.precision_recall_curves import draw_precision_recall
from utils.charts.training_curves import draw_curves, read_run
from utils.metrics.score_files import read_scores
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError
from utils.runtime.output_checks import check_folder, check_replaceable
from utils.runtime.script import run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Chart(NamedTuple):
    """A chart to draw, and the names that it shows."""

    names: list[str]
    draw: Callable[[], Figure]


def main() -> None:
    args = parse_args()
    charts = read_sources(args.sources, args.names or [])
    use_fonts_for(list(itertools.chain.from_iterable(chart.names for chart in charts.values())))
    figures = {args.out / f"{name}.{args.format}": chart.draw() for name, chart in charts.items()}
    for path in figures:  # nothing is written if a source or a path has an error
        check_replaceable(path, "--out:", is_chart, "utils/plot.py")
    for path, figure in figures.items():
        write_chart(path, figure)
        print(f"written to {path}")


def parse_args() -> argparse.Namespace:
    parser = Parser("Draw charts of training runs and results.")
    kinds = "folders of runs, for one chart; files of val.py --out (.json) or --save_scores (.npz)"
    parser.add_argument("sources", type=given_path, nargs="+", metavar="RUN", help=kinds)
    parser.add_argument("--out", type=given_path, required=True, metavar="DIR", help="folder for the charts")
    parser.add_argument("--format", choices=["png", "pdf", "svg"], default="png", help="of the charts")
    names_help = "a label for each RUN, in their order [default: its file name]"
    parser.add_argument("--names", nargs="+", metavar="NAME", help=names_help)
    args = parser.parse_args()
    check_folder(args.out, "--out")
    if args.names and not len(set(args.names)) == len(args.names) == len(args.sources):
        raise UserError(f"--names: give each of the {len(args.sources)} sources a name of its own")
    return args


def read_sources(sources: list[Path], labels: list[str]) -> dict[str, Chart]:
    """Return one chart for all runs and one for each file, by file name without its ending.

    labels: one for each source, or none.
    """
    label_of = dict(zip(sources, labels))
    folders = [source for source in sources if source.is_dir()]
    files = [source for source in sources if not source.is_dir()]
    charts = {}
    if folders:
        runs = {label_of.get(folder, name): read_run(folder) for name, folder in short_names(folders)}
        charts["curves"] = Chart([*runs], functools.partial(draw_curves, runs))
    for name, file in short_names(files):
        stem = name.replace("/", "_").removesuffix(file.suffix)
        title = label_of.get(file, stem)
        if file.suffix == ".json":
            results = read_results(file)
            draw = functools.partial(draw_average_precisions, title, results)
            charts[f"ap_{stem}"] = Chart([title, *results], draw)
        elif file.suffix == ".npz":
            saved = read_scores(file)
            draw = functools.partial(draw_precision_recall, title, saved)
            charts[f"pr_{stem}"] = Chart([title, *saved.names], draw)
        else:
            raise UserError(f"{file} is not the folder of a run, a .json of val.py --out or a .npz of scores")
    return charts


def short_names(sources: list[Path]) -> list[tuple[str, Path]]:
    """Name each source by the last part of its path, or by its whole path if those are not distinct."""
    names = [source.resolve().name for source in sources]
    if len(set(names)) < len(names):
        names = [str(source) for source in sources]
    return list(zip(names, sources))


if __name__ == "__main__":
    run_script(main)
