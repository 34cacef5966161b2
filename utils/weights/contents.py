"""What a checkpoint holds: a state dict, and what main.py wrote beside it."""

from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from pipeline.network import MAX_SIDE, MIN_SIDE, rename
from utils.data.classes import check_names
from utils.runtime.errors import UserError
from utils.weights.reading import read_file

# {start of a name in files of DataParallel or mmpretrain: its start here}.
PREFIXES = {r"module\.": "", r"backbone\.": "", r"head\.csra_heads\.": "classifier.multi_head."}
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTEGERS = {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool}
OWN_KEYS = {"config", "classes", "record"}  # every file that main.py wrote has them, and no other file


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: a state dict, bare or under "model" or "state_dict". Names may start as in PREFIXES.

    Nothing in the file is run. Returns a dict of "model", the state dict, whose tensors are ordinary ones,
    "config", the options of training (empty unless main.py wrote the file), and whatever else main.py wrote,
    which is not checked here.
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
        check_ordinary(value, name, str(path))

    checkpoint: dict[str, Any] = {"config": {}}
    if content.keys() >= OWN_KEYS:
        check_own(content, path)
        checkpoint = {**content, "classes": check_names(content["classes"], path)}
    checkpoint["model"] = rename(state_dict, PREFIXES)
    return checkpoint


def find_state_dict(content: dict[Any, Any]) -> dict[Any, Any]:
    """Return the dict under "model" or "state_dict" in the content of a file, or the content itself."""
    for key in ("model", "state_dict"):
        inner = content.get(key)
        if isinstance(inner, dict):
            return inner
    return content


def check_ordinary(tensor: Tensor, name: str, source: str) -> None:
    """Raise UserError unless a tensor is dense, of an ordinary type, and has its numbers in memory."""
    is_dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
    if not is_dense or tensor.dtype not in FLOATS | INTEGERS:
        kind = f"{tensor.dtype}, layout {tensor.layout}, on {tensor.device}"
        raise UserError(f"{source} cannot be loaded: {name} is an unusual tensor ({kind})")


def check_own(content: dict[str, Any], path: Path) -> None:
    """Raise UserError unless the options beside the weights are of the right types."""
    config = content["config"]
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: its config is a {type(config).__name__}, not a dict")
    for option, value in config.items():
        if not isinstance(value, str | int | float | None):
            raise UserError(f"{path} is damaged: {option} in its config is a {type(value).__name__}")
    lam = config.get("lam")
    if not is_number(lam) or not 0 <= lam < 2**63:
        raise UserError(f"{path} is damaged: lam in its config is {lam!r:.50}, not a number of at least 0")
    side = config.get("img_size")
    if not isinstance(side, int) or not MIN_SIDE <= side < MAX_SIDE:
        fault = f"img_size in its config is {side!r:.50}, not a number from {MIN_SIDE}"
        raise UserError(f"{path} is damaged: {fault}")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is an int or a float; NaN is one, a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
