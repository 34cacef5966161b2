"""Find the images that places name: files, folders and patterns."""

import glob
import os
from pathlib import Path

from PIL import Image

from utils.data.decoding import FORMATS
from utils.runtime.cli import UserError


def find_photos(places: list[str], out_dir: Path | None = None) -> list[str]:
    """Return the files, and in folders the visible images, that places name, each once, none in out_dir."""
    found, extensions = [], {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    for place in places:
        files = []
        for match in [place] if os.path.exists(place) else sorted(glob.glob(place, recursive=True)):
            below = [p for p in Path(match).rglob("*") if p.suffix.lower() in extensions and p.is_file()]
            visible = [p for p in below if not any(x.startswith(".") for x in p.relative_to(match).parts)]
            files += sorted(map(str, visible)) if os.path.isdir(match) else [match]
        if not files:
            raise UserError(f"--img_dir {place} names no file, or a folder without visible images")
        found += map(os.path.normpath, files)
    if out_dir:
        prefix = f"{os.path.abspath(out_dir)}{os.sep}"
        found = [path for path in found if not os.path.abspath(path).startswith(prefix)]
    if not found:
        raise UserError(f"--out_dir {out_dir} holds the images themselves: name another folder")
    return list(dict.fromkeys(found))
