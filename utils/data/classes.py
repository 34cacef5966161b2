"""The names of the classes of a data set."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from utils.data.datasets import preparer
from utils.data.lookalikes import compose, describe_unknown, look
from utils.runtime.errors import UserError
from utils.runtime.files import read_json

CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # Unicode categories of control characters, surrogates and line ends


class KnownClasses(NamedTuple):
    """The classes that a new data set may have, and the option that names them."""

    names: list[str]
    option: str

    def unknown(self, name: str, where: str) -> UserError:
        """Return the error, which starts with `where`, for a name that is none of the classes."""
        return UserError(f"{where}: {self.option} has no class {describe_unknown(name, self.names)}")


def class_names(folder: str) -> list[str]:
    """Read the class names, in target order, from data/<folder>/classes.json here or in the repository."""
    name = Path("data", folder, "classes.json")
    path = name if name.exists() else Path(__file__).resolve().parents[2] / name
    if not path.exists():
        script = preparer(folder)
        way_out = f"make it with: python utils/{script}" if script else "create it as a JSON list of names"
        raise UserError(f"{name} is missing: {way_out}")
    names = check_names(read_json(path), path)
    check_looks(names, path)
    return names


def check_names(names: Any, path: Path) -> list[str]:
    """Return the class names that a file holds, in the Unicode form NFC.

    Raises UserError if they are not a list of different names.
    """
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} must hold one or more class names (JSON: a list)")
    for name in names:
        if not isinstance(name, str) or not name or {*map(unicodedata.category, name)} & CONTROL:
            raise UserError(f"{path}: class names are lines without control characters, not {name!r:.99}")
    composed = [compose(name) for name in names]
    if len(set(composed)) != len(composed):
        repeated = max(composed, key=composed.count)
        forms = sorted({name for name in names if compose(name) == repeated})
        spelt = "" if len(forms) == 1 else f" ({' and '.join(map(ascii, forms))})"
        raise UserError(f"{path} contains {repeated!r} more than once{spelt}")
    return composed


def check_looks(names: Iterable[str], source: Path) -> None:
    """Raise UserError if different class names print alike; it names both, with escapes."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(look(name), name)
        if other != name:
            fault = f"the classes {other!a} and {name!a} print alike"
            raise UserError(f"{source}: {fault}: write both the same way, or rename one")


def is_class_list(path: Path) -> bool:
    """Return whether a file holds a list of names."""
    names = read_json(path)
    return isinstance(names, list) and all(isinstance(name, str) for name in names)
