"""The command line of a run that may be resumed: which folder it names, and which options hold."""

import argparse
from pathlib import Path
from typing import Any

from utils.runtime.arguments import Parser
from utils.runtime.errors import UserError
from utils.training.folder import holds_run

# Options of the command, not of the run. num_cls always follows from the data set, and main.py checks it.
COMMAND_OPTIONS = {"output_dir", "overwrite", "resume", "list_models", "num_cls"}
# Options that may differ when a run is resumed.
FREE_OPTIONS = {"save_every", "print_freq", "num_workers", "max_pixels", "device", "total_epoch"}


def named_folder(given: argparse.Namespace) -> Path | None:
    """Return the folder that --resume or --output_dir names, or None; with --resume it may name last.pth.

    Raises UserError if an option needs a folder and has none, if the two options name two folders, or if
    --resume names one without a run.
    """
    resumed = given.resume if isinstance(given.resume, Path) else None
    path = resumed or given.output_dir
    if path is None:
        if given.resume or given.overwrite:
            raise UserError("--resume and --overwrite need the folder of the run: add --output_dir FOLDER")
        return None
    if not given.resume:
        return path
    folder = path.parent if path.name == "last.pth" else path
    if folder.is_file():
        raise UserError(f"--resume {path} is not the folder of a run: write --resume {folder.parent}")
    if resumed and given.output_dir not in (None, path, folder):
        raise UserError(f"--resume {path} and --output_dir {given.output_dir} name two runs: leave one out")
    if resumed and not holds_run(folder):
        raise UserError(f"{folder} holds no last.pth to resume; to start: --output_dir {folder} --resume")
    return folder


def resumed_options(parser: Parser, saved: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line with the options of a saved run as the defaults.

    Raises UserError if the command line changes an option that matters, or if the file holds no run.
    """
    if "position" not in saved:
        raise UserError("it holds no run to resume, as only last.pth does")
    saved_values = vars(saved_options(parser, saved["config"]))
    parser.set_defaults(**saved_values)
    args = parser.parse_args()
    changed = []
    for name, value in saved_values.items():
        now = getattr(args, name)
        if name not in FREE_OPTIONS and now != value:
            changed.append(f"--{name} {now} (it has {value})")
    if changed:
        raise UserError(f"leave out {', '.join(changed)}")
    return args


def saved_options(parser: Parser, config: dict[str, Any]) -> argparse.Namespace:
    """Return the options of a saved run, checked as if the command line gave them, without COMMAND_OPTIONS.

    Options added since the run was saved take their defaults.
    """
    words = []
    names = vars(parser.parse_args([])).keys() - COMMAND_OPTIONS
    for name in sorted(names):
        value = config.get(name)
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words.append(f"--{name}={value}")
    args = parser.parse_args(words)
    return argparse.Namespace(**{name: getattr(args, name) for name in names})
