"""The checkpoint that --load_from or --backbone_weights names, and the options that belong to it."""

from argparse import Namespace
from pathlib import Path

from utils.checkpoint import read_predictor
from utils.data.classes import class_names
from utils.data.datasets import dataset_spec
from utils.inference.predictor import Predictor
from utils.runtime.distributed import first_process_first
from utils.runtime.errors import UserError
from utils.weights.downloads import fetch
from utils.weights.imagenet import file_in_hub_cache, weights_name, weights_url
from utils.weights.sources import check_is_published, dataset_and_lam, find_published, local_file


def complete_options(args: Namespace) -> Namespace:
    """Return the options, with the data set and λ of a published checkpoint where none are given.

    Raises UserError, before anything is downloaded, if other options contradict the published checkpoint.
    """
    published = find_published(args.load_from)
    if published is None:
        return args
    dataset, lam = dataset_and_lam(published, args.dataset, args.lam)
    num_cls = len(class_names(dataset_spec(dataset).folder))
    held: dict[str, object] = {
        "model": published.model,
        "num_heads": published.num_heads,
        "num_cls": num_cls,
    }
    refuse_contradictions(args, held)
    return Namespace(**{**vars(args), "dataset": dataset, "lam": lam})


def load_model_for(args: Namespace) -> Predictor:
    """Return the Predictor of --load_from, on the CPU, downloaded if need be; all processes call this.

    Raises UserError if other options contradict the file.
    """
    file = first_process_first(lambda: local_file(args.load_from, report=print))
    predictor = read_predictor(file, args.dataset, args.img_size, args.lam, args.normalize, args.model)
    held = predictor.options
    published = find_published(args.load_from)
    if published:
        check_is_published(published, held["model"], held["num_heads"])
    refuse_contradictions(args, {name: held[name] for name in ("model", "num_heads", "num_cls")})
    return predictor


def refuse_contradictions(args: Namespace, held: dict[str, object]) -> None:
    """Raise UserError if an option is given that contradicts what the checkpoint holds."""
    for name, value in held.items():
        given = getattr(args, name)
        if given not in (None, value):
            raise UserError(f"--{name} {given}: {args.load_from} has {name} {value}; leave the option out")


def backbone_file(args: Namespace) -> Path:
    """Return the file of --backbone_weights, else of the model's ImageNet weights; all processes call this.

    A file that is not there yet is downloaded.
    """
    if args.cutmix:
        published = find_published(args.cutmix)
        if published and published.model != args.model:
            raise UserError(f"{args.cutmix} is for --model {published.model}, not {args.model}")
        return first_process_first(lambda: local_file(args.cutmix, report=print))
    try:
        return first_process_first(lambda: pretrained_file(args.model))
    except UserError as error:
        raise UserError(f"{error}, or use --pretrained none") from error


def pretrained_file(model: str) -> Path:
    """Return the local file of a model's published weights, downloaded if it is not there yet."""
    return file_in_hub_cache(model) or fetch(weights_url(model), weights_name(model), report=print)


def options_in_effect(args: Namespace, predictor: Predictor) -> Namespace:
    """Return the options, with those that describe the network replaced by its own values."""
    held = {**predictor.options, "normalize": predictor.network.normalization}
    return Namespace(**{**vars(args), **held})
