"""Find the images that places name: files, folders and patterns."""

import glob
import os
from pathlib import Path

from PIL import Image

from utils.data.decoding import FORMATS
from utils.runtime.errors import UserError


def find_photos(places: list[str], out_dir: Path | None = None) -> list[str]:
    """Return the images that places name, without repeats; UserError if a place names none.

    places: files, folders and patterns. A folder stands for all visible images below it; a file is returned
    whatever it is. out_dir: the folder that a command writes to; images below it are left out.
    """
    found: list[str] = []
    for place in places:
        images = images_of_place(place)
        if not images:
            raise UserError(f"--img_dir {place} names no file, or a folder without visible images")
        found += [os.path.normpath(image) for image in images]
    if out_dir is not None:
        found = [image for image in found if not is_below(image, out_dir)]
        if not found:
            raise UserError(f"--out_dir {out_dir} holds the images themselves: name another folder")
    return list(dict.fromkeys(found))


def images_of_place(place: str) -> list[str]:
    """Return the files that a file, folder or pattern names, sorted."""
    matches = [place]
    if not os.path.exists(place):
        matches = sorted(glob.glob(place, recursive=True))
    images = []
    for match in matches:
        if os.path.isdir(match):
            images += visible_images(Path(match))
        else:
            images.append(match)
    return images


def visible_images(folder: Path) -> list[str]:
    """Return the images below a folder, sorted; a name that starts with a dot hides a file or a folder."""
    extensions = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
    images = []
    for path in folder.rglob("*"):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in extensions and path.is_file() and not is_hidden:
            images.append(str(path))
    return sorted(images)


def is_below(path: str, folder: Path) -> bool:
    """Return whether a path lies in a folder or below it."""
    return os.path.abspath(path).startswith(f"{os.path.abspath(folder)}{os.sep}")
