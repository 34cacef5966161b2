"""The methods that load_model adds to a network: from photographs to scores and attention maps."""

import os
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.network import Network
from utils.data.decoding import load_image, rgb_pixels, upright
from utils.data.samples import to_float
from utils.data.transforms import eval_transform
from utils.inference.outputs import sigmoid
from utils.metrics.thresholds import read_thresholds

Photo = str | os.PathLike | Image.Image | np.ndarray


@torch.inference_mode()
def predict(model: Network, photos: Photo | Iterable[Photo], threshold: float | str = 0.0) -> dict | list:
    """Return the scores of a photograph, {class: score}, best first, or of several a list of such dicts.

    photos: a path, a Pillow image or a uint8 array (H, W, 3), or several of them. The EXIF orientation is
    applied. threshold: leave out lower scores; a number, or a .json file of one per class.
    Raises UserError for a file that cannot be read, ValueError for another array or threshold.
    """
    if not isinstance(threshold, str | os.PathLike) and not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is not from 0 to 1")
    is_one = isinstance(photos, Photo) and getattr(photos, "ndim", 3) == 3
    thresholds, results = read_thresholds(threshold, model.classes), []
    for photo in [photos] if is_one else photos:
        scores = sigmoid(model(load_photo(model, photo))[0].cpu().numpy())
        results.append({model.classes[c]: float(scores[c]) for c in best_classes(scores, thresholds)})
    return results[0] if is_one else results


@torch.inference_mode()
def attention(model: Network, photo: Photo) -> dict[str, np.ndarray]:
    """Return where the network looks in a photograph, as demo.py draws it: {class: map (h, w)}."""
    maps = model.classifier.attention_maps(model.features(load_photo(model, photo)))
    return dict(zip(model.classes, maps[0].cpu().numpy()))


def load_photo(model: Network, photo: Photo) -> Tensor:
    """Return a photograph as the network takes it: (1, 3, S, S) in [0, 1], on its device."""
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.shape[2:] != (3,):
            raise ValueError(f"a photograph must be uint8 (H, W, 3), not {photo.dtype} {photo.shape}")
        photo = Image.fromarray(photo)
    is_image = isinstance(photo, Image.Image)
    pixels = upright(rgb_pixels(photo), photo) if is_image else load_image(os.fspath(photo), exif=True)
    batch = eval_transform(pixels, model.options["img_size"])[None]
    return to_float(batch, next(model.parameters()).device)


def best_classes(scores: np.ndarray, thresholds: np.ndarray, top: int | None = None) -> list[int]:
    """Return the classes (C,) to show, best first: of the `top` ones, those that reach their threshold."""
    return [int(c) for c in np.argsort(-scores, kind="stable")[:top] if scores[c] >= thresholds[c]]
