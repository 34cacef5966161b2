"""What makes a run resumable: a folder and options from the command line, and a saved state that fits."""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.metrics.report import TOTALS
from utils.runtime.arguments import Parser
from utils.runtime.errors import UserError
from utils.training.folder import holds_run
from utils.weights.contents import is_number
from utils.weights.fitting import check_same_names, check_weights, without_batch_counters

# Options of the command, not of the run.
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


def check_same_start(positions: list[dict[str, Any] | None]) -> None:
    """Raise UserError unless all processes resume from the same position, or all start a new run."""
    if len({repr(position) for position in positions}) > 1:
        raise UserError("the machines hold different files last.pth: copy the run's folder to all of them")


def check_resumable(saved: dict[str, Any], expected: dict[str, Any], source: str) -> None:
    """Raise UserError unless a saved run can continue as the run that was set up; nothing is changed.

    saved: the content of last.pth, which can be anything that `load_checkpoint` accepts.
    expected: what last.pth would hold if the run that was set up were saved now, by a single process.
    source: the name of the file.
    """
    check_data(saved, expected, source)
    check_networks(saved, expected, source)
    part = first_that_does_not_fit(saved, expected)
    if part is not None:
        raise unusable(source, f"{part} does not fit")


def unusable(source: str, reason: str) -> UserError:
    """Return the error for a file that does not hold a complete state of this run."""
    return UserError(f"{source} holds no run to resume ({reason}): start a new run")


def check_data(saved: dict[str, Any], expected: dict[str, Any], source: str) -> None:
    """Raise UserError if the classes or the label files differ from those of the saved run."""
    labels = expected["config"]["labels"]
    # Runs of early versions did not store the fingerprints of their label files.
    same_labels = saved["config"].get("labels", labels) == labels
    if saved["classes"] != expected["classes"] or not same_labels:
        data = f"--dataset {expected['config']['dataset']} has now: restore its files, or start a new run"
        raise UserError(f"{source} was trained on other classes or label files than {data}")


def check_networks(saved: dict[str, Any], expected: dict[str, Any], source: str) -> None:
    """Raise UserError unless the weights fit the network; with --ema these are the average and "raw"."""
    for part in ("model", "raw"):
        if part in expected:
            check_state_dict(part, saved.get(part), expected[part], source)


def check_state_dict(part: str, weights: Any, expected: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless a part of a saved run is a state dict that fits the network."""
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise unusable(source, f"{part} is missing")
    check_same_names(without_batch_counters(weights), without_batch_counters(expected), source)
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise unusable(source, f"{part} holds more than tensors")
    check_weights(weights, expected, source)


def first_that_does_not_fit(saved: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Return the name of the first part of a saved state that does not fit this run, or None."""
    for part in ("position", "scaler"):
        if not fits(saved.get(part), expected[part]):
            return part
    if not optimizer_fits(saved.get("optimizer"), expected["optimizer"]):
        return "optimizer"
    if not buffers_fit(saved.get("buffers"), expected["buffers"]):
        return "buffers"
    if not is_plain(saved.get("record")):
        return "record"
    best = saved.get("best", "missing")  # it is stored in the first epoch, too, as None
    no_best_yet = best is None and saved["position"]["epoch"] == 0
    if not no_best_yet and not best_fits(best, len(expected["classes"])):
        return "best"
    return None


def fits(saved: Any, expected: Any) -> bool:
    """Return whether a saved value has the keys, types and shapes of the expected one.

    Tensors must be finite, and numbers finite and not negative.
    """
    if type(saved) is not type(expected):
        return False
    if isinstance(expected, Tensor):
        return tensor_fits(saved, expected)
    if isinstance(expected, dict):
        return saved.keys() == expected.keys() and all(fits(saved[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(saved) == len(expected) and all(map(fits, saved, expected))
    if isinstance(expected, int | float):
        return 0 <= saved < math.inf
    return True


def tensor_fits(saved: Tensor, expected: Tensor) -> bool:
    """Return whether a saved tensor is finite, ordinary, and of the expected type and shape."""
    for attribute in ("layout", "shape", "dtype"):
        if getattr(saved, attribute) != getattr(expected, attribute):
            return False
    if saved.device.type != "cpu":
        return False
    # Only now: a malicious file may hold a tensor that is too large for isfinite.
    return bool(saved.isfinite().all())


def optimizer_fits(saved: Any, expected: dict[str, Any]) -> bool:
    """Return whether a saved optimizer has the expected momentum, and a learning rate for each group."""
    if not isinstance(saved, dict) or not fits(saved.get("state"), expected["state"]):
        return False
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or len(groups) != len(expected["param_groups"]):
        return False
    return all(isinstance(group, dict) and fits(group.get("lr"), 1.0) for group in groups)


def buffers_fit(saved: Any, expected: list[Tensor]) -> bool:
    """Return whether there is a list of the expected buffers for each of one or more processes."""
    return isinstance(saved, list) and len(saved) > 0 and all(fits(buffers, expected) for buffers in saved)


def is_plain(value: Any) -> bool:
    """Return whether a value, nested or not, can be written as JSON."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float)


def best_fits(best: Any, num_classes: int) -> bool:
    """Return whether the record of the best epoch has what a report shows."""
    if not isinstance(best, dict) or not isinstance(best.get("epoch"), int):
        return False
    names = ["mAP", *TOTALS, *(f"{name}_3" for name in TOTALS)]
    if not all(is_number(best.get(name)) for name in names) or "AP" not in best:
        return False
    # Lists have a number for each class; runs of older versions have fewer lists.
    lists = [best["AP"], *(value for value in best.values() if isinstance(value, list))]
    return is_plain(best) and all(is_list_of_numbers(values, num_classes) for values in lists)


def is_list_of_numbers(values: Any, length: int) -> bool:
    """Return whether a value is a list of `length` numbers."""
    return isinstance(values, list) and len(values) == length and all(map(is_number, values))


def share_among(saved: dict[str, Any], num_processes: int) -> dict[str, Any]:
    """Convert a saved state to another number of processes.

    Each process gets the mean of the saved buffers. The sums, which are means over processes, are scaled.
    """
    saved_by = len(saved["buffers"])
    if saved_by == num_processes:
        return saved
    means = []
    for copies in zip(*saved["buffers"]):
        mean = torch.stack(copies).double().mean(dim=0)
        means.append(mean.to(copies[0].dtype))
    position = dict(saved["position"])
    for name in ("loss_sum", "labels"):
        position[name] *= saved_by / num_processes
    return {**saved, "buffers": [means] * num_processes, "position": position}
