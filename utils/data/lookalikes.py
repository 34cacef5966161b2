"""Names that print alike although their characters differ, and names that are similar."""

import difflib
import unicodedata
from collections.abc import Iterable

# Marks that print nothing: variation selectors and joiners. Those of the Unicode category Cf need no list.
INVISIBLE = {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x34F, 0x17B4, 0x17B5, *range(0x180B, 0x1810)}
BLANK = {0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0}  # letters and a symbol that print a blank
# How Unicode marks characters that print like others: full-width letters, ligatures, blanks of all kinds.
PRINTED_ALIKE = {"<wide>", "<narrow>", "<noBreak>", "<compat>"}
# Cyrillic and Greek letters and two hyphens, and in the same order the Latin characters that they print like.
FOREIGN = (
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0408\u0405"
    "\u03bf\u03bd\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    "\u2010\u2011"
)
LATIN = "aeopcyxijshdqwABEKMHOPCTXIJSovABEZHIKMNOPTYX--"
HOMOGLYPHS = str.maketrans(FOREIGN, LATIN)


def compose(name: str) -> str:
    """Return a name in the Unicode form NFC, in which a letter with an accent is one character."""
    return unicodedata.normalize("NFC", name)


def look(name: str) -> str:
    """Return a text that is the same for names that print alike."""
    printed = "".join(printed_like(character) for character in compose(name))
    latin = unicodedata.normalize("NFD", printed).translate(HOMOGLYPHS)
    return compose(" ".join(latin.split()))


def printed_like(character: str) -> str:
    """Return the plain characters that a character prints like, "" if it prints nothing."""
    if ord(character) in BLANK:
        return " "
    if ord(character) in INVISIBLE or unicodedata.category(character) == "Cf":
        return ""
    if unicodedata.decomposition(character).partition(" ")[0] in PRINTED_ALIKE:
        return unicodedata.normalize("NFKC", character)
    return character


def describe_unknown(name: str, known: list[str]) -> str:
    """Return words that name an unknown class, and the known class that is probably meant."""
    for other in known:
        if look(other) == look(name):
            return f"{name!a:.99} (it prints like {other!a:.99}, but has other characters)"
    similar = closest(name, known)
    return f"{name!r:.99}" if similar is None else f"{name!r:.99} (did you mean {similar!r:.99}?)"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a name, whatever the case of letters, or None."""
    by_lower_case = {other.casefold(): other for other in known}
    found = difflib.get_close_matches(name.casefold(), by_lower_case, n=1)
    return by_lower_case[found[0]] if found else None
