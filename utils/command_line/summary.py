"""The lines in which a command prints its options when it starts."""

import argparse

from utils.runtime.arguments import Parser

# The lines of `summary` and the options that each can name.
SUMMARY = {
    "data": (
        "dataset",
        "num_cls",
        "img_size",
        "normalize",
        "batch_size",
        "num_workers",
        "max_pixels",
        "split",
    ),
    "model": ("model", "num_heads", "lam", "pretrained", "cutmix", "load_from", "tta"),
    "optimisation": (
        "total_epoch",
        "warmup_epoch",
        "decay_step",
        "optimizer",
        "lr",
        "momentum",
        "w_d",
        "loss",
        "ema",
    ),
    "run": (
        "device",
        "amp",
        "compile",
        "sync_bn",
        "seed",
        "save_every",
        "print_freq",
        "threshold",
        "out",
        "save_scores",
        "html",
    ),
}
# These are named even if they have their defaults.
ALWAYS_NAMED = (
    "dataset",
    "batch_size",
    "num_heads",
    "normalize",
    "pretrained",
    "warmup_epoch",
    "optimizer",
    "lr",
)


def summary(parser: Parser, args: argparse.Namespace) -> str:
    """Format the options of a run that matter most or differ from their defaults, in the lines of SUMMARY."""
    lines = []
    for title, names in SUMMARY.items():
        descriptions = [describe_option(name, parser, args) for name in names]
        words = ", ".join(description for description in descriptions if description)
        if words:
            lines.append(f"{title:13} {words}")
    return "\n".join(lines)


def describe_option(name: str, parser: Parser, args: argparse.Namespace) -> str:
    """Return an option's name and value, or "" if it has no value or only its default."""
    value = getattr(args, name, None)
    if value is None or (value == parser.get_default(name) and name not in ALWAYS_NAMED):
        return ""
    if value is True:
        return name
    if value is False:
        return f"no {name}"
    if name == "lr":
        return f"lr {value:g} (head {value * args.head_lr_factor:g})"
    return f"{name} {value}"
