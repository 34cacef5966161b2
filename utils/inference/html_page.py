"""A page of labelled photographs that a browser opens without a server.

FOLDER/index.html is html_page.html with the settings of the page. It reads scores/*.js at its start, and for
the photographs that it shows thumbnails/*.jpg and maps/*.js. All are written as the photographs come.
"""

import base64
import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.data.labels import IGNORED
from utils.inference.predictor import Prediction
from utils.runtime.errors import UserError
from utils.runtime.files import reporting_write_errors
from utils.runtime.output_checks import check_folder

TEMPLATE = Path(__file__).with_name("html_page.html")
FIRST_LINES = TEMPLATE.read_text(encoding="utf-8").splitlines()[:2]  # by which a page is known
PAGE_FILES = re.compile(r"index\.html|thumbnails(/\d+\.jpg)?|scores(/\d+\.js)?|maps(/\d+\.js)?")
FILES_OF_DESKTOPS = (".DS_Store", "Thumbs.db", "desktop.ini")  # appear wherever somebody has looked
PHOTOS_PER_SCORE_FILE = 1000
PHOTOS_PER_MAP_FILE = 20  # few, because the browser reads a whole file to show one photograph
# Of a photograph the page has the highest scores of at least MIN_SCORE, and maps for the highest of these.
MIN_SCORE = 0.01
MAX_SCORES = 50
MAX_MAPS = 5


class PageSettings(NamedTuple):
    """What a page shows.

    thresholds: (C,), with which it starts. top: the largest number of labels of a photograph, or None.
    has_true_labels: whether the true labels are known. attention: whether maps are shares of attention, not
    scores.
    """

    title: str
    classes: list[str]
    thresholds: np.ndarray
    top: int | None
    has_true_labels: bool
    attention: bool


class PagePhoto(NamedTuple):
    """What a page holds of a photograph.

    entry: its name, its address, the size of its thumbnail, its scores and labels, as the page's script reads
    them. maps: for some classes, by their number, what encode_map returns. thumbnail: a JPEG file.
    """

    entry: dict[str, Any]
    maps: dict[str, list[Any]]
    thumbnail: bytes


