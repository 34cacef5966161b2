"""Compare decoded and resized pixels with Pillow's, and random crops with torchvision's."""

import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import RandomResizedCrop, v2

import demo
from helpers import REPOSITORY, finish, make_own, start_preloaded
from utils.data.datasets import DATASETS, dataset_spec
from utils.data.decoding import load_image
from utils.data.labels import Labels, Paths, Targets
from utils.data.loaders import EvaluationLoader
from utils.data.samples import LabelledImages, load_split
from utils.data.transforms import eval_transform, random_crop, train_transform
from utils.runtime.errors import UserError


def photo(mode: str = "RGB", size: tuple[int, int] = (70, 50)) -> Image.Image:
    """Draw a picture with waves and noise in every channel."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rng = np.random.default_rng(0)
    channels = [127 + 90 * np.sin(x / (3 + c) + y / (5 - c)) + rng.normal(0, 9, x.shape) for c in range(3)]
    image = Image.fromarray(np.clip(np.stack(channels, axis=2), 0, 255).astype(np.uint8))
    return image.convert(mode)


CASES = [
    ("RGB", "a.jpg", {}),
    ("RGB", "a.jpg", {"progressive": True, "quality": 40}),
    ("L", "a.jpg", {}),
    ("CMYK", "a.jpg", {}),
    ("RGB", "a.png", {}),
    ("RGBA", "a.png", {}),
    ("LA", "a.png", {}),
    ("P", "a.png", {}),
    ("1", "a.png", {}),
    ("RGB", "a.webp", {}),
    ("RGBA", "a.webp", {}),
    ("P", "a.gif", {}),
]


@pytest.mark.parametrize(("mode", "name", "options"), CASES)
@pytest.mark.parametrize("size", [32, 120])
@pytest.mark.parametrize("decoder", ["torchvision", "Pillow"])
def test_pixels_match_pillow(tmp_path, monkeypatch, mode, name, options, size, decoder):
    if decoder == "Pillow":
        monkeypatch.setattr("utils.data.decoding.decode_jpeg", None)
    photo(mode).save(tmp_path / name, **options)
    ours = eval_transform(load_image(str(tmp_path / name)), size)
    assert (ours.shape, ours.dtype) == ((3, size, size), torch.uint8)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    difference = np.abs(ours.numpy().transpose(1, 2, 0).astype(int) - expected)
    assert difference.max() <= 1


TURNS = Image.Transpose
# How a camera that writes an orientation stores the scene.
STORED = {
    1: None,
    2: TURNS.FLIP_LEFT_RIGHT,
    3: TURNS.ROTATE_180,
    4: TURNS.FLIP_TOP_BOTTOM,
    5: TURNS.TRANSPOSE,
    6: TURNS.ROTATE_90,
    7: TURNS.TRANSVERSE,
    8: TURNS.ROTATE_270,
}


def save_turned(path: Path, orientation: int, mode: str = "RGB", **options) -> None:
    """Save the scene `photo()` as a camera does that was held in another way."""
    stored, exif = photo(mode), Image.Exif()
    if STORED[orientation] is not None:
        stored = stored.transpose(STORED[orientation])
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **options)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_an_exif_orientation_is_undone_to_the_pixel(tmp_path, orientation, name):
    path = str(tmp_path / name)
    save_turned(path, orientation, **({"lossless": True} if name == "a.webp" else {}))
    assert (load_image(path, exif=True) == tensor(photo())).all()
    if name != "a.tif":  # Pillow turns a TIFF whether asked or not
        with Image.open(path) as image:
            assert (load_image(path) == tensor(image.convert("RGB"))).all()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_both_decoders_turn_a_photograph_as_pillow_does(tmp_path, monkeypatch, orientation, mode):
    path = str(tmp_path / "a.jpg")
    save_turned(path, orientation, mode)
    with Image.open(path) as image:
        upright, stored = ImageOps.exif_transpose(image).convert("RGB"), image.convert("RGB")
    for decoder in ("torchvision", "Pillow"):
        if decoder == "Pillow":
            monkeypatch.setattr("utils.data.decoding.decode_jpeg", None)
        assert (load_image(path, exif=True) == tensor(upright)).all()
        assert (load_image(path) == tensor(stored)).all()
        expected = tensor(upright.resize((32, 32), Image.Resampling.BILINEAR)).int()
        assert (eval_transform(load_image(path, exif=True), 32).int() - expected).abs().max() <= 1


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
@pytest.mark.parametrize("content", [b"Exif\0\0no TIFF", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_data_turn_nothing(tmp_path, name, content):
    photo().save(tmp_path / name, exif=content)
    assert (load_image(str(tmp_path / name), exif=True) == load_image(str(tmp_path / name))).all()


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo().save(tmp_path / "a.jpg", exif=exif)
    assert load_image(str(tmp_path / "a.jpg"), exif=True).shape == (3, 50, 70)


def test_own_data_sets_turn_photographs_and_the_published_ones_do_not(workdir):
    assert {name: spec.exif for name, spec in DATASETS.items()} == dict.fromkeys(DATASETS, False)
    entries = make_own(workdir)
    save_turned(Path(entries[0]["img_path"]), 6)
    with Image.open(entries[0]["img_path"]) as image:
        stored = eval_transform(tensor(image), 40)
    sample = load_split(dataset_spec("mine"), "test", 40)[0, 0, True][0]
    assert (sample == eval_transform(tensor(photo()), 40)).all()
    Path("data/mine").rename("data/shapes")
    assert (load_split(DATASETS["shapes"], "test", 40)[0, 0, True][0] == stored).all()


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (1, 20000)])
@pytest.mark.parametrize("side", [32, 448])
def test_very_narrow_and_very_low_images_match_pillow(size, side):
    image = photo(size=size)
    assert train_transform(tensor(image), side, np.random.default_rng(0)).shape == (3, side, side)
    expected = tensor(image.resize((side, side), Image.Resampling.BILINEAR)).int()
    assert (eval_transform(tensor(image), side).int() - expected).abs().max() <= 1


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (90, 60)])
def test_training_samples_match_pillows_crop_resize_and_flip(size):
    image = photo(size=size)
    for seed in range(10):
        ours = train_transform(tensor(image), 100, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        expected = image.crop(random_crop(*size, rng)).resize((100, 100), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert (ours.int() - tensor(expected).int()).abs().max() <= 1


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), seed=st.integers(0, 1000))
def test_crops_lie_inside_the_image(width, height, seed):
    left, top, right, bottom = random_crop(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize("size", [(500, 375), (640, 480), (200, 900)])
def test_crops_have_the_distribution_of_torchvisions_crops(size):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ours = np.array([random_crop(*size, rng) for _ in range(4000)])
    image = torch.empty(3, size[1], size[0])
    theirs = [RandomResizedCrop.get_params(image, [0.7, 1], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w in theirs])
    quantiles = np.linspace(0.05, 0.95, 10)
    for edge in range(4):
        a, b = np.quantile(ours[:, edge], quantiles), np.quantile(theirs[:, edge], quantiles)
        assert np.abs(a - b).max() < 0.04 * max(size)


def test_about_half_of_the_images_are_flipped():
    # The image is a ramp from dark to light, and a flip reverses it.
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (150, 1))).convert("RGB")
    flipped = [
        bool(image[0, 0, 0] > image[0, 0, -1])
        for image in (train_transform(tensor(ramp), 32, np.random.default_rng(seed)) for seed in range(400))
    ]
    assert 150 < sum(flipped) < 250


AUGMENTATIONS = re.findall(
    r"```python\n(.*?)```", (REPOSITORY / "docs" / "own-data.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_the_augmentations_of_the_documents_depend_on_the_generator_alone(augmentation):
    def augment(seed: int) -> torch.Tensor:
        names = {"torch": torch, "v2": v2, "rng": np.random.default_rng(seed), "image": tensor(photo())}
        exec(augmentation, names)
        return names["image"]

    state = torch.get_rng_state()
    first = augment(0)
    assert (first.shape, first.dtype) == ((3, 50, 70), torch.uint8)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(augment(0), first)
    assert any(not torch.equal(augment(seed), first) for seed in range(1, 9))


def test_an_unreadable_image_is_reported_by_name(tmp_path):
    whole = tmp_path / "whole.jpg"
    photo(size=(200, 200)).save(whole)
    for name, content in {
        "truncated.jpg": whole.read_bytes()[:2000],
        "empty.jpg": b"",
        "text.jpg": b"<html>not found</html>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_image(str(tmp_path / name))
    with pytest.raises(UserError, match="gone.jpg is missing"):
        load_image(str(tmp_path / "gone.jpg"))
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match=r"folder.jpg is a folder"):
        load_image(str(tmp_path / "folder.jpg"))


@pytest.mark.parametrize("name", ["bomb.png", "bomb.gif"])
def test_a_small_file_with_a_huge_image_is_not_decoded(tmp_path, name):
    path = tmp_path / name
    Image.new("1", (20000, 10000)).save(path)
    assert path.stat().st_size < 1e6
    with pytest.raises(
        UserError, match=r"bomb.*20000 x 10000 pixels are above the limit, max_pixels 100000000"
    ):
        load_image(str(path), max_pixels=10**8)


def test_the_tile_size_of_a_tiff_counts_as_its_size(tmp_path):
    """The TIFF has 64 x 64 pixels, but its only tile has 16000 x 16000."""
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16000, 323: 16000, 324: 8, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"a.tif.*16000 x 16000 pixels"):
        load_image(str(tmp_path / "a.tif"), max_pixels=10**8)


def test_a_postscript_program_is_not_run_as_an_image(tmp_path):
    photo().save(tmp_path / "a.eps")  # Pillow would start an interpreter for it
    with pytest.raises(UserError, match="a.eps cannot be read"):
        load_image(str(tmp_path / "a.eps"))


def test_an_animation_gives_its_first_picture_whatever_its_extension(tmp_path):
    first, second = photo("P"), photo("P").rotate(180)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    (tmp_path / "a.gif").rename(tmp_path / "a.jpg")
    expected = torch.from_numpy(np.array(first.convert("RGB"))).permute(2, 0, 1)
    assert (load_image(str(tmp_path / "a.jpg")).int() - expected.int()).abs().max() <= 1


@pytest.mark.slow
def test_a_torchvision_without_its_decoder_is_reported_once_and_reads_the_same(shapes, tmp_path):
    program = """
