"""Names in any script are drawn by a font that has it, or reported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw, ImageFont

from utils import plot
from utils.inference.lettering import draw_text, shorten, text_width
from utils.runtime import fonts


def rectangle(width: int, height: int):
    """A glyph with one corner at the start of the baseline."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((0, height))
    pen.lineTo((width, height))
    pen.lineTo((width, 0))
    pen.closePath()
    return pen.glyph()


@pytest.fixture
def font_folder(tmp_path, monkeypatch) -> Path:
    """An empty folder in the place of those where this system keeps its fonts."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    monkeypatch.setattr(fonts, "font_folders", lambda: [folder])
    forget_fonts()
    yield folder
    forget_fonts()


def forget_fonts() -> None:
    for function in (fonts.system_fonts, fonts.has_character, fonts.find_font, fonts.can_load):
        function.cache_clear()


def add_font(folder: Path, name: str, characters: str) -> str:
    """Make a font whose characters are bars of half the height of its box for a missing one."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "bar"])
    builder.setupCharacterMap({ord(character): "bar" for character in characters})
    builder.setupGlyf({".notdef": rectangle(600, 800), "bar": rectangle(900, 400)})
    builder.setupHorizontalMetrics({".notdef": (700, 0), "bar": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular", "psName": name})
    builder.setupOS2()
    builder.setupPost()
    path = folder / f"{name}.ttf"
    builder.save(path)
    return str(path)


def drawn(text: str) -> np.ndarray:
    canvas = Image.new("RGB", (300, 40), "white")
    draw_text(ImageDraw.Draw(canvas), (5, 20), text, 20)
    return np.asarray(canvas.convert("L")) < 128


def test_each_character_is_drawn_by_a_font_that_has_it(font_folder, capsys):
    dog = add_font(font_folder, "Chinese", "狗")
    first = fonts.default_font()
    assert fonts.split_by_font("狗 0.9", first) == [fonts.FontRun("狗 ", dog), fonts.FontRun("0.9", first)]
    assert fonts.split_by_font("dog", first) == [fonts.FontRun("dog", first)]
    assert fonts.split_by_font("", first) == []
    columns = np.flatnonzero(drawn("狗").any(axis=0))
    assert columns[0] == pytest.approx(5, abs=1)
    assert columns[-1] == pytest.approx(5 + 18, abs=1)  # a bar 0.9 em wide, not a box
    assert text_width("狗狗", 20) == 40
    assert text_width("狗x", 20) == 20 + text_width("x", 20)
    assert shorten("狗" * 50, 20, 90).startswith("…狗狗")
    fonts.report_undrawable(["狗", "dog"], first)
    assert capsys.readouterr() == ("", "")


def test_an_accent_stays_with_its_letter_and_a_plain_font_comes_first(font_folder):
    bold = add_font(font_folder, "A Bold", "狗猫")
    plain = add_font(font_folder, "Plain", "猫")
    first = fonts.default_font()
    assert fonts.split_by_font("猫\u0301", first) == [fonts.FontRun("猫\u0301", plain)]
    assert fonts.split_by_font("狗", first) == [fonts.FontRun("狗", bold)]


def test_names_that_no_font_has_are_named_with_what_to_install(font_folder, capsys):
    add_font(font_folder, "Chinese", "狗")
    (font_folder / "broken.ttf").write_bytes(b"no font")
    fonts.report_undrawable(["狗", "猫", "dog", "高い"], fonts.default_font())
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "can draw 猫, 高い: " in err
    assert "fonts-noto-cjk" in err
    fonts.report_undrawable(["ไก่"], fonts.default_font())
    assert "fonts-noto-core" in capsys.readouterr().err
    fonts.report_undrawable([f"猫{number}" for number in range(30)], fonts.default_font())
    assert "猫9 and 20 more: " in capsys.readouterr().err


def test_a_font_of_boxes_draws_no_character(font_folder):
    shutil.copy(add_font(font_folder, "Chinese", "狗"), font_folder / "LastResort.ttf")
    (font_folder / "Chinese.ttf").unlink()
    assert fonts.find_font("狗", fonts.default_font()) is None


def test_charts_draw_names_in_other_scripts(font_folder, workdir, command):
    add_font(font_folder, "ChineseFont", "狗")
    Path("r.json").write_text(json.dumps({"AP": {"狗": 0.5, "cat": 0.75}}))
    for format in ("png", "pdf", "svg"):
        result = command(plot, "r.json", "--out", "charts", "--format", format)
        assert (result.status, result.err) == (0, "")
    assert b"ChineseFont" in Path("charts/ap_r.pdf").read_bytes()
    Path("r.json").write_text(json.dumps({"AP": {"猫": 0.5, "cat": 0.75}}))
    result = command(plot, "r.json", "--out", "charts")
    assert (result.status, result.err.count("\n")) == (0, 1)
    assert "can draw 猫: " in result.err


def test_the_folders_of_this_system_have_fonts():
    assert all(path.is_absolute() for path in fonts.font_folders())
    assert isinstance(fonts.load_font(fonts.default_font(), 12), ImageFont.FreeTypeFont)
