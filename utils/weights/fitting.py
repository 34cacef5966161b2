"""Load a state dict into a network, after checking that it fits."""

from pathlib import Path

from torch import Tensor, nn

from pipeline.network import Network
from utils.runtime.errors import UserError
from utils.weights.contents import check_ordinary, load_checkpoint


def load_backbone(network: Network, model: str, file: Path) -> None:
    """Load weights for all but the classifier from a checkpoint; model: the network's name, for errors."""
    weights = load_checkpoint(file)["model"]
    load_adapted(network, weights, f"{file} for {model}", trunk_only=True)


def load_adapted(network: Network, weights: dict[str, Tensor], source: str, trunk_only: bool = False) -> None:
    """Load a state dict as load_weights does; its names may also be those of torchvision or timm."""
    try:
        adapted = network.adapt(weights)
    except (RuntimeError, ValueError) as error:  # adapt computes with shapes that are not checked yet
        raise UserError(f"{source} cannot be loaded ({error})") from error
    load_weights(network, adapted, source, trunk_only)


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str, trunk_only: bool = False) -> None:
    """Load a state dict (trunk_only: no `classifier`); UserError, naming `source`, if it does not fit."""
    wanted = model.state_dict()
    if trunk_only:
        wanted = {name: value for name, value in wanted.items() if not name.startswith("classifier.")}
        weights = {name: value for name, value in weights.items() if name in wanted}
    check_weights(weights, wanted, source)
    model.load_state_dict(without_batch_counters(weights), strict=False)


def check_weights(weights: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless a state dict, read from `source`, is finite and fits another, `wanted`."""
    given = without_batch_counters(weights)
    wanted = without_batch_counters(wanted)
    check_same_names(given, wanted, source)
    for name, value in wanted.items():
        check_tensor(name, given[name], value, source)
    broken = first_not_finite(given)
    if broken:
        raise UserError(
            f"{source}: {broken} holds NaN or infinite values: the training that made it diverged"
        )


def without_batch_counters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the batch counters: nothing uses them, old files lack them, and averaging makes fractions."""
    return {name: value for name, value in state_dict.items() if not name.endswith("num_batches_tracked")}


def check_same_names(given: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless two state dicts have the same names."""
    missing = [name for name in wanted if name not in given]
    if missing:
        raise UserError(f"{source} lacks {missing[0]} ({len(missing)} in all)")
    unknown = [name for name in given if name not in wanted]
    if unknown:
        raise UserError(f"{source} also holds {unknown[0]} ({len(unknown)} in all)")


def check_tensor(name: str, given: Tensor, wanted: Tensor, source: str) -> None:
    """Raise UserError unless a tensor of a file is ordinary, and has the shape and kind of the wanted one."""
    check_ordinary(given, name, source)
    if given.shape != wanted.shape or given.is_floating_point() != wanted.is_floating_point():
        found = f"{tuple(given.shape)} of {given.dtype}"
        expected = f"{tuple(wanted.shape)} of {wanted.dtype}"
        raise UserError(f"{source}: {name} has shape {found}, the model {expected}")


def first_not_finite(state_dict: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinite values, None if there is none."""
    for name in sorted(state_dict):
        tensor = state_dict[name]
        if tensor.sum().isfinite():  # far quicker than asking each value
            continue
        if not tensor.isfinite().all():  # the sum of finite values may overflow
            return name
    return None
