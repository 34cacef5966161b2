"""What a checkpoint holds: a state dict, and what main.py wrote beside it."""

import itertools
import re
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from pipeline.network import MAX_SIDE, MIN_SIDE, rename
from utils.data.classes import check_names
from utils.runtime.errors import UserError
from utils.weights.reading import read_file

# The keys under which trainers store a state dict, possibly nested; moving averages come last.
WEIGHT_KEYS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "ema",
    "model_ema",
    "ema_model",
    "state_dict_ema",
    "ema_state_dict",
    "shadow",
)
MAX_DEPTH = 4  # of nested dicts: a malicious file may hold a dict that holds itself
# What DataParallel, torch.compile, Lightning, mmpretrain and others put in front of a network's names.
AVERAGES = {"ema", "ema_model", "model_ema", "averaged_model"}
WRAPPERS = {"module", "_orig_mod", "model", "net", "network", "backbone", *AVERAGES}
OTHER_NAMES = {r"head\.csra_heads\.": "classifier.multi_head."}  # of mmpretrain
# What is stored beside the network: the state of a loss, and what counts the steps of an average.
NOT_NETWORK = re.compile(r"(criterion|loss|loss_fn|metrics?)\.|(n_averaged|initted|step)$")
NETWORK_PARTS = {"trunk", "features"}  # these are no wrappers, even if all names start with one
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTEGERS = {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool}
OWN_KEYS = {"config", "classes", "record"}  # every file that main.py wrote has them, and no other file


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this project or of another trainer; see `find_state_dict` and `unwrap`.

    Nothing in the file is run. Returns a dict of "model", the state dict, whose tensors are ordinary ones,
    "config", the options of training (empty unless main.py wrote the file), and whatever else main.py wrote,
    which is not checked here.
    Raises UserError if the file is missing, damaged or not a checkpoint.
    """
    path = Path(path)
    content = read_file(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    is_own = content.keys() >= OWN_KEYS
    state_dict = content.get("model") if is_own else find_state_dict(content)
    if not is_state_dict(state_dict):
        raise UserError(f"{path} holds no state dict, which is a dict of names and tensors")
    for name, value in state_dict.items():
        check_ordinary(value, name, str(path))

    checkpoint: dict[str, Any] = {"config": {}}
    if is_own:
        check_own(content, path)
        checkpoint = {**content, "classes": check_names(content["classes"], path)}
    checkpoint["model"] = rename(unwrap(state_dict), OTHER_NAMES)
    return checkpoint


def find_state_dict(content: object, max_depth: int = MAX_DEPTH) -> dict[str, Tensor] | None:
    """Return the state dict in the content of a file, None if there is none.

    It is the content itself, or it is under WEIGHT_KEYS, at most max_depth of them, or else it is the largest
    one under other keys.
    """
    if is_state_dict(content):
        return content
    if not isinstance(content, dict) or max_depth == 0:
        return None
    for key in WEIGHT_KEYS:
        found = find_state_dict(content.get(key), max_depth - 1)
        if found is not None:
            return found
    others = [value for value in content.values() if is_state_dict(value)]
    return max(others, key=len, default=None)


def is_state_dict(value: object) -> TypeGuard[dict[str, Tensor]]:
    """Return whether a value is a dict of names and tensors, and not empty."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(name, str) and isinstance(inner, Tensor) for name, inner in value.items())


def unwrap(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's tensors under its own names, without WRAPPERS and without a common first word.

    If there are a network and its moving average, the network is returned.
    """
    while True:
        state_dict = without_wrappers(state_dict)
        first_words = {name.partition(".")[0] for name in state_dict}
        all_have_parts = all("." in name for name in state_dict)
        if len(first_words) != 1 or first_words <= NETWORK_PARTS or not all_have_parts:
            return state_dict
        state_dict = {name.partition(".")[2]: tensor for name, tensor in state_dict.items()}


def without_wrappers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's tensors under their names without WRAPPERS in front."""
    averages: dict[str, Tensor] = {}
    trained: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        *words, last = name.split(".")
        wrappers = list(itertools.takewhile(WRAPPERS.__contains__, words))
        own_name = ".".join([*words[len(wrappers) :], last])
        if not NOT_NETWORK.match(own_name):
            group = averages if AVERAGES.intersection(wrappers) else trained
            group[own_name] = tensor
    return {**averages, **trained}


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
