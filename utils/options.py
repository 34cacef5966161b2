"""The options that several commands share."""

import argparse
import difflib

from pipeline.csra import TEMPERATURES
from pipeline.models import MODELS
from utils.runtime.cli import Parser, add_max_pixels, default_workers, given_path, number


def model_name(text: str) -> str:
    """Check the name of a model; an argparse type."""
    if text not in MODELS:
        similar = ", ".join(difflib.get_close_matches(text, MODELS) or ["resnet101"])
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a backbone: did you mean {similar}? main.py --list_models prints all"
        )
    return text


def add_data_options(parser: Parser, default: str, batch: str) -> argparse._ArgumentGroup:
    """Add the options on data, for main.py and val.py; `default` names the default of open ones."""
    names = "voc07, voc12, coco, coco2017, wider, shapes, or NAME for a folder data/NAME/"
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default="voc07", metavar="NAME", help=names)
    group.add_argument(
        "--num_cls", type=number(int, 1), help=f"number of classes, checked [default: {default}]"
    )
    add_image_options(group, default, batch)
    return group


def add_image_options(group: argparse._ArgumentGroup, default: str, batch: str) -> None:
    """Add the options on images, for all commands that load them; `batch` says what --batch_size counts."""
    # With 32 pixels the feature map is 1 × 1, and batch-norm cannot train on one image.
    group.add_argument("--img_size", type=number(int, 33), help=f"side in pixels [default: {default}]")
    group.add_argument("--batch_size", type=number(int, 1), default=16, help=batch)
    workers = "processes that load images [default: one per CPU core, at most 8]"
    group.add_argument(
        "--num_workers", type=number(int, 0, high=1000), default=default_workers(), help=workers
    )
    add_max_pixels(group)


def add_model_options(parser: Parser, model: str, heads: str) -> argparse._ArgumentGroup:
    """Add the options on the network, for main.py and val.py; `model` and `heads` name their defaults."""
    heads_help = f"attention heads; 0: average pooling [default: {heads}]"
    group = parser.add_argument_group("model")
    group.add_argument("--model", type=model_name, metavar="NAME", help=f"backbone [default: {model}]")
    group.add_argument("--num_heads", type=int, choices=[0, *TEMPERATURES], help=heads_help)
    return group


def add_checkpoint_options(group: argparse._ActionsContainer) -> None:
    """Add the options on the checkpoint, for all commands that load one."""
    group.add_argument("--load_from", type=given_path, required=True, metavar="FILE", help="the checkpoint")
    lam = "weight lambda of the attention [default: as trained, else 0.1, without heads 0]"
    group.add_argument("--lam", type=number(float, 0), help=lam)


def add_tta(group: argparse._ActionsContainer) -> None:
    """Add test-time augmentation, for val.py and demo.py."""
    flip = "flip: the mean over image and mirror image"
    group.add_argument("--tta", choices=["off", "flip"], default="off", help=flip)


def add_run_options(parser: Parser) -> argparse._ArgumentGroup:
    """Add the options on device and precision, for all commands that run a network on many images."""
    group, devices = parser.add_argument_group("run"), ["auto", "cpu", "cuda", "mps"]
    group.add_argument("--device", choices=devices, default="auto", help="auto: a GPU if there is one")
    amp = "mixed precision on CUDA GPUs, bf16 also on CPUs that compute it; off: float32, as in the paper"
    group.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off", help=amp)
    compiled = "use torch.compile: minutes once, then faster on GPUs; CPUs hardly gain"
    group.add_argument("--compile", action="store_true", help=compiled)
    return group
