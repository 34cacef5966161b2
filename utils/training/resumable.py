"""Whether a saved state fits the run that is to continue it; nothing is loaded or changed here."""

import math
from typing import Any

from torch import Tensor

from utils.metrics.report import TOTALS
from utils.runtime.errors import UserError
from utils.weights.contents import is_number
from utils.weights.fitting import check_same_names, check_weights, without_batch_counters


def check_same_start(positions: list[dict[str, Any] | None]) -> None:
    """Raise UserError unless all processes resume from the same position, or all start a new run."""
    if len({repr(position) for position in positions}) > 1:
        raise UserError("the machines hold different files last.pth: copy the run's folder to all of them")


def check_resumable(saved: dict[str, Any], expected: dict[str, Any], source: str) -> None:
    """Raise UserError unless a saved run can continue as the run that was set up; nothing is changed.

    saved: the content of last.pth, which can be anything that `load_checkpoint` accepts.
    expected: what this process would add to last.pth if the run that was set up were saved now.
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
    if not buffers_fit(saved.get("buffers"), expected["own_buffers"]):
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
    """Return whether a saved optimizer has the expected state, and a learning rate for each group."""
    if not isinstance(saved, dict) or not fits(saved.get("state"), expected["state"]):
        return False
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or len(groups) != len(expected["param_groups"]):
        return False
    return all(isinstance(group, dict) and fits(group.get("lr"), 1.0) for group in groups)


def buffers_fit(saved: Any, expected: list[Tensor]) -> bool:
    """Return whether there is a list of the expected buffers for each of one or more processes."""
    return isinstance(saved, list) and len(saved) > 0 and all(fits(own, expected) for own in saved)


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
