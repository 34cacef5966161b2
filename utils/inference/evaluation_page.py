"""The page of an evaluated data set: its images with their true labels, scores and attention maps."""

import contextlib
import functools
from pathlib import Path

from utils.data.samples import LabelledImages
from utils.data.transforms import eval_transform
from utils.inference.html_page import PageSettings, new_page, page_photo
from utils.inference.photographs import Loaded, load_ahead, make_thumbnail
from utils.inference.predictor import LabelSettings, Predictor, raise_if_unreadable
from utils.metrics.blocks import Scores
from utils.runtime import interrupt
from utils.runtime.progress import progress_bar


def write_evaluation_page(
    folder: Path,
    settings: PageSettings,
    predictor: Predictor,
    dataset: LabelledImages,
    scores: Scores,
    label_settings: LabelSettings,
) -> None:
    """Write a page of a data set and its scores (N, C); one more pass of the network computes the maps."""
    load = functools.partial(load_sample, dataset)
    images = load_ahead(range(len(dataset)), load, label_settings.num_threads, label_settings.batch_size)
    with (
        new_page(folder, settings) as page,
        progress_bar(len(dataset), "page") as bar,
        contextlib.closing(images) as loaded,
    ):
        for row, result in enumerate(predictor.label_loaded(loaded, label_settings)):
            interrupt.stop_if_asked()
            shown = raise_if_unreadable(result)._replace(scores=scores.of_images(slice(row, row + 1))[0])
            page.add(page_photo(dataset.path(row), shown, dataset.labels.targets.row(row)))
            bar.update(1)


def load_sample(dataset: LabelledImages, row: int) -> Loaded:
    """Return the image of a row as the network takes it, and its thumbnail."""
    pixels = dataset.pixels(row)
    return Loaded(eval_transform(pixels, dataset.img_size), make_thumbnail(pixels))
