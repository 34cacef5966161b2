"""Progress bars."""

from tqdm import tqdm

from utils.runtime.distributed import RANK


def progress(total: int, description: str) -> tqdm:
    """Return a bar over `total` images on stderr; it shows in a terminal and in the first process alone."""
    hidden = True if RANK else None  # None: hidden unless stderr is a terminal
    return tqdm(total=total, desc=description, unit="img", leave=False, dynamic_ncols=True, disable=hidden)
