"""Photographs as the network takes them; threads load files ahead of the network."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from utils.data.decoding import check_size, load_image, upright
from utils.data.pixels import rgb_pixels
from utils.data.transforms import eval_transform
from utils.runtime.errors import UserError, out_of_files_message, reporting_errors

# A path, a Pillow image or a uint8 array (H, W, 3).
Photo = str | os.PathLike[str] | Image.Image | np.ndarray
Item = TypeVar("Item")


class Unreadable(NamedTuple):
    """Stands for a photograph that cannot be read, and says why."""

    error: UserError | OSError


def load_photo(photo: Photo, img_size: int, max_pixels: float) -> Tensor | Unreadable:
    """Return a photograph, upright and resized to a square: uint8 (3, img_size, img_size).

    A photograph of more than max_pixels pixels is refused before it is decoded.
    Raises ValueError for an array that is not uint8 (H, W, 3), TypeError for what is not a Photo, OSError if
    this process may not open another file.
    """
    try:
        return eval_transform(photo_pixels(photo, max_pixels), img_size)
    except (UserError, OSError) as error:
        if out_of_files_message(error):
            raise
        return Unreadable(error)


def photo_pixels(photo: Photo, max_pixels: float) -> Tensor:
    """Return the pixels of a photograph, upright, uint8 (3, H, W)."""
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.shape[2:] != (3,):
            raise ValueError(f"a photograph must be uint8 (H, W, 3), not {photo.dtype} {photo.shape}")
        photo = Image.fromarray(photo)
    if isinstance(photo, Image.Image):
        # Pillow decodes it only when its pixels are asked for.
        with reporting_errors("the image cannot be read: replace it, or leave it out"):
            check_size(photo, "the image", max_pixels)
            return upright(rgb_pixels(photo, "the image"), photo)
    return load_image(os.fspath(photo), max_pixels, exif=True)


def load_ahead(
    photos: Iterable[Photo], load: Callable[[Photo], Item], num_threads: int, count: int
) -> Iterator[Item]:
    """Yield load(photo) for each photograph, in order; up to `count` are loaded ahead of the consumer.

    Threads load the files; with num_threads 0, nothing is loaded ahead. Images and arrays are loaded before
    the next photograph is taken, because a generator may then close or overwrite them.
    """
    if num_threads == 0:
        yield from map(load, photos)
        return
    pool = ThreadPoolExecutor(num_threads)
    waiting: deque[Future[Item]] = deque()
    try:
        for photo in photos:
            if isinstance(photo, str | os.PathLike):
                waiting.append(pool.submit(load, photo))
            else:
                waiting.append(finished(load(photo)))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def finished(result: Item) -> Future[Item]:
    """Return a future that holds its result already."""
    future: Future[Item] = Future()
    future.set_result(result)
    return future


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter. Items are taken as lists are asked for."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
