"""Photographs as the network takes them; threads load files ahead of the network."""

import io
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
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
Source = TypeVar("Source")
Item = TypeVar("Item")
THUMBNAIL_SIDE = 320  # pixels, of the longer side


class Thumbnail(NamedTuple):
    """A small picture of a photograph, as a JPEG file, and its size in pixels."""

    jpeg: bytes
    width: int
    height: int


class Loaded(NamedTuple):
    """A photograph as the network takes it, uint8 (3, S, S), and its thumbnail if one is wanted."""

    square: Tensor
    thumbnail: Thumbnail | None


class Unreadable(NamedTuple):
    """Stands for a photograph that cannot be read, and says why."""

    error: UserError | OSError


def load_photo(
    photo: Photo, img_size: int, max_pixels: float, with_thumbnail: bool = False
) -> Loaded | Unreadable:
    """Return a photograph, upright and resized to a square of img_size, and maybe its thumbnail.

    A photograph of more than max_pixels pixels is refused before it is decoded.
    Raises ValueError for an array that is not uint8 (H, W, 3), TypeError for what is not a Photo, OSError if
    this process may not open another file.
    """
    try:
        pixels = photo_pixels(photo, max_pixels)
        thumbnail = make_thumbnail(pixels) if with_thumbnail else None
        return Loaded(eval_transform(pixels, img_size), thumbnail)
    except (UserError, OSError) as error:
        if out_of_files_message(error):
            raise
        return Unreadable(error)


def make_thumbnail(pixels: Tensor) -> Thumbnail:
    """Return the thumbnail of an image (3, H, W)."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=2)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=75)
    return Thumbnail(content.getvalue(), *image.size)


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
    sources: Iterable[Source], load: Callable[[Source], Item], num_threads: int, count: int
) -> Generator[Item, None, None]:
    """Yield load(source) for each source, in order; up to `count` are loaded ahead of the consumer.

    Threads load files; with num_threads 0, nothing is loaded ahead. Images and arrays are loaded before the
    next source is taken, because a generator may then close or overwrite them.
    """
    if num_threads == 0:
        yield from map(load, sources)
        return
    pool = ThreadPoolExecutor(num_threads)
    waiting: deque[Future[Item]] = deque()
    try:
        for source in sources:
            if isinstance(source, Image.Image | np.ndarray):
                waiting.append(finished(load(source)))
            else:
                waiting.append(pool.submit(load, source))
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
