"""The options that several commands share."""

import difflib
from argparse import ArgumentTypeError, Namespace, _ArgumentGroup

from pipeline.csra import TEMPERATURES
from pipeline.models import MODELS
from pipeline.network import NORMALIZATION
from utils.data.datasets import DATASETS
from utils.runtime.cli import Parser, add_max_pixels, default_workers, given_path, number

# Options that a run prints even if they are the defaults, and options that other lines explain.
SHOWN = ("dataset", "batch_size", "num_heads", "normalize", "pretrained", "warmup_epoch", "lr")
NOT_SHOWN = ("head_lr_factor", "output_dir", "overwrite", "resume", "sweep")
# Help texts: on --dataset (FOREIGN: of commands that need only class names), and a default.
NAMES = f"{', '.join(DATASETS)}, or NAME for a folder data/NAME/"
FOREIGN = "data set of a file that main.py did not write; other files are checked for it [default: voc07]"
TRAINED = "as trained, else the data set's"
SMALLEST_SIDE = 33  # of images, in pixels


def model_name(text: str) -> str:
    """Check the name of a model; an argparse type."""
    if text not in MODELS:
        similar = ", ".join(difflib.get_close_matches(text, MODELS) or ["resnet101"])
        raise ArgumentTypeError(f"{text!r}: did you mean {similar}? main.py --list_models prints all")
    return text


def image_side(text: str) -> int:
    """Check a side of images in pixels; an argparse type."""
    side = int(number(int, 1)(text))
    if side < SMALLEST_SIDE:
        reason = (
            "up to 32 pixels leave one place in the feature map, and batch norm cannot train on one value"
        )
        raise ArgumentTypeError(f"{side} is too small: use {SMALLEST_SIDE} or more ({reason})")
    return side


def summary(parser: Parser, args: Namespace) -> str:
    """Format the options of a run that matter most or differ from their defaults, a line for each group."""
    rates = {"lr": f"{args.lr:g} (head {args.lr * args.head_lr_factor:g})"} if "lr" in args else {}
    values = {name: value for name, value in (vars(args) | rates).items() if name not in NOT_SHOWN}
    lines = []
    for group in parser._action_groups:
        words = []
        for option in group._group_actions:
            name, value = option.dest, values.get(option.dest)
            if value is not None and (name in SHOWN or value != option.default):
                words.append(name if value is True else f"{name} {value}")
        if words:
            lines.append(f"{group.title:13} {', '.join(words)}")
    return "\n".join(lines)


def add_data_options(parser: Parser, default: str, batch: str = "", foreign: bool = False) -> _ArgumentGroup:
    """Add the options on data; default is a word on defaults, batch the help of --batch_size ("": no loader).

    foreign: --dataset only describes files that main.py did not write.
    """
    group = parser.add_argument_group("data")
    kind = {"help": FOREIGN} if foreign else {"help": NAMES, "default": "voc07"}
    group.add_argument("--dataset", metavar="NAME", **kind)
    group.add_argument("--num_cls", type=number(int, 1), help="number of classes, which is only checked")
    group.add_argument("--img_size", type=image_side, help=f"side in pixels [default: {default}]")
    pixels = f"none: pixels in [0, 1] as they are; 0.5: (pixel - 0.5) / 0.5 [default: {default}]"
    group.add_argument("--normalize", choices=NORMALIZATION, help=pixels)
    if batch:
        group.add_argument("--batch_size", type=number(int, 1), default=16, help=batch)
        many, workers = number(int, 0, high=1000), "image loaders [default: one per CPU core, at most 8]"
        group.add_argument("--num_workers", type=many, default=default_workers(), help=workers)
        add_max_pixels(group)
    return group


def add_model_options(parser: Parser, model: str, heads: str, lam: str) -> _ArgumentGroup:
    """Add the options on the network, for all commands; `model`, `heads` and `lam` name their defaults."""
    heads_help = f"attention heads; 0: average pooling [default: {heads}]"
    group = parser.add_argument_group("model")
    group.add_argument("--model", type=model_name, metavar="NAME", help=f"backbone [default: {model}]")
    group.add_argument("--num_heads", type=int, choices=[0, *TEMPERATURES], help=heads_help)
    lam_help = f"weight lambda of the attention [default: {lam}]"
    group.add_argument("--lam", type=number(float, 0), help=lam_help)
    return group


def add_checkpoint_options(parser: Parser, tta: bool = True) -> None:
    """Add the options on a checkpoint and its network; tta: whether to add test-time augmentation."""
    lam = "as trained, else 0.1, without heads 0"
    group = add_model_options(parser, "the checkpoint's", "the checkpoint's", lam)
    group.add_argument("--load_from", type=given_path, required=True, metavar="FILE", help="the checkpoint")
    if tta:
        flip = "flip: the mean over image and mirror image"
        group.add_argument("--tta", choices=["off", "flip"], default="off", help=flip)


def add_run_options(parser: Parser) -> _ArgumentGroup:
    """Add the options on device and precision, for all commands that run a network on many images."""
    group, devices = parser.add_argument_group("run"), ["auto", "cpu", "cuda", "mps"]
    group.add_argument("--device", choices=devices, default="auto", help="auto: a GPU if there is one")
    amp = "mixed precision on CUDA GPUs, bf16 also on CPUs that compute it; off: float32, as in the paper"
    group.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off", help=amp)
    compiled = "use torch.compile, which takes minutes once; CPUs hardly gain (measured), GPUs may"
    group.add_argument("--compile", action="store_true", help=compiled)
    return group


def add_folder_options(group: _ArgumentGroup) -> None:
    """Add the options on the folder of a training run, and on what it saves and prints."""
    folder = "folder of the run [default: a new one in checkpoint/, named after the options]"
    group.add_argument("--output_dir", type=given_path, metavar="FOLDER", help=folder)
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the run in --output_dir")
    resume = "continue the run in FOLDER; without FOLDER, the one in --output_dir, or start it there"
    kind = {"type": given_path, "nargs": "?", "const": True, "metavar": "FOLDER"}
    existing.add_argument("--resume", help=resume, **kind)
    save = "also save every STEPS steps [default: after each epoch and at a signal]"
    group.add_argument("--save_every", type=number(int, 1), metavar="STEPS", help=save)
    log = "print the mean loss of the epoch so far every STEPS steps"
    group.add_argument("--print_freq", type=number(int, 1), default=100, metavar="STEPS", help=log)
