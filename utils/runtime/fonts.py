"""The fonts of this system, and which of them can draw a character."""

import functools
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

from utils.runtime.errors import one_line

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

PLAIN_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")
PILLOWS_OWN = ""  # stands for the font inside Pillow, which has little more than ASCII
ENDINGS = (".ttf", ".ttc", ".otf", ".otc")
SPECIAL_STYLE = re.compile("bold|italic|oblique|black|heavy|light|thin|condensed|mono|serif", re.IGNORECASE)
NO_REAL_FONT = "LastResort"  # a font of macOS that draws a box for every character
IN_NO_FONT = "\U0010ffff"  # a code that never gets a character: each font draws its box for it
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "FULLWIDTH", "HALFWIDTH", "IDEOGRAPHIC")
MAX_NAMED = 10


class FontRun(NamedTuple):
    """A part of a text, and the font file that draws it."""

    text: str
    file: str


def default_font() -> str:
    """Return the file of a plain font that this system has, or PILLOWS_OWN."""
    return next((file for file in PLAIN_FONTS if can_load(file)), PILLOWS_OWN)


@functools.cache
def can_load(file: str) -> bool:
    """Return whether Pillow finds a font file and can read it."""
    try:
        load_font(file, 16)
    except (OSError, ValueError):  # there is no such file, or it holds pictures of one size only
        return False
    return True


@functools.lru_cache(maxsize=1000)
def load_font(file: str, size: int) -> Font:
    """Return a font of a size in pixels; OSError if the file cannot be read."""
    return ImageFont.load_default(size) if file == PILLOWS_OWN else ImageFont.truetype(file, size)


def font_folders() -> list[Path]:
    """Return the folders where Linux, macOS or Windows keep fonts, of all users and of this one."""
    home = Path.home()
    if sys.platform == "win32":
        windows = Path(os.environ.get("WINDIR", "C:/Windows"))
        local = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
        return [windows / "Fonts", local / "Microsoft" / "Windows" / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    own = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    shared = (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(os.pathsep)
    return [*(Path(folder) / "fonts" for folder in shared), own / "fonts", home / ".fonts"]


@functools.cache
def system_fonts() -> list[str]:
    """Return the font files of this system, plain ones first."""
    files = []
    for folder in font_folders():
        for place, _, names in os.walk(folder, followlinks=True):
            files += [os.path.join(place, name) for name in names if name.lower().endswith(ENDINGS)]
    real = [file for file in files if NO_REAL_FONT not in os.path.basename(file)]
    return sorted(set(real), key=lambda file: (bool(SPECIAL_STYLE.search(os.path.basename(file))), file))


@functools.cache
def has_character(file: str, character: str) -> bool:
    """Return whether a font can draw a character: it leaves ink, and other than the box for a missing one."""
    if not can_load(file):
        return False
    font = load_font(file, 32)
    drawn = font.getmask(character)
    box = font.getmask(IN_NO_FONT)
    return drawn.getbbox() is not None and (drawn.size, bytes(drawn)) != (box.size, bytes(box))


@functools.cache
def find_font(character: str, first: str) -> str | None:
    """Return the file of the font `first` or of another font that can draw a character; None if none can."""
    return next((file for file in (first, *system_fonts()) if has_character(file, character)), None)


def needs_no_font(character: str) -> bool:
    """Return whether a character is a space, an invisible mark or an accent, drawn with the one before it."""
    return unicodedata.category(character)[0] in "ZCM"


def split_by_font(text: str, first: str) -> list[FontRun]:
    """Split a text into the longest runs that one font can draw.

    first: the font of all characters that it has, and of those that no font has.
    """
    runs: list[FontRun] = []
    for character in text:
        if needs_no_font(character):
            file = runs[-1].file if runs else first
        else:
            file = find_font(character, first) or first
        if runs and runs[-1].file == file:
            runs[-1] = FontRun(runs[-1].text + character, file)
        else:
            runs.append(FontRun(character, file))
    return runs


def undrawable_characters(text: str, first: str) -> list[str]:
    """Return the characters of a text that no font of this system can draw."""
    return [c for c in text if not needs_no_font(c) and find_font(c, first) is None]


def report_undrawable(names: Iterable[str], first: str) -> None:
    """Print a line on stderr if no font can draw some of the names, and say what to install."""
    missing = {name: undrawable_characters(name, first) for name in dict.fromkeys(names)}
    bad_names = [name for name, characters in missing.items() if characters]
    if not bad_names:
        return
    listed = ", ".join(bad_names[:MAX_NAMED])
    if len(bad_names) > MAX_NAMED:
        listed += f" and {len(bad_names) - MAX_NAMED} more"
    characters = "".join("".join(missing[name]) for name in bad_names)
    font, package = "Noto Sans", "fonts-noto-core"
    if any(unicodedata.name(character, "").startswith(CJK) for character in characters):
        font, package = "Noto Sans CJK", "fonts-noto-cjk"
    advice = f"install {font} (Debian, Ubuntu: apt-get install {package})"
    print(one_line(f"no font here can draw {listed}: the pictures show boxes; {advice}"), file=sys.stderr)
