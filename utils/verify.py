"""Decoding every image of a data set once, before training meets a bad one hours into an epoch."""

import argparse
from multiprocessing.pool import ThreadPool
from typing import Any

from tqdm import tqdm

from utils.runtime.cli import Parser, UserError, add_max_pixels, default_workers


def add_verify_arguments(parser: Parser) -> None:
    """Add the options of the preparers that `verify` needs."""
    parser.add_argument(
        "--verify", action="store_true", help="first decode every image once, and list those that are bad"
    )
    add_max_pixels(parser)


def verify(entries: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Decode the images of label file entries as training does, if --verify is given; list the bad ones.

    Raises UserError if there are any.
    """
    if not args.verify:
        return
    from utils.transforms import load_image  # brings torch, which nothing else in preparing needs

    def fault(path: str) -> str | None:
        try:
            load_image(path, args.max_pixels)
        except UserError as error:
            return str(error)

    paths = sorted({entry["img_path"] for entry in entries})
    with ThreadPool(default_workers()) as pool:  # threads: decoders compute outside of Python's lock
        checked = tqdm(
            pool.imap(fault, paths), total=len(paths), desc="verify", unit="img", disable=None, leave=False
        )
        faults = [message for message in checked if message]
    print(f"decoded {len(paths)} images, {len(faults)} of them bad", *faults, sep="\n")
    if faults:
        raise UserError(f"{len(faults)} of {len(paths)} images are bad, first {faults[0]}")
