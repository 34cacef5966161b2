"""Pictures of more than 8 bits, and transparent ones, wherever images are read."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import demo
import main
from helpers import OWN, TINY, make_own
from utils import prepare_csv
from utils.checkpoint import load_model
from utils.data.decoding import load_image
from utils.data.pixels import rgb_pixels
from utils.runtime.errors import UserError

GREY = np.arange(256, dtype=np.uint8).reshape(8, 32)
WIDE = GREY.astype(np.uint16) * 257
II, MM = "<", ">"
UNKNOWN_RANGE = "whose range is unknown: save it with 8 or 16 bits"


def write_tiff(path: Path, order: str, data: bytes, bits: tuple[int, ...], photometric: int, **tags) -> None:
    """Write a TIFF file of 32 x 8 pixels in one strip."""
    mark = {II: b"II", MM: b"MM"}[order]
    strip = 8
    extra = strip + len(data)
    entries = []
    values = {256: (32,), 257: (8,), 258: bits, 259: (1,), 262: (photometric,), 277: (len(bits),), 278: (8,)}
    values |= {int(tag.removeprefix("tag")): value for tag, value in tags.items()}
    tail = b""
    for tag, numbers in sorted((values | {273: (strip,), 279: (len(data),)}).items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        kind = 3
        if tag in (273, 279):
            packed, kind = struct.pack(f"{order}I", *numbers), 4
        if len(packed) > 4:
            tail += packed
            packed = struct.pack(f"{order}I", extra + len(tail) - len(packed))
        entries.append(struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0"))
    directory = extra + len(tail)
    head = mark + struct.pack(f"{order}HI", 42, directory)
    count = struct.pack(f"{order}H", len(entries))
    path.write_bytes(head + data + tail + count + b"".join(entries) + bytes(4))


def write_png(path: Path, colour_type: int, values: np.ndarray, transparent: tuple[int, ...] = ()) -> None:
    """Write a PNG file of 16 bits per channel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if transparent:
        content += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    path.write_bytes(content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def pgm(maximum: int, plain: bool = False) -> bytes:
    """Return a PGM file of the grey values, scaled to a maximum."""
    values = np.round(GREY / 255 * maximum).astype(np.uint16)
    if plain:
        return f"P2 32 8 {maximum}\n{' '.join(map(str, values.ravel()))}\n".encode()
    return b"P5 32 8 %d\n" % maximum + values.astype(">u2").tobytes()


def write_grey(path: Path, form: str) -> None:
    """Write the grey values in one of the forms that have more than 8 bits."""
    match form:
        case "png" | "jp2" | "tif":
            Image.fromarray(WIDE).save(path)
        case "tif deflate" | "tif lzw":
            Image.fromarray(WIDE).save(
                path, compression=f"tiff_{form[4:]}".replace("tiff_deflate", "tiff_adobe_deflate")
            )
        case "tif big-endian":
            write_tiff(path, MM, WIDE.astype(">u2").tobytes(), (16,), 1)
        case "tif white is zero":
            write_tiff(path, II, (65535 - WIDE).tobytes(), (16,), 0)
        case "tif 12 bits":
            pairs = (GREY.astype(np.uint32) << 4 | GREY >> 4).reshape(-1, 2)
            packed = pairs[:, 0] << 12 | pairs[:, 1]
            write_tiff(path, II, b"".join(int(pair).to_bytes(3, "big") for pair in packed), (12,), 1)
        case "shifted png":
            Image.fromarray(GREY.astype(np.uint16) << 8).save(path)
        case _:
            maximum, _, plain = form.removeprefix("pgm ").partition(" ")
            path.write_bytes(pgm(int(maximum), plain == "plain"))


FORMS = ["png", "shifted png", "jp2", "tif", "tif deflate", "tif lzw", "tif big-endian", "tif white is zero"]
FORMS += ["tif 12 bits", "pgm 65535", "pgm 4095", "pgm 1023", "pgm 300", "pgm 65535 plain", "pgm 1000 plain"]


@pytest.mark.parametrize("form", FORMS)
def test_grey_of_more_than_8_bits_is_read_as_the_8_bit_original(tmp_path, form):
    path = tmp_path / "a.img"
    if form in ("png", "jp2", "tif", "tif deflate", "tif lzw", "shifted png"):
        path = tmp_path / f"a.{form.split()[-1] if 'png' in form else form.split()[0]}"
    write_grey(path, form)
    expected = torch.from_numpy(GREY).expand(3, -1, -1)
    assert torch.equal(load_image(str(path)), expected)
    with Image.open(path) as image:
        assert torch.equal(rgb_pixels(image, "the image"), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_pillow_images_of_16_bits_in_each_byte_order(mode):
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (32, 8), WIDE.astype(order).tobytes())
    assert torch.equal(rgb_pixels(image, "the image"), torch.from_numpy(GREY).expand(3, -1, -1))


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_of_16_bits_are_read_as_the_8_bit_original(tmp_path, alpha):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (8, 32, 3), np.uint8)
    wide = colours.astype(np.uint16) * 257
    if alpha:
        wide = np.concatenate([wide, np.full_like(wide[..., :1], 65535)], axis=2)
    paths = [tmp_path / name for name in ("a.png", "little.tif", "big.tif")]
    write_png(paths[0], 6 if alpha else 2, wide)
    tags = {"tag338": (2,)} if alpha else {}
    write_tiff(paths[1], II, wide.astype("<u2").tobytes(), (16,) * wide.shape[2], 2, **tags)
    write_tiff(paths[2], MM, wide.astype(">u2").tobytes(), (16,) * wide.shape[2], 2, **tags)
    for path in paths:
        assert torch.equal(load_image(str(path)), torch.from_numpy(colours).permute(2, 0, 1)), path.name


