"""The heatmaps that demo.py writes: a folder for each photograph, with a picture per class and a sheet."""

import io
import os
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.data.decoding import load_image
from utils.inference.heatmap import DPI, ClassMap, contact_sheet, shrink, single_picture
from utils.inference.predictor import Prediction, Predictor
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_write
from utils.runtime.output_checks import check_folder, check_replaceable, nearest_existing

MADE_BY = "CSRA demo.py"

HEATMAP_FORMATS = ("png", "pdf")


class HeatmapForm(NamedTuple):
    """The form of the pictures: one of HEATMAP_FORMATS, and how many pixels the longer side may have."""

    format: str
    max_side: int


class HeatmapFolders(NamedTuple):
    """Where heatmaps go: each image has a folder of its own, in the same subfolders of out_dir as the image.

    common: the folder that all images are in.
    """

    out_dir: Path
    common: str

    def folder(self, path: str) -> Path:
        """Return the folder for the pictures of an image."""
        return self.out_dir / os.path.relpath(path, self.common)


def heatmap_folders(out_dir: Path, paths: list[str]) -> HeatmapFolders:
    """Return where the pictures of images go.

    Raises UserError if one of the folders cannot be written to, or holds pictures of these names from
    elsewhere, or if the images are on two drives of Windows.
    """
    folders = HeatmapFolders(out_dir, common_folder(paths))
    # Few exist, and most images share one: trying to write once for each image would take long.
    existing = {nearest_existing(folders.folder(path)) for path in paths}
    for folder in sorted(existing):
        check_folder(folder, "--out_dir")
    for path in paths:
        for picture in earlier_pictures(folders.folder(path)):
            check_replaceable(picture, "--out_dir:", is_heatmap, "demo.py")
    return folders


def common_folder(paths: list[str]) -> str:
    """Return the deepest folder that all images are in; UserError if they are on two drives of Windows."""
    folders = sorted({os.path.dirname(os.path.abspath(path)) for path in paths})
    try:
        return os.path.commonpath(folders)
    except ValueError:
        reason = f"{folders[0]} and {folders[-1]} are on two drives"
        raise UserError(f"--out_dir: {reason}: label the photographs of each drive on their own") from None


def class_maps(predictor: Predictor, result: Prediction, classes: list[int]) -> list[ClassMap]:
    """Return the ClassMaps of some classes of a photograph: shares for CSRA, scores for average pooling."""
    assert result.maps is not None
    found = []
    for c in classes:
        values = result.maps[c]
        if predictor.has_attention:
            measure = "share of attention"
            maximum = f"{100 * values.max():.0f} %"
        else:
            measure = "score of the place"
            maximum = f"{max(0, values.max()):.1f}"
        found.append(ClassMap(predictor.classes[c], float(result.scores[c]), values, maximum, measure))
    return found


def write_heatmaps(
    folder: Path, path: str, max_pixels: float, maps: list[ClassMap], form: HeatmapForm
) -> None:
    """Write a picture for each class to a folder, and a sheet of them all, in place of earlier ones."""
    pixels = load_image(path, max_pixels, exif=True).permute(1, 2, 0).numpy()
    image = shrink(Image.fromarray(pixels), form.max_side)
    for earlier in earlier_pictures(folder):
        earlier.unlink()
    sheet = contact_sheet(image, maps, os.path.basename(path))
    write_picture(folder / f"sheet.{form.format}", sheet)
    for rank, class_map in enumerate(maps, start=1):
        name = re.sub(r"\W+", "_", class_map.name)[:50]
        write_picture(folder / f"{rank}_{name}.{form.format}", single_picture(image, class_map))


def earlier_pictures(folder: Path) -> list[Path]:
    """Return the files in a folder that have the names of heatmaps."""
    pattern = rf"(sheet|\d+_\w*)\.({'|'.join(HEATMAP_FORMATS)})"
    return [path for path in folder.glob("*.*") if re.fullmatch(pattern, path.name)]


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture to a .png or .pdf file that is printed at DPI, with a mark that demo.py made it."""
    content = io.BytesIO()  # Pillow reads what it has written of a PDF, and the file can only be written
    if path.suffix == ".pdf":
        picture.save(content, "PDF", resolution=DPI, quality=90, creator=MADE_BY)
    else:
        mark = PngInfo()
        mark.add_text("Software", MADE_BY)
        picture.save(content, "PNG", dpi=(DPI, DPI), pnginfo=mark)
    with atomic_write(path, "wb") as file:
        file.write(content.getvalue())


def is_heatmap(path: Path) -> bool:
    """Return whether `write_picture` wrote a file."""
    if path.suffix == ".pdf":
        return MADE_BY.encode("utf-16-be") in path.read_bytes()  # Pillow's encoding of texts in a PDF
    with Image.open(path) as picture:
        return picture.info.get("Software") == MADE_BY