import sys, torchvision.io
if sys.argv[1] == "without":
    del torchvision.io.decode_jpeg
from torch import device
from utils.data.datasets import DATASETS
from utils.data.loaders import EvaluationLoader
from utils.data.samples import LabelledImages, load_split
for split in ("train", "test"):
    dataset = load_split(DATASETS["shapes"], split, 40)
    loader = EvaluationLoader(dataset, 4, 0, device("cpu"))
    print(split, sum(images.sum().item() for images, _, _ in loader))
"""
    script = tmp_path / "script.py"
    script.write_text(program)
    printed = {}
    for decoder in ("with", "without"):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        status, out, err = finish(start_preloaded(script, decoder, env=environment))
        assert status == 0, err
        printed[decoder] = out.splitlines()
    report = "this torchvision has no decode_jpeg: Pillow decodes JPEG files, which is slower"
    assert printed["without"] == [report, *printed["with"]]
    assert len(printed["with"]) == 2


def bomb(path: Path) -> Path:
    """Write a small file with a picture of 200 megapixels, which is above Pillow's own limit."""
    Image.new("1", (20000, 10000)).save(path)
    assert path.stat().st_size < 1e6
    return path


@pytest.mark.slow
def test_the_limit_is_max_pixels_and_not_pillows(tmp_path):
    path = bomb(tmp_path / "bomb.png")
    limit = Image.MAX_IMAGE_PIXELS
    assert limit < 100_000_000
    with pytest.raises(UserError, match=r"20000 x 10000 pixels are above the limit, max_pixels 100000000"):
        load_image(str(path))
    with warnings.catch_warnings(action="error"):
        assert load_image(str(path), max_pixels=10**9).shape == (3, 10000, 20000)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.slow
