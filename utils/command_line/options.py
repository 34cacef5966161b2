"""The options that several commands share."""

import argparse

from pipeline.csra import TEMPERATURES
from pipeline.models import check_model
from pipeline.network import MAX_SIDE, MIN_SIDE, NORMALIZATION
from utils.data.datasets import DATASETS, DEFAULT_DATASET
from utils.runtime.arguments import add_max_pixels, expand_home, given_path, number
from utils.runtime.limits import COMPILE_FROM
from utils.runtime.workers import default_workers
from utils.weights.published import format_published

OptionGroup = argparse._ArgumentGroup  # argparse has no public name for what add_argument_group returns


def model_name(text: str) -> str:
    """Check the name of a model; an argparse type."""
    try:
        check_model(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def image_side(text: str) -> int:
    """Check a side of images in pixels; an argparse type."""
    side = int(number(int, 1, high=MAX_SIDE)(text))
    if side < MIN_SIDE:
        reason = "up to 32 pixels leave one place in the feature map; batch norm cannot train on one value"
        raise argparse.ArgumentTypeError(f"{side} is too small: use {MIN_SIDE} or more ({reason})")
    return side


def add_dataset(group: OptionGroup, from_checkpoint: bool) -> None:
    """Add --dataset for a command that reads the images and labels of a data set.

    from_checkpoint: the default comes from a published checkpoint.
    """
    dataset_help = f"{', '.join(DATASETS)}, or NAME for a folder data/NAME/"
    default = DEFAULT_DATASET
    if from_checkpoint:
        dataset_help += f" [default: that of a published checkpoint, else {default}]"
    group.add_argument(
        "--dataset", metavar="NAME", default=None if from_checkpoint else default, help=dataset_help
    )


def add_dataset_of_checkpoint(group: OptionGroup) -> None:
    """Add --dataset for a command that needs only the classes and the defaults of a checkpoint's data set."""
    foreign = "data set of a file that main.py did not write; other files are checked for it"
    dataset_help = f"{foreign} [default: that of a published checkpoint, else {DEFAULT_DATASET}]"
    group.add_argument("--dataset", metavar="NAME", help=dataset_help)


def add_image_options(group: OptionGroup, from_checkpoint: bool) -> None:
    """Add the options on the images; from_checkpoint: the defaults come from a checkpoint."""
    default = "as trained, else the data set's" if from_checkpoint else "the data set's, or the timm model's"
    group.add_argument("--num_cls", type=number(int, 1), help="number of classes, which is only checked")
    group.add_argument("--img_size", type=image_side, help=f"side in pixels [default: {default}]")
    normalize_help = (
        "none: pixels in [0, 1] as they are; 0.5: (pixel - 0.5) / 0.5; imagenet, clip, …: with the mean and "
        f"deviation of ImageNet, which torchvision's weights expect, of CLIP, … [default: {default}]"
    )
    group.add_argument("--normalize", choices=NORMALIZATION, help=normalize_help)


def add_loader_options(group: OptionGroup, batch_help: str) -> None:
    """Add the options on the loading of images; batch_help: the help of --batch_size."""
    group.add_argument("--batch_size", type=number(int, 1), default=16, help=batch_help)
    workers_help = "image loaders [default: one per CPU core, at most 8]"
    workers = number(int, 0, high=1000)
    group.add_argument("--num_workers", type=workers, default=default_workers(), help=workers_help)
    add_max_pixels(group)


def add_model_options(group: OptionGroup, from_checkpoint: bool) -> None:
    """Add the options on the network; from_checkpoint: the defaults come from a checkpoint."""
    if from_checkpoint:
        model = heads = "the checkpoint's"
        lam = "as trained or published, else 0.1, without heads 0"
    else:
        model = "the data set's"
        heads = "1"
        lam = "0.1, without heads 0"
    model_help = f"backbone; timm:NAME for one of timm [default: {model}]"
    group.add_argument("--model", type=model_name, metavar="NAME", help=model_help)
    heads_help = f"attention heads; 0: average pooling [default: {heads}]"
    group.add_argument("--num_heads", type=int, choices=[0, *TEMPERATURES], help=heads_help)
    lam_help = f"weight lambda of the attention [default: {lam}]"
    group.add_argument("--lam", type=number(float, 0), help=lam_help)


def add_checkpoint(group: OptionGroup) -> None:
    """Add the option that names the checkpoint."""
    source_help = (
        "the checkpoint: a file, an https:// address, or a name that val.py --list_checkpoints prints"
    )
    # Not a Path, which would turn the // of an address into /.
    group.add_argument(
        "--load_from", type=expand_home, required=True, metavar="FILE|URL|NAME", help=source_help
    )


class ListCheckpoints(argparse.Action):
    """Prints the table of published checkpoints and exits, whatever other options are given or missing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(format_published())
        parser.exit()


def add_list_checkpoints(group: OptionGroup) -> None:
    """Add the option that prints the published checkpoints."""
    list_help = "print the names of the published checkpoints and exit"
    group.add_argument(
        "--list_checkpoints", action=ListCheckpoints, nargs=0, default=argparse.SUPPRESS, help=list_help
    )


def add_tta(group: OptionGroup) -> None:
    """Add the option on test-time augmentation."""
    tta_help = "flip: the mean over image and mirror image"
    group.add_argument("--tta", choices=["off", "flip"], default="off", help=tta_help)


def add_run_options(group: OptionGroup, chooses_compile: bool) -> None:
    """Add the options on device and precision, for all commands that run a network on many images.

    chooses_compile: the command decides whether it compiles the network, if the user does not.
    """
    devices = ["auto", "cpu", "cuda", "mps"]
    group.add_argument("--device", choices=devices, default="auto", help="auto: a GPU if there is one")
    amp_help = (
        "mixed precision on CUDA GPUs, bf16 also on CPUs that compute it; off: float32, as in the paper"
    )
    group.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off", help=amp_help)
    when = f"for {COMPILE_FROM:,} images or more on a CPU" if chooses_compile else "not"
    compile_help = f"use torch.compile, which takes up to minutes once [default: {when}]"
    default = None if chooses_compile else False
    group.add_argument("--compile", action=argparse.BooleanOptionalAction, default=default, help=compile_help)


def add_folder_options(group: OptionGroup) -> None:
    """Add the options on the folder of a training run, and on what it saves and prints."""
    folder_help = "folder of the run [default: a new one in checkpoint/, named after the options]"
    group.add_argument("--output_dir", type=given_path, metavar="FOLDER", help=folder_help)
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the run in --output_dir")
    resume_help = "continue the run in FOLDER; without FOLDER, the one in --output_dir, or start it there"
    existing.add_argument(
        "--resume", type=given_path, nargs="?", const=True, metavar="FOLDER", help=resume_help
    )
    save_help = "also save every STEPS steps [default: after each epoch and at a signal]"
    group.add_argument("--save_every", type=number(int, 1), metavar="STEPS", help=save_help)
    print_help = "print the mean loss of the epoch so far every STEPS steps"
    group.add_argument("--print_freq", type=number(int, 1), default=100, metavar="STEPS", help=print_help)
