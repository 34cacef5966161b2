"""The names of the classes of a data set."""

import unicodedata
from pathlib import Path
from typing import Any

from utils.runtime.errors import UserError
from utils.runtime.files import read_json

CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # Unicode categories of control characters, surrogates and line ends


def class_names(folder: str) -> list[str]:
    """Read the class names, in target order, from data/<folder>/classes.json here or in the repository."""
    name = Path("data", folder, "classes.json")
    path = name if name.exists() else Path(__file__).resolve().parents[2] / name
    if not path.exists():
        raise UserError(f"{name} is missing: create it as a JSON list of the class names in target order")
    return check_names(read_json(path), path)


def check_names(names: Any, path: Path) -> list[str]:
    """Return the class names that a file holds; UserError if they are not a list of different names."""
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} must hold one or more class names (JSON: a list)")
    for name in names:
        if not isinstance(name, str) or not name or {*map(unicodedata.category, name)} & CONTROL:
            raise UserError(f"{path}: class names are lines without control characters, not {name!r:.99}")
    if len(set(names)) != len(names):
        raise UserError(f"{path} contains {max(names, key=names.count)!r} more than once")
    return names