def test_a_command_reads_a_picture_above_pillows_limit_if_asked(workdir, trained, command):
    bomb(workdir / "bomb.png")
    label = ["--load_from", trained / "best.pth", "--device", "cpu", "--num_workers", 1]
    label += ["--img_dir", "bomb.png"]
    refused = command(demo, *label)
    assert (refused.status, refused.err.count("above the limit, max_pixels 100000000")) == (1, 1)
    read = command(demo, *label, "--max_pixels", 10**9)
    assert (read.status, read.err) == (0, "")


def write_damaged_png(path: Path) -> None:
    """Write a picture that Pillow reads with a warning: it says that it is an animation of 0 pictures."""
    photo().save(path)
    content = path.read_bytes()
    data = b"acTL" + bytes(8)
    chunk = struct.pack(">I", 8) + data + struct.pack(">I", zlib.crc32(data))
    path.write_bytes(content[:33] + chunk + content[33:])  # after the signature and the header


@pytest.mark.slow
def test_importing_and_threads_leave_pillow_and_the_warnings_as_they_are(tmp_path):
    """A program in a process of its own: import, then decode damaged images in many threads."""
    damaged = tmp_path / "damaged.png"
    write_damaged_png(damaged)
    program = """
import sys, warnings
from multiprocessing.pool import ThreadPool
from PIL import Image
limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
import utils.checkpoint, utils.data.loaders
from utils.data.decoding import load_image
after_import = list(warnings.filters)
with ThreadPool(8) as pool:
    pool.map(load_image, [sys.argv[1]] * 200)
assert warnings.filters == after_import
assert [f for f in after_import if f not in filters and f[3] is not None and f[3].match("PIL.Image")] == []
assert Image.MAX_IMAGE_PIXELS == limit
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    load_image(sys.argv[1])
print(len(caught))
"""
    script = tmp_path / "script.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    status, out, err = finish(start_preloaded(script, damaged, env=environment))
    assert (status, out) == (0, "1\n"), err


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_print_no_warnings_about_damage(tmp_path, context, capfd):
    damaged = tmp_path / "damaged.png"
    write_damaged_png(damaged)
    labels = Labels(Paths.of([str(damaged)] * 2), Targets.of(np.zeros((2, 1))))
    loader = EvaluationLoader(LabelledImages(labels, 32), 1, 1, torch.device("cpu"))
    loader.multiprocessing_context = context
    assert [batch.rows.tolist() for batch in loader] == [[0], [1]]
    assert capfd.readouterr().err == ""
