"""Files of annotations in COCO's format, read with pycocotools into the entries of a label file."""

import contextlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.data.label_entries import Pictures, listed_entry
from utils.data.labels import Listed
from utils.data.lookalikes import compose
from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import read_json
from utils.runtime.paths import FileKey

Categories = dict[int, str]  # {id: name}
FindImage = Callable[[str], tuple[Path, FileKey]]  # from a file_name to the image


def reporting_bad_annotations(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turn an exception inside the block into a UserError that says that a file is not as COCO's are."""
    return reporting_errors(f"{path} is not a COCO annotation file that lists every id it refers to")


def load_annotations(path: Path) -> Any:
    """Read a file of annotations as a pycocotools COCO object.

    Raises UserError if the file holds no JSON object, if an id appears twice, or if a category's id is null.
    Call it inside `reporting_bad_annotations`, for what else may be wrong with the file.
    """
    with reporting_errors("annotations in COCO's format need pycocotools: pip install pycocotools"):
        from pycocotools.coco import COCO
    print(f"loading {path}", flush=True)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        coco = COCO()
        coco.dataset = read_json(path)  # COCO(path) takes the encoding of the system for that of the file
        if not isinstance(coco.dataset, dict):
            raise UserError(f"{path} is not a COCO annotation file: it holds no JSON object")
        coco.createIndex()
    if len(coco.imgs) < len(coco.dataset["images"]):
        raise UserError(f"{path}: an id appears twice in its images")
    if len(coco.cats) < len(coco.dataset["categories"]):
        raise UserError(f"{path}: an id appears twice in its categories")
    if None in coco.cats:
        raise UserError(f"{path}: a category has the id null: give it a number")
    return coco


def read_categories(coco: Any) -> Categories:
    """Return the categories of a file of annotations, in the order of their ids."""
    return {number: compose(coco.cats[number]["name"].strip()) for number in sorted(coco.cats)}


def read_entries(
    coco: Any, image_ids: Iterable[int], classes: list[str], find_image: FindImage, title: str
) -> Pictures:
    """Return an entry by index for each image file, sorted by image id; several ids of one file are joined.

    A class that is no category of the file is unknown. title: of the progress bar.
    """
    index = {name: c for c, name in enumerate(classes)}
    class_of = {number: index[name] for number, name in read_categories(coco).items()}
    paths: dict[FileKey, str] = {}
    positives: dict[FileKey, set[int]] = {}
    for image_id in tqdm(sorted(image_ids), desc=title, unit="img", disable=None):
        image, key = find_image(coco.imgs[image_id]["file_name"])
        paths.setdefault(key, image.as_posix())
        # Every box counts, also that of a crowd.
        present = {class_of[annotation["category_id"]] for annotation in coco.imgToAnns.get(image_id, [])}
        positives.setdefault(key, set()).update(present)
    known = set(class_of.values())
    pictures: Pictures = {}
    for key, path in paths.items():
        negatives = None if len(known) == len(classes) else sorted(known - positives[key])
        pictures[key] = listed_entry(path, Listed(sorted(positives[key]), negatives))
    return pictures
