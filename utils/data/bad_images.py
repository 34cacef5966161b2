"""--verify and --skip_bad of the preparers: find the images that cannot be decoded, and leave them out.

It needs no torch, except to decode images.
"""

from argparse import Namespace
from collections.abc import Iterable, Iterator
from multiprocessing.pool import ThreadPool

from tqdm import tqdm

from utils.data.label_entries import Entries, Entry, Splits
from utils.runtime.arguments import Parser, add_max_pixels
from utils.runtime.errors import UserError, out_of_files_message, user_message
from utils.runtime.workers import default_workers


def parse_args(parser: Parser) -> Namespace:
    """Parse a preparer's command line, with the options that `bad_images` needs."""
    parser.add_argument("--verify", action="store_true", help="decode every image once and list the bad ones")
    parser.add_argument("--skip_bad", action="store_true", help="verify, and leave the bad images out")
    add_max_pixels(parser)
    return parser.parse_args()


class GoodEntries:
    """Entries without those of the images in `bad`, a set of paths."""

    def __init__(self, entries: Entries, bad: set[str]) -> None:
        self.entries = entries
        self.bad = bad
        self.num_good = sum(1 for _ in self)

    def __len__(self) -> int:
        return self.num_good

    def __iter__(self) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry["img_path"] not in self.bad)


def without_bad(splits: Splits, args: Namespace) -> Splits:
    """Return the splits; with --verify or --skip_bad, see `bad_images`, without the bad images.

    Raises UserError if nothing is left of one.
    """
    bad = bad_images((entry["img_path"] for entries in splits.values() for entry in entries), args)
    if not bad:
        return splits
    good = {name: GoodEntries(entries, bad) for name, entries in splits.items()}
    for name, entries in splits.items():
        if len(entries) and not len(good[name]):
            raise UserError(f"--skip_bad leaves nothing of {name}: all its images are bad")
    return good


def bad_images(paths: Iterable[str], args: Namespace) -> set[str]:
    """Decode all images if --verify or --skip_bad asks for it; list the bad ones and return their paths.

    Raises UserError if there are bad images without --skip_bad.
    """
    if not args.verify and not args.skip_bad:
        return set()
    different = sorted(set(paths))
    errors = decode_all(different, args.max_pixels)
    print(f"decoded {len(different)} images, {len(errors)} of them bad", *errors.values(), sep="\n")
    if errors and not args.skip_bad:
        first = next(iter(errors.values()))
        count = f"{len(errors)} of {len(different)} images are bad"
        raise UserError(f"{count}, first {first} (--skip_bad leaves them all out)")
    if errors:
        print(f"left out {len(errors)} bad images")
    return set(errors)


def decode_all(paths: list[str], max_pixels: int) -> dict[str, str]:
    """Decode images as training does; return {path: what is wrong with it} for the bad ones."""
    from utils.data.decoding import load_image  # imports torch

    def error_message(path: str) -> str | None:
        try:
            load_image(path, max_pixels)
        except (UserError, OSError) as error:
            if out_of_files_message(error):
                raise
            return user_message(error)
        return None

    with ThreadPool(default_workers()) as pool:  # threads are enough: image decoders release the GIL
        messages = pool.imap(error_message, paths)
        bar = tqdm(messages, total=len(paths), desc="verify", unit="img", disable=None, leave=False)
        return {path: message for path, message in zip(paths, bar) if message is not None}
