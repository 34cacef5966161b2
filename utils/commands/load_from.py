"""The checkpoint that a command's --load_from names, checked against the other options."""

from argparse import Namespace

from utils.checkpoint import read_predictor
from utils.inference.predictor import Predictor
from utils.runtime.errors import UserError


def load_model_for(args: Namespace) -> Predictor:
    """Return the Predictor of --load_from, on the CPU; UserError if other options contradict the file."""
    predictor = read_predictor(
        args.load_from, args.dataset, args.img_size, args.lam, args.normalize, args.model
    )
    held = {name: predictor.options[name] for name in ("model", "num_heads", "num_cls")}
    for name, value in held.items():
        given = getattr(args, name)
        if given not in (None, value):
            raise UserError(f"--{name} {given}: {args.load_from} has {name} {value}; leave the option out")
    return predictor


def options_in_effect(args: Namespace, predictor: Predictor) -> Namespace:
    """Return the options, with those that describe the network replaced by its own values."""
    held = {**predictor.options, "normalize": predictor.network.normalization}
    return Namespace(**{**vars(args), **held})
