"""The option --verify: decode every image once, so that training does not fail on a bad one hours later."""

from argparse import Namespace
from multiprocessing.pool import ThreadPool
from typing import Any

from tqdm import tqdm

from utils.runtime.cli import Parser, UserError, add_max_pixels, default_workers


def add_verify_arguments(parser: Parser) -> None:
    """Add the options that `verify` reads."""
    parser.add_argument("--verify", action="store_true", help="decode every image once and list the bad ones")
    add_max_pixels(parser)


def verify(splits: dict[str, list[dict[str, Any]]], args: Namespace) -> None:
    """With --verify, decode all images as training does, and list bad ones; UserError if there are any."""
    if not args.verify:
        return
    from utils.transforms import load_image  # imports torch, which the preparers do not need otherwise

    def error_message(path: str) -> str | None:
        try:
            load_image(path, args.max_pixels)
        except UserError as error:
            return str(error)

    paths = sorted({entry["img_path"] for entries in splits.values() for entry in entries})
    with ThreadPool(default_workers()) as pool:  # threads are enough: image decoders release the GIL
        messages = pool.imap(error_message, paths)
        messages = tqdm(messages, total=len(paths), desc="verify", unit="img", disable=None, leave=False)
        errors = [message for message in messages if message]
    print(f"decoded {len(paths)} images, {len(errors)} of them bad", *errors, sep="\n")
    if errors:
        raise UserError(f"{len(errors)} of {len(paths)} images are bad, first {errors[0]}")
