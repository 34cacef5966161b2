"""What a checkpoint holds: a state dict, and what main.py wrote beside it."""

from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.network import rename
from utils.data.classes import check_names
from utils.runtime.cli import UserError
from utils.weights.reading import read_file

# How names start in files of DataParallel and of mmpretrain, and here.
PREFIXES = {r"module\.": "", r"backbone\.": "", r"head\.csra_heads\.": "classifier.multi_head."}
OWN_KEYS = {"config", "classes", "record"}  # in each file that main.py wrote, and in no other


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: a state dict, bare or under "model" or "state_dict". Names may start as in PREFIXES.

    Returns a dict of "model", the state dict, "config", the options of training (empty unless main.py wrote
    the file), and whatever else main.py wrote. Nothing in the file is run.
    Raises UserError if the file is missing, damaged or not a checkpoint.
    """
    path = Path(path)
    content = read_file(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    state_dict = find_state_dict(content)
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds no state dict, which is a dict of names and tensors")

    checkpoint: dict[str, Any] = {"config": {}}
    if content.keys() >= OWN_KEYS:
        check_own(content, path)
        checkpoint = content
    checkpoint["model"] = rename(state_dict, PREFIXES)
    return checkpoint


def find_state_dict(content: dict[Any, Any]) -> dict[Any, Any]:
    """Return the dict under "model" or "state_dict" in what a file holds, or all of it if there is none."""
    for key in ("model", "state_dict"):
        inner = content.get(key)
        if isinstance(inner, dict):
            return inner
    return content


def check_own(content: dict[str, Any], path: Path) -> None:
    """Raise UserError unless the options and class names beside the weights are of the right types."""
    config = content["config"]
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: its config is a {type(config).__name__}, not a dict")
    for option, value in config.items():
        if not isinstance(value, str | int | float | None):
            raise UserError(f"{path} is damaged: {option} in its config is a {type(value).__name__}")
    check_number(config, "lam", 0, path)
    check_number(config, "img_size", 33, path)
    if not isinstance(config["img_size"], int):
        raise UserError(f"{path} is damaged: img_size in its config is no whole number")
    check_names(content["classes"], path)


def check_number(config: dict[str, Any], option: str, low: float, path: Path) -> None:
    """Raise UserError unless an option in a config is a number of at least `low`, and not infinite."""
    value = config.get(option)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < 2**63:
        raise UserError(
            f"{path} is damaged: {option} in its config is {value!r:.50}, not a number from {low}"
        )
