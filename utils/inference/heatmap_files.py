"""The heatmaps that demo.py writes: a folder for each photograph, with a picture per class and a sheet."""

import os
import re
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.csra import AveragePooling
from utils.data.decoding import load_image
from utils.inference.heatmap import ClassMap, contact_sheet, panel
from utils.inference.predictor import Labelled, Predictor
from utils.runtime.files import atomic_write, check_folder, check_replaceable

MADE_BY = "CSRA demo.py"


def heatmap_folders(out_dir: Path, paths: list[str]) -> dict[str, Path]:
    """Return a folder for the pictures of each image, in the same subfolders of out_dir as the image.

    Raises UserError if one of them cannot be written to, or holds pictures of these names from elsewhere.
    """
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    folders = {path: out_dir / os.path.relpath(path, common) for path in paths}
    for folder in folders.values():
        check_folder(folder, "--out_dir")
        for picture in earlier_pictures(folder):
            check_replaceable(picture, "--out_dir:", is_heatmap, "demo.py")
    return folders


def class_maps(predictor: Predictor, result: Labelled, classes: list[int]) -> list[ClassMap]:
    """Return the ClassMaps of some classes of a photograph: shares for CSRA, scores for average pooling."""
    assert result.maps is not None
    has_attention = not isinstance(predictor.network.classifier, AveragePooling)
    found = []
    for c in classes:
        values = result.maps[c]
        if has_attention:
            measure = "share of attention"
            maximum = f"{100 * values.max():.0f} %"
        else:
            measure = "score of the place"
            maximum = f"{max(0, values.max()):.1f}"
        found.append(ClassMap(predictor.classes[c], float(result.scores[c]), values, maximum, measure))
    return found


def write_heatmaps(folder: Path, path: str, max_pixels: float, maps: list[ClassMap]) -> None:
    """Write a picture for each class to a folder, and a sheet of them all, in place of earlier ones."""
    image = Image.fromarray(load_image(path, max_pixels, exif=True).permute(1, 2, 0).numpy())
    for earlier in earlier_pictures(folder):
        earlier.unlink()
    write_png(folder / "sheet.png", contact_sheet(image, maps, os.path.basename(path)))
    for rank, class_map in enumerate(maps, start=1):
        name = re.sub(r"\W+", "_", class_map.name)[:50]
        write_png(folder / f"{rank}_{name}.png", panel(image, class_map))


def earlier_pictures(folder: Path) -> list[Path]:
    """Return the files in a folder that have the names of heatmaps."""
    return [path for path in folder.glob("*.png") if re.fullmatch(r"sheet\.png|\d+_\w*\.png", path.name)]


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture to a file, with a mark that demo.py made it."""
    mark = PngInfo()
    mark.add_text("Software", MADE_BY)
    with atomic_write(path, "wb") as file:
        picture.save(file, "PNG", pnginfo=mark)


def is_heatmap(path: Path) -> bool:
    """Return whether `write_png` wrote a file."""
    with Image.open(path) as picture:
        return picture.info.get("Software") == MADE_BY