@pytest.mark.parametrize("order", [II, MM])
def test_16_bit_planes_that_pillow_misreads_are_refused_by_name(tmp_path, order):
    for bits in (16, 8):
        path = tmp_path / f"{bits}.tif"
        write_tiff(path, order, GREY.astype(f"{order}u{bits // 8}").tobytes(), (bits,), 1, tag284=(2,))
    assert torch.equal(load_image(str(tmp_path / "8.tif")), torch.from_numpy(GREY).expand(3, -1, -1))
    with pytest.raises(UserError, match=r"16.tif stores 16-bit channels in separate planes"):
        load_image(str(tmp_path / "16.tif"))


UNKNOWN = {
    "32.tif": ("I", GREY.astype(np.int32)),
    "float.tif": ("F", GREY.astype(np.float32) / 255),
    "float.pfm": ("F", GREY.astype(np.float32) / 255),
    "signed.tif": ("I", None),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_values_of_unknown_range_are_refused_by_name(tmp_path, name):
    mode, values = UNKNOWN[name]
    path = tmp_path / name
    if values is None:
        write_tiff(path, II, WIDE.tobytes(), (16,), 1, tag339=(2,))
    else:
        Image.fromarray(values).save(path)
    with pytest.raises(UserError, match=rf"{name} has .* values \(mode {mode}\), {UNKNOWN_RANGE}"):
        load_image(str(path))
    with Image.open(path) as image, pytest.raises(UserError, match=f"^the image has .*{UNKNOWN_RANGE}"):
        rgb_pixels(image, "the image")


def test_every_way_in_reads_16_bits_and_refuses_unknown_ranges(trained, workdir, command, fails):
    Image.fromarray(np.kron(GREY, np.ones((6, 2), np.uint8))).save("8.png")
    with Image.open("8.png") as image:
        eight = np.asarray(image)
    Image.fromarray(eight.astype(np.uint16) * 257).save("16.png")
    Image.fromarray(eight.astype(np.float32)).save("float.tif")
    model = load_model(trained / "best.pth", device="cpu")
    with Image.open("16.png") as image, Image.open("float.tif") as unknown:
        scores = [model.predict(photo) for photo in ("8.png", "16.png", image)]
        assert scores[0] == scores[1] == scores[2]
        with pytest.raises(UserError, match="the image has floating-point values"):
            model.predict(unknown)
    label = ["--load_from", trained / "best.pth", "--device", "cpu", "--num_workers", 0, "--heatmap"]
    result = command(demo, *label, "--img_dir", "8.png", "16.png", "float.tif", "--top", 2)
    assert result.status == 1
    assert "skipped: float.tif has floating-point values" in result.err
    lines = [line.partition(": ")[2] for line in result.out.splitlines() if ".png: " in line]
    assert lines[0] == lines[1] != ""
    sheets = [next(Path("heatmaps", name).glob("1_*.png")).read_bytes() for name in ("8.png", "16.png")]
    assert sheets[0] == sheets[1]

    Path("t.csv").write_text("image,labels\n8.png,a\n16.png,b\nfloat.tif,a\n")
    fails(prepare_csv, "t.csv", "--dataset", "mine", "--verify", says=["1 of 3 images", "float.tif", "range"])
    entries = make_own(workdir)
    Image.fromarray(eight.astype(np.int32)).save(entries[0]["img_path"].replace("png", "tif"))
    Path(entries[0]["img_path"].replace("png", "tif")).rename(entries[0]["img_path"])
    fails(main, *OWN, *TINY, "--output_dir", "run", says=["0.png", "32-bit or signed"])


def transparent_photo(alpha: np.ndarray) -> Image.Image:
    """Return a picture with noise under its transparency; alpha: uint8 (8, 32)."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 32, 3), np.uint8)
    return Image.fromarray(np.dstack([colours, alpha]))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.jp2"])
def test_transparent_parts_become_white_and_opaque_ones_keep_their_colours(tmp_path, name):
    alpha = np.tile(np.array([0, 255], np.uint8), (8, 16))
    image = transparent_photo(alpha)
    image.save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    pixels = load_image(str(tmp_path / name)).permute(1, 2, 0).numpy()
    assert (pixels[alpha == 0] == 255).all()
    assert (pixels[alpha == 255] == np.asarray(image)[alpha == 255][:, :3]).all()


def test_half_transparent_parts_are_mixed_with_white(tmp_path):
    transparent_photo(GREY).save(tmp_path / "a.png")
    colours = np.asarray(transparent_photo(GREY))[..., :3].astype(float)
    alpha = GREY[..., None] / 255
    expected = colours * alpha + 255 * (1 - alpha)
    pixels = load_image(str(tmp_path / "a.png")).permute(1, 2, 0).numpy()
    assert np.abs(pixels - expected).max() <= 1


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
@pytest.mark.parametrize("level", [255, 0])
def test_a_picture_that_is_opaque_or_all_transparent_keeps_every_bit(mode, level):
    image = transparent_photo(np.full_like(GREY, level))
    image = image.convert(mode) if mode != "PA" else image.convert("P").convert("PA")
    if mode in ("P", "L", "RGB"):
        image.info["transparency"] = {"P": bytes([level] * 256), "L": 256, "RGB": (256, 0, 0)}[mode]
    expected = np.array(image.convert("RGB"))
    ours = rgb_pixels(image, "the image")
    assert (ours.permute(1, 2, 0).numpy() == expected).all()


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_colours_that_are_multiplied_by_their_alpha_are_read(mode):
    plain = transparent_photo(GREY).convert(mode.upper())
    difference = rgb_pixels(plain.convert(mode), "the image").int() - rgb_pixels(plain, "the image").int()
    assert difference.abs().max() <= 1


def test_a_transparent_colour_of_a_palette_or_of_grey_becomes_white(tmp_path):
    palette = transparent_photo(np.full_like(GREY, 255)).convert("RGB").convert("P")
    palette.save(tmp_path / "a.png", transparency=int(np.asarray(palette)[0, 0]))
    palette.save(tmp_path / "a.gif", transparency=int(np.asarray(palette)[0, 0]))
    for name in ("a.png", "a.gif"):
        assert load_image(str(tmp_path / name))[:, 0, 0].tolist() == [255, 255, 255]
    Image.fromarray(GREY).save(tmp_path / "grey.png", transparency=7)
    write_png(tmp_path / "grey16.png", 0, WIDE, (7 * 257,))
    expected = GREY.copy()
    expected[GREY == 7] = 255
    for name in ("grey.png", "grey16.png"):
        assert (load_image(str(tmp_path / name)).numpy() == expected).all()


@pytest.mark.parametrize("kind", [(2, 1), (7, 1)], ids=["text", "bytes"])
def test_a_tiff_whose_tile_width_is_no_number_is_refused(trained, tmp_path, kind):
    path = tmp_path / "a.tif"
    write_tiff(path, II, GREY.tobytes(), (8,), 1, tag322=(64,))
    content = path.read_bytes()
    entry = struct.pack("<HHI", 322, 3, 1)
    assert content.count(entry) == 1
    path.write_bytes(content.replace(entry, struct.pack("<HHI", 322, *kind)))
    model = load_model(trained / "best.pth", device="cpu")
    with Image.open(path) as image:
        for photo, name in ((path, "a.tif"), (image, "the image")):
            with pytest.raises(UserError, match=f"{name} cannot be read"):
                model.predict(photo)


def test_a_damaged_pillow_image_is_a_mistake_of_the_user(trained, tmp_path):
    transparent_photo(GREY).resize((200, 200)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    model = load_model(trained / "best.pth", device="cpu")
    with Image.open(tmp_path / "a.png") as image, pytest.raises(UserError, match="the image cannot be read"):
        model.predict(image)


@pytest.mark.parametrize("answer", [1, b"yes", [0]])
def test_a_format_is_accepted_by_any_true_answer_that_is_no_text(tmp_path, monkeypatch, answer):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    read_header, _ = Image.OPEN["PNG"]
    monkeypatch.setitem(Image.OPEN, "PNG", (read_header, lambda start: answer))
    assert load_image(str(tmp_path / "a.png")).shape == (3, 8, 32)
    monkeypatch.setitem(Image.OPEN, "PNG", (read_header, lambda start: "this Pillow lacks PNG"))
    with pytest.raises(UserError, match=r"a.png cannot be read"):
        load_image(str(tmp_path / "a.png"))
