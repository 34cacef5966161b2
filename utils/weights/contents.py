"""What a checkpoint holds: a state dict, and what main.py wrote beside it."""

from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.network import rename
from utils.data.classes import check_names
from utils.runtime.cli import UserError, number, reporting_errors
from utils.weights.reading import read_file

# How names start in files of DataParallel and of mmpretrain, and here.
PREFIXES = {r"module\.": "", r"backbone\.": "", r"head\.csra_heads\.": "classifier.multi_head."}


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: a state dict, bare or under "model" or "state_dict". Names may start as in PREFIXES.

    Returns a dict of "model", the state dict, "config", the options of training (empty unless main.py wrote
    the file), and whatever else main.py wrote. weights_only: nothing in the file is run.
    Raises UserError if the file is missing, damaged or not a checkpoint.
    """
    path = Path(path)
    checkpoint = read_file(path)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    nested = (checkpoint.get(key) for key in ("model", "state_dict"))
    state_dict = next((value for value in nested if isinstance(value, dict)), checkpoint)
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state_dict.items()):
        raise UserError(f"{path} holds no state dict, which is a dict of names and tensors")
    is_own = {"config", "classes", "record"} <= checkpoint.keys()
    if is_own:
        check_own(checkpoint, path)
    return {**(checkpoint if is_own else {"config": {}}), "model": rename(state_dict, PREFIXES)}


def check_own(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UserError unless the options and class names beside the weights are of the right types."""
    config, option_type = checkpoint["config"], str | int | float | None
    with reporting_errors(f"{path} is damaged"):
        if not all(isinstance(value, option_type) for value in config.values()):
            raise TypeError("its config holds more than words and numbers")
        for option, parse in (("lam", number(float, 0)), ("img_size", number(int, 33))):
            with reporting_errors(f"{path} is damaged: {option} in its config"):
                config[option] = parse(str(config[option]))
        check_names(checkpoint["classes"], path)
