"""The files that the lists of a data set name: they must exist, and be in one split only."""

from pathlib import Path

from utils.data.label_entries import Pictures
from utils.runtime.errors import UserError
from utils.runtime.paths import FileKey, existing_spelling, find_file


def listed_file(folder: Path, name: str, source: Path) -> tuple[Path, FileKey]:
    """Return a file that `source` lists; UserError if it is missing or not in the folder."""
    if Path(name).anchor or ".." in Path(name).parts:
        raise UserError(f"{source}: {name!r} points outside of {folder.name}/: download the file again")
    path = Path(existing_spelling(str(folder / name)))
    key = find_file(path)
    if key is None:
        raise UserError(f"{path} is missing, but {source} lists it: unpack the data set again")
    return path, key


def check_no_overlap(splits: dict[str, Pictures]) -> None:
    """Raise UserError if an image file is in two splits."""
    names = {}
    for split, pictures in splits.items():
        names[split] = {key: entry["img_path"] for key, entry in pictures.items()}
    check_files_differ(names)


def check_files_differ(splits: dict[str, dict[FileKey, str]]) -> None:
    """Raise UserError if a file is in two splits; splits: the files of each, by their names in messages."""
    seen: dict[FileKey, tuple[str, str]] = {}
    for split, names in splits.items():
        for key, name in names.items():
            other_split, other_name = seen.setdefault(key, (split, name))
            if other_split != split:
                spelt = name if name == other_name else f"{other_name}, also written {name},"
                raise UserError(f"{spelt} is in {other_split} and in {split}: leave it out of one of them")
