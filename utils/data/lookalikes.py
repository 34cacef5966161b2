"""Names that print alike although their characters differ, and names that are similar."""

import difflib
import unicodedata
from collections.abc import Iterable

# Marks that print nothing: variation selectors and joiners. Those of the Unicode category Cf need no list.
INVISIBLE = {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x34F, 0x17B4, 0x17B5, *range(0x180B, 0x1810)}
BLANK = {0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0}  # letters and a symbol that print a blank
# How Unicode marks characters that print like others: full-width letters, ligatures, blanks of all kinds.
PRINTED_ALIKE = {"<wide>", "<narrow>", "<noBreak>", "<compat>"}
PRINTED_ALIKE |= {"<isolated>", "<initial>", "<medial>", "<final>"}  # of Arabic letters
# The Cyrillic, Greek and Armenian letters, dashes and quotes that print like Latin characters.
# fmt: off
LOOKALIKES = {
    "a": "\u0430", "c": "\u0441", "d": "\u0501", "e": "\u0435", "g": "\u0261", "h": "\u04bb\u0570",
    "i": "\u0456", "j": "\u0458", "l": "\u04cf", "o": "\u043e\u03bf\u0585", "p": "\u0440", "q": "\u051b",
    "s": "\u0455", "u": "\u057d", "v": "\u03bd\u0475", "w": "\u051d", "x": "\u0445", "y": "\u0443",
    "A": "\u0410\u0391", "B": "\u0412\u0392", "C": "\u0421", "E": "\u0415\u0395", "H": "\u041d\u0397",
    "I": "\u0406\u0399\u04c0", "J": "\u0408", "K": "\u041a\u039a", "M": "\u041c\u039c", "N": "\u039d",
    "O": "\u041e\u039f\u0555", "P": "\u0420\u03a1", "S": "\u0405", "T": "\u0422\u03a4",
    "X": "\u0425\u03a7", "Y": "\u04ae\u03a5", "Z": "\u0396",
    "-": "\u2010\u2011\u2012\u2013\u2212", "'": "\u2018\u2019\u02bc\u2032", '"': "\u201c\u201d",
}
# fmt: on
LATIN = {ord(other): latin for latin, others in LOOKALIKES.items() for other in others}


def compose(name: str) -> str:
    """Return a name in the Unicode form NFC, in which a letter with an accent is one character."""
    return unicodedata.normalize("NFC", name)


def look(name: str) -> str:
    """Return a text that is the same for names that print alike."""
    if name.isascii():  # a fast way to the same result, for lists of thousands of names
        return " ".join(name.split())
    printed = "".join(printed_like(character) for character in compose(name))
    latin = unicodedata.normalize("NFD", printed).translate(LATIN)
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
