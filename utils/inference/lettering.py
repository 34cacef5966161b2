"""Text in pictures: each character in a font that has it."""

from PIL import ImageDraw

from utils.runtime.fonts import default_font, load_font, split_by_font

INK = (30, 30, 30)


def text_width(text: str, size: int) -> float:
    """Return the width of a line of text in pixels; size: of the type, in pixels."""
    return sum(load_font(run.file, size).getlength(run.text) for run in split_by_font(text, default_font()))


def draw_text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int) -> None:
    """Draw a line of text; place: its left end, and the middle of its height."""
    x, middle = place
    baseline = middle + size * 0.35  # half the height of a capital letter
    for run in split_by_font(text, default_font()):
        font = load_font(run.file, size)
        draw.text((x, baseline), run.text, INK, font, anchor="ls")
        x += font.getlength(run.text)


def shorten(text: str, size: int, width: float) -> str:
    """Cut the start of a text so that the rest fits: the end of a path says the most."""
    if text_width(text, size) <= width:
        return text
    for start in range(len(text)):
        shorter = f"…{text[start:]}"
        if text_width(shorter, size) <= width:
            return shorter
    return "…"