class Page:
    """Writes the files of a page to a new folder: `add` photographs (see page_photo), then `finish`.

    Raises UserError if a file cannot be written.
    """

    def __init__(self, folder: Path, settings: PageSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.num_photos = 0
        self.entries: list[dict[str, Any]] = []  # for the next file in scores/
        self.maps: list[dict[str, list[Any]]] = []  # for the next file in maps/
        self.num_score_files = 0
        self.num_map_files = 0
        with reporting_write_errors(folder):
            for name in ("thumbnails", "scores", "maps"):
                (folder / name).mkdir(parents=True)

    def add(self, photo: PagePhoto) -> None:
        """Add a photograph."""
        thumbnail = f"thumbnails/{self.num_photos:06}.jpg"
        self.write(thumbnail, photo.thumbnail)
        self.entries.append({**photo.entry, "thumbnail": thumbnail})
        self.maps.append(photo.maps)
        self.num_photos += 1
        if len(self.entries) == PHOTOS_PER_SCORE_FILE:
            self.write_scores()
        if len(self.maps) == PHOTOS_PER_MAP_FILE:
            self.write_maps()

    def write_scores(self) -> None:
        """Write the next file in scores/."""
        content = f"addPhotos({json_of(self.entries)});\n"
        self.write(f"scores/{self.num_score_files:06}.js", content.encode())
        self.num_score_files += 1
        self.entries = []

    def write_maps(self) -> None:
        """Write the next file in maps/."""
        content = f"addMaps({self.num_map_files}, {json_of(self.maps)});\n"
        self.write(f"maps/{self.num_map_files:06}.js", content.encode())
        self.num_map_files += 1
        self.maps = []

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the page."""
        with reporting_write_errors(self.folder / name):
            (self.folder / name).write_bytes(content)

    def finish(self) -> None:
        """Write what is left, and index.html."""
        if self.entries:
            self.write_scores()
        if self.maps:
            self.write_maps()
        settings = {
            "title": self.settings.title,
            "classes": self.settings.classes,
            "thresholds": [cut_off(value) for value in self.settings.thresholds],
            "top": self.settings.top,
            "has_true_labels": self.settings.has_true_labels,
            "attention": self.settings.attention,
            "photos_per_map_file": PHOTOS_PER_MAP_FILE,
        }
        numbers = range(self.num_score_files)
        scripts = [f'<script src="scores/{number:06}.js"></script>' for number in numbers]
        before, after = TEMPLATE.read_text(encoding="utf-8").split("SETTINGS")
        between, end = after.split("SCORES")
        index = "".join([before, json_of(settings), between, "\n".join(scripts), end])
        self.write("index.html", index.encode())


def page_photo(path: str, result: Prediction, target: np.ndarray | None = None) -> PagePhoto:
    """Return what a page holds of a photograph; target: its labels (C,) of 1, 0 or IGNORED if they are known.

    result: with maps and a thumbnail.
    """
    assert result.maps is not None
    assert result.thumbnail is not None
    entry = {
        "name": path,
        "url": Path(os.path.abspath(path)).as_uri(),
        "width": result.thumbnail.width,
        "height": result.thumbnail.height,
    }
    positives: list[int] = []
    if target is not None:
        positives = np.flatnonzero(target == 1).tolist()
        entry |= {"labels": positives, "unknown": np.flatnonzero(target == IGNORED).tolist()}
    shown = classes_on_page(result.scores, positives)
    entry["scores"] = [[c, cut_off(result.scores[c])] for c in shown]
    with_map = set(shown[:MAX_MAPS]) | set(positives)
    maps = {str(c): encode_map(result.maps[c]) for c in shown if c in with_map}
    return PagePhoto(entry, maps, result.thumbnail.jpeg)


def classes_on_page(scores: np.ndarray, positives: list[int]) -> list[int]:
    """Return the classes whose scores (C,) the page has, best first: the high ones, and the true ones."""
    best_first = np.argsort(-scores, kind="stable")
    high = [c for c in best_first[:MAX_SCORES].tolist() if scores[c] >= MIN_SCORE]
    chosen = {*high, *positives, int(best_first[0])}
    return sorted(chosen, key=lambda c: -scores[c])


def cut_off(value: float) -> float:
    """Return a score or threshold with seven digits; rounded, a score could seem to reach its threshold."""
    return int(value * 10**7) / 10**7


def encode_map(values: np.ndarray) -> list[Any]:
    """Return a map (H, W) as [W, H, largest value, values from 0 to 255 in base64]; below 0 counts as 0."""
    positive = np.maximum(values, 0)
    largest = float(positive.max())
    levels = (255 * positive / max(largest, 1e-12)).round().astype(np.uint8)
    height, width = values.shape
    return [width, height, round(largest, 4), base64.b64encode(levels.tobytes()).decode()]


def json_of(value: Any) -> str:
    """Return a value as JSON that may stand in a script element: < could end it, as in </script>."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


@contextlib.contextmanager
def new_page(folder: Path, settings: PageSettings) -> Iterator[Page]:
    """Make a page that takes its place, `folder`, when the block ends; an error leaves `folder` as it was."""
    target = Path(os.path.realpath(folder))
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        page = Page(part, settings)
        yield page
        page.finish()
        check_page_folder(folder)
        with reporting_write_errors(folder):
            replace_folder(target, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace_folder(target: Path, part: Path) -> None:
    """Put the folder `part` in the place of `target`, if there is one."""
    if not target.exists():
        part.rename(target)
        return
    earlier = part.with_name(f"{part.name}.earlier")
    target.rename(earlier)
    try:
        part.rename(target)
    except OSError:
        earlier.rename(target)
        raise
    shutil.rmtree(earlier)


def check_page_folder(folder: Path, others: Iterable[Path | None] = ()) -> None:
    """Raise UserError unless `folder` can become a page: it is new, empty or a page from before.

    others: what else the command writes, None for what it does not write; a page holds nothing else.
    """
    target = Path(os.path.realpath(folder))
    check_folder(target.parent, "--html")
    for other in others:
        if other and Path(os.path.realpath(other)).is_relative_to(target):
            raise UserError(f"--html {folder} takes the whole folder: write {other} to another one")
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"--html {folder} is a file: name a folder")
    for path in target.rglob("*"):
        name = path.relative_to(target).as_posix()
        if not PAGE_FILES.fullmatch(name) and path.name not in FILES_OF_DESKTOPS:
            raise UserError(f"--html {folder} holds {name}, which is not of a page: name another folder")
    index = target / "index.html"
    if index.is_file() and not is_page(index):
        raise UserError(f"--html {folder} holds an index.html that is not from here: name another folder")


def is_page(index: Path) -> bool:
    """Return whether a file is the index.html of a page."""
    first_lines = "\n".join(FIRST_LINES).encode()
    with open(index, "rb") as file:
        return file.read(len(first_lines)) == first_lines
