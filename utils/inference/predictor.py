"""The Predictor: from photographs to scores and attention maps, for Python users, torch.hub and demo.py."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.csra import AveragePooling
from pipeline.folding import folded
from pipeline.models import BuildOptions
from pipeline.network import Network
from utils.data.samples import to_float
from utils.inference.outputs import mirrored_mean, sigmoid
from utils.inference.photographs import (
    Loaded,
    Photo,
    Thumbnail,
    Unreadable,
    in_batches,
    load_ahead,
    load_photo,
)
from utils.metrics.thresholds import read_thresholds
from utils.runtime.device import autocast
from utils.runtime.errors import UserError
from utils.runtime.freed_memory import keeping_freed_memory
from utils.runtime.limits import MAX_PIXELS
from utils.runtime.workers import default_workers
from utils.weights.building import build_network

Threshold = float | str | os.PathLike[str]  # for all classes, or a .json file with one per class


@dataclass(frozen=True)
class LabelSettings:
    """How `Predictor.label` works.

    batch_size: photographs per step of the network. num_threads: threads that decode files ahead of it, or 0.
    max_pixels: larger photographs are refused before they are decoded.
    tta: "flip" averages the logits of an image and its mirror image, "off" does not.
    amp: a key of AMP_DTYPES in utils/runtime/device.py.
    with_maps, with_thumbnails: whether attention maps and small pictures are wanted.
    """

    batch_size: int = 16
    num_threads: int = 0
    max_pixels: float = MAX_PIXELS
    tta: str = "off"
    amp: str = "off"
    with_maps: bool = False
    with_thumbnails: bool = False


class Prediction(NamedTuple):
    """The result for a photograph: scores (C,) float64; attention maps (C, h, w) and thumbnail if wanted."""

    scores: np.ndarray
    maps: np.ndarray | None
    thumbnail: Thumbnail | None = None


class Predictor:
    """A trained network that labels photographs.

    It is called like the network: images (B, 3, S, S) in [0, 1] on its device to logits (B, C).
    network: in eval mode. classes: the names of its C classes. options: the arguments of `build`; S is
    options["img_size"]. config: the options of training, {} for a file that main.py did not write.
    max_pixels: larger photographs are refused; raise it for images that you trust.
    """

    def __init__(self, network: Network, classes: list[str], options: BuildOptions, config: dict[str, Any]):
        self.network = network.eval()
        self.fast: Network | None = None  # labels in place of `network`; see `running`
        self.classes = classes
        self.options = options
        self.config = config
        self.max_pixels: float = MAX_PIXELS

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy store: weights, because some networks cannot be pickled or copied."""
        stored = (self.network.normalization, self.network.state_dict())
        return {**vars(self), "network": stored, "fast": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        normalization, weights = state["network"]
        network = build_network(state["options"], normalization)
        network.load_state_dict(weights, assign=True)
        vars(self).update(state)
        self.network = network.eval()

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the network to a device, in the memory format that is fastest, and return this Predictor."""
        self.network.to(device)
        self.network.to(memory_format=torch.channels_last)
        self.fast = None
        return self

    @property
    def has_attention(self) -> bool:
        """Return whether maps are shares of attention that sum to 1; else they are scores of the places."""
        return not isinstance(self.network.classifier, AveragePooling)

    def weights_hash(self) -> str:
        """Return a hash of the weights, by which two networks are told apart."""
        digest = hashlib.sha256()
        for name, values in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def runner(self) -> Network:
        """The network that labels photographs: `network`, or one that computes the same faster."""
        return self.network if self.fast is None else self.fast

    def running(self, fast: Network) -> Self:
        """Return a Predictor of the same network that labels with `fast`, which computes the same logits.

        `fast` does not follow later changes of the network's weights; `to` and copies go back to the network.
        """
        other = object.__new__(type(self))
        vars(other).update({**vars(self), "fast": fast})
        return other

    def for_many(self) -> Self:
        """Return a Predictor that labels with a folded copy of the network; see `folded`.

        On a CPU the copy takes as long as one or two photographs. On a GPU hundreds would not repay it.
        """
        if self.fast is not None or self.device.type != "cpu":
            return self
        return self.running(folded(self.network))

    def predict(
        self,
        photos: Photo | Iterable[Photo],
        threshold: Threshold = 0.0,
        max_pixels: float | None = None,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Return the scores of a photograph, {class: score}, best first, or of several a list of such dicts.

        photos: a path, a Pillow image or a uint8 array (H, W, 3), or several of them; a generator is asked
        for a few photographs at a time. The EXIF orientation is applied.
        threshold: leave out lower scores; a number, or a .json file of one per class.
        max_pixels: refuse larger photographs; None takes that of this Predictor.
        Raises UserError for a file that cannot be read, a photograph that is too large and NaN scores,
        ValueError for another array or threshold.
        """
        if not isinstance(threshold, str | os.PathLike) and not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} is not from 0 to 1")
        thresholds = read_thresholds(threshold, self.classes)
        if isinstance(photos, str | os.PathLike | Image.Image) or (
            isinstance(photos, np.ndarray) and photos.ndim == 3
        ):
            return self.name_scores(self.label_one(photos, max_pixels).scores, thresholds)
        settings = LabelSettings(num_threads=default_workers(), max_pixels=self.pixel_limit(max_pixels))
        with (
            keeping_freed_memory(self.device),
            contextlib.closing(self.label(photos, settings)) as results,  # ends its threads, also on an error
        ):
            return [self.name_scores(raise_if_unreadable(result).scores, thresholds) for result in results]

    def attention(self, photo: Photo, max_pixels: float | None = None) -> dict[str, np.ndarray]:
        """Return where the network looks in a photograph, as demo.py draws it: {class: map (h, w)}.

        Raises what `predict` raises.
        """
        maps = self.label_one(photo, max_pixels, with_maps=True).maps
        assert maps is not None
        return dict(zip(self.classes, maps))

    def label(
        self, photos: Iterable[Photo], settings: LabelSettings
    ) -> Generator[Prediction | Unreadable, None, None]:
        """Yield the result for each photograph, in order; photographs are taken and loaded as needed."""
        load = functools.partial(
            load_photo,
            img_size=self.options["img_size"],
            max_pixels=settings.max_pixels,
            with_thumbnail=settings.with_thumbnails,
        )
        loaded = load_ahead(photos, load, settings.num_threads, settings.batch_size)
        yield from self.label_loaded(loaded, settings)

    def label_loaded(
        self, loaded: Iterable[Loaded | Unreadable], settings: LabelSettings
    ) -> Generator[Prediction | Unreadable, None, None]:
        """Yield the result for each loaded photograph, in order."""
        labeller = self
        for number, batch in enumerate(in_batches(loaded, settings.batch_size)):
            if number == 1:
                labeller = self.for_many()  # anew for each call, because users may change the weights
            squares = [photo.square for photo in batch if isinstance(photo, Loaded)]
            labelled = iter(labeller.label_images(squares, settings))
            for photo in batch:
                if isinstance(photo, Unreadable):
                    yield photo
                else:
                    yield next(labelled)._replace(thumbnail=photo.thumbnail)

    def label_one(self, photo: Photo, max_pixels: float | None, with_maps: bool = False) -> Prediction:
        """Return the result for one photograph; UserError if it cannot be read."""
        settings = LabelSettings(max_pixels=self.pixel_limit(max_pixels), with_maps=with_maps)
        (result,) = self.label([photo], settings)
        return raise_if_unreadable(result)

    @torch.inference_mode()
    def label_images(self, squares: list[Tensor], settings: LabelSettings) -> list[Prediction]:
        """Return the result for each of a batch of images; squares: uint8 (3, S, S).

        Raises UserError for NaN scores.
        """
        if not squares:
            return []
        images = to_float(torch.stack(squares), self.device)
        maps: Iterable[np.ndarray | None] = [None] * len(images)
        with autocast(self.device, settings.amp):
            features = self.runner.features(images)
            logits = self.runner.classifier(features)
            if settings.tta == "flip":
                logits = mirrored_mean(logits, self.runner, images)
            if settings.with_maps:
                maps = self.runner.classifier.attention_maps(features).cpu().numpy()
        scores = sigmoid(logits.cpu().numpy())
        check_no_nan(scores, settings.amp)
        return [Prediction(*result) for result in zip(scores, maps)]

    def pixel_limit(self, max_pixels: float | None) -> float:
        """Return max_pixels, or for None that of this Predictor."""
        return self.max_pixels if max_pixels is None else max_pixels

    def name_scores(self, scores: np.ndarray, thresholds: np.ndarray) -> dict[str, float]:
        """Return the scores (C,) that reach their thresholds (C,) as {class: score}, best first."""
        return {self.classes[c]: float(scores[c]) for c in best_classes(scores, thresholds)}


def check_no_nan(scores: np.ndarray, amp: str) -> None:
    """Raise UserError if a score (B, C) is NaN; amp: the precision in which the network ran."""
    if not np.isnan(scores).any():
        return
    reason = "the weights are damaged: copy or download the file again"
    if amp == "fp16":
        reason = "values may overflow with --amp fp16: use bf16 or off; if they stay NaN, " + reason
    raise UserError(f"scores are NaN: {reason}")


def raise_if_unreadable(result: Prediction | Unreadable) -> Prediction:
    """Return a result, or raise its error if the photograph could not be read."""
    if isinstance(result, Unreadable):
        raise result.error
    return result


def best_classes(scores: np.ndarray, thresholds: np.ndarray, top: int | None = None) -> list[int]:
    """Return the indices of the classes to show, best first.

    Of the `top` highest scores (C,), or of all, these are the ones that reach their thresholds (C,).
    """
    best_first = np.argsort(-scores, kind="stable")[:top]
    return [int(c) for c in best_first if scores[c] >= thresholds[c]]
