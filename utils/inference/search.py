"""Find the images that places name: files, folders and patterns."""

import fnmatch
import glob
import os
import stat
from collections import deque
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from utils.data.decoding import IMAGE_FORMATS, START_BYTES, possible_formats
from utils.runtime.errors import UserError, out_of_files_message
from utils.runtime.paths import existing_spelling, file_key

# Endings of images in other formats, which must not be left out of a folder without a word: new formats of
# photographs (some versions of Pillow read some of them), raw files of cameras, drawings, other pictures, and
# measured values.
UNREAD = (
    ".avif .avifs .bpg .heic .heif .hif .jls .jxl .jxr .wdp .webp "
    ".3fr .arw .cap .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf "
    ".pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f "
    ".emf .eps .kra .ora .psb .psd .svg .svgz .wmf .xcf "
    ".cur .dds .dib .djvu .icns .ico .pcx .pict .qoi .ras .sgi .tga .xbm .xpm "
    ".dcm .exr .fits .fts .hdr"
)


class Skipped(NamedTuple):
    """A file or folder that seems to hold images but cannot be read, and why."""

    path: str
    reason: str


class Found(NamedTuple):
    """What places name: images, and what seems to be images and is not read."""

    images: list[str]
    skipped: list[Skipped]


class Tree(NamedTuple):
    """The visible folders and files at and below a folder, and those that cannot be read."""

    folders: list[str]
    files: list[str]
    skipped: list[Skipped]


def find_photos(places: list[str], written: dict[str, Path] | None = None) -> Found:
    """Return the images that places name, without repeats; UserError if a place names none.

    places: files, folders and patterns. A folder stands for all visible images below it; a file is returned
    whatever it is. written: the folders that a command writes to, by option; images below them are left out.
    """
    images: list[str] = []
    skipped: list[Skipped] = []
    for place in places:
        found = images_of_place(place)
        if not found.images:
            raise UserError(f"--img_dir {place} {why_empty(place, found.skipped)}")
        images += found.images
        skipped += [entry._replace(path=os.path.normpath(entry.path)) for entry in found.skipped]
    for option, folder in (written or {}).items():
        images = [path for path in images if not is_below(path, folder)]
        skipped = [entry for entry in skipped if not is_below(entry.path, folder)]
        if not images:
            raise UserError(f"{option} {folder} holds the images themselves: name another folder")
    return Found(without_repeats(images), list(dict.fromkeys(skipped)))


def why_empty(place: str, skipped: list[Skipped]) -> str:
    """Return in words why a place names no image that can be read."""
    if not skipped:
        try:
            os.stat(place)
        except PermissionError as error:
            return f"cannot be read: {error.strerror}"
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            pass
        return "names no file, or a folder without visible images"
    first = skipped[0]
    return f"names no image that can be read ({len(skipped)} skipped), first {first.path}: {first.reason}"


def images_of_place(place: str) -> Found:
    """Return the files that a file, folder or pattern names, sorted."""
    place = existing_spelling(place)
    matches: list[str] = [place]
    images: list[str] = []
    skipped: list[Skipped] = []
    if not os.path.exists(place):
        if "**" in Path(place).parts:
            matches, skipped = matches_below(place)
        else:
            matches = glob.glob(place)
    for match in sorted(matches):
        if os.path.isdir(match):
            found = visible_images(match)
            images += found.images
            skipped += found.skipped
        else:
            images.append(match)
    return Found(images, skipped)


def matches_below(pattern: str) -> tuple[list[str], list[Skipped]]:
    """Return the visible files and folders that match a pattern with **, and what cannot be read on the way.

    glob would follow a link to a folder above it again and again, and says nothing of an unreadable folder.
    """
    parts = Path(pattern).parts
    depth = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    tree = walk(os.path.join(".", *parts[:depth]))
    matches = []
    for path in (*tree.folders, *tree.files):
        if is_match(Path(path).parts[depth:], parts[depth:]):
            matches.append(path)
    return matches, tree.skipped


def is_match(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Return whether the parts of a path match those of a pattern; ** stands for any number of parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(is_match(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and is_match(parts[1:], pattern[1:])


def visible_images(folder: str) -> Found:
    """Return the images below a folder, sorted; a name that starts with a dot hides a file or a folder.

    The ending of a name tells whether it is an image; without an ending, the first bytes do.
    """
    tree = walk(folder)
    read = read_endings()
    unread = UNREAD.split()
    images = []
    skipped = tree.skipped
    for path in tree.files:
        ending = os.path.splitext(path)[1].lower()
        if ending in read and os.path.isfile(path):
            images.append(path)
        elif ending in read:
            skipped.append(Skipped(path, "not a regular file"))
        elif not ending and starts_as_image(path):
            images.append(path)
        elif ending in unread:
            skipped.append(Skipped(path, f"{ending} files are not read: convert it to JPEG or PNG"))
    return Found(sorted(images), sorted(skipped))


def starts_as_image(path: str) -> bool:
    """Return whether a file starts as an image does; False if it cannot be read."""
    if not os.path.isfile(path):
        return False  # opening a pipe would wait for a writer
    try:
        with open(path, "rb") as file:
            return bool(possible_formats(file.read(START_BYTES)))
    except OSError:
        return False


def read_endings() -> set[str]:
    """Return the endings of the image files that are read, in small letters with the dot."""
    formats = (*IMAGE_FORMATS, "MPO")  # JPEG files with several pictures
    return {ending for ending, name in Image.registered_extensions().items() if name in formats}


def walk(root: str) -> Tree:
    """Return what lies at and below a folder; links to folders are followed.

    Each folder is visited once, however many links lead to it. Links are followed last, so a folder that also
    lies below the root without a link has that path.
    """
    tree = Tree([], [], [])
    visited = set()
    folders, linked = deque([root]), deque[str]()
    while folders or linked:
        folder = folders.popleft() if folders else linked.popleft()
        try:
            key = file_key(folder)
            if key in visited:
                continue
            visited.add(key)
            paths = visible_paths(folder)
        except OSError as error:
            tree.skipped.append(Skipped(folder, why_unreadable(error)))
            continue
        tree.folders.append(folder)
        for path in paths:
            try:
                is_folder = stat.S_ISDIR(os.stat(path).st_mode)
            except OSError as error:
                tree.skipped.append(Skipped(path, why_unreadable(error)))
                continue
            if not is_folder:
                tree.files.append(path)
            elif os.path.islink(path):
                linked.append(path)
            else:
                folders.append(path)
    return tree


def visible_paths(folder: str) -> list[str]:
    """Return the paths of the files and folders in a folder whose names do not start with a dot, sorted."""
    names = sorted(os.listdir(folder))
    return [os.path.join(folder, name) for name in names if not name.startswith(".")]


def why_unreadable(error: OSError) -> str:
    """Return in words why a file or folder cannot be read; a shortage, which concerns all, is raised."""
    if out_of_files_message(error):
        raise error
    if isinstance(error, FileNotFoundError):
        return "a link to something that is missing"
    return error.strerror or str(error)


def without_repeats(paths: list[str]) -> list[str]:
    """Return normalised paths, one for each name in each folder, whatever links lead to the folder."""
    first: dict[tuple[str, str], str] = {}
    for path in map(os.path.normpath, paths):
        folder, name = os.path.split(path)
        first.setdefault((os.path.realpath(folder), name), path)
    return list(first.values())


def is_below(path: str, folder: Path) -> bool:
    """Return whether a path lies in a folder or below it."""
    return os.path.abspath(path).startswith(f"{os.path.abspath(folder)}{os.sep}")
