"""The options that several commands share."""

import argparse
import difflib

from pipeline.csra import TEMPERATURES
from pipeline.models import MODELS
from pipeline.network import NORMALIZATION
from utils.runtime.cli import Parser, add_max_pixels, default_workers, given_path, number


def model_name(text: str) -> str:
    """Check the name of a model; an argparse type."""
    if text not in MODELS:
        similar = ", ".join(difflib.get_close_matches(text, MODELS) or ["resnet101"])
        hint = f"did you mean {similar}? main.py --list_models prints all"
        raise argparse.ArgumentTypeError(f"{text!r} is not a backbone: {hint}")
    return text


def add_data_options(parser: Parser, default: str, batch: str = "") -> argparse._ArgumentGroup:
    """Add the options on data, for all commands; `default` names the default of open ones.

    batch: what --batch_size counts, for commands that load images.
    """
    group = parser.add_argument_group("data")
    names = "voc07, voc12, coco, coco2017, wider, shapes, or NAME for a folder data/NAME/"
    group.add_argument("--dataset", default="voc07", metavar="NAME", help=names)
    classes = f"number of classes, checked [default: {default}]"
    group.add_argument("--num_cls", type=number(int, 1), help=classes)
    # With 32 pixels the feature map is 1 × 1, and batch-norm cannot train on one image.
    group.add_argument("--img_size", type=number(int, 33), help=f"side in pixels [default: {default}]")
    if batch:
        group.add_argument("--batch_size", type=number(int, 1), default=16, help=batch)
        workers, many = default_workers(), number(int, 0, high=1000)
        workers_help = "processes that load images [default: one per CPU core, at most 8]"
        group.add_argument("--num_workers", type=many, default=workers, help=workers_help)
        add_max_pixels(group)
    return group


def add_model_options(parser: Parser, model: str, heads: str) -> argparse._ArgumentGroup:
    """Add the options on the network, for all commands; `model` and `heads` name their defaults."""
    heads_help = f"attention heads; 0: average pooling [default: {heads}]"
    group = parser.add_argument_group("model")
    group.add_argument("--model", type=model_name, metavar="NAME", help=f"backbone [default: {model}]")
    group.add_argument("--num_heads", type=int, choices=[0, *TEMPERATURES], help=heads_help)
    pixels = f"pixels in [0, 1] as they are (none, the paper's), or (pixel - 0.5) / 0.5 [default: {model}]"
    group.add_argument("--normalize", choices=NORMALIZATION, help=pixels)
    return group


def add_checkpoint_options(parser: Parser, tta: bool = True) -> None:
    """Add the options on the network and its checkpoint, for all commands that load one.

    tta: whether to add test-time augmentation.
    """
    group = add_model_options(parser, "the checkpoint's", "the checkpoint's")
    group.add_argument("--load_from", type=given_path, required=True, metavar="FILE", help="the checkpoint")
    lam = "weight lambda of the attention [default: as trained, else 0.1, without heads 0]"
    group.add_argument("--lam", type=number(float, 0), help=lam)
    if tta:
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
