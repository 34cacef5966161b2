"""The library is a good guest: importing it, loading a model and labelling photographs change nothing."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from helpers import REPOSITORY
from utils.checkpoint import load_model
from utils.runtime.errors import UserError

# Runs in a process of its own, with a checkpoint, a photograph and a huge picture. It prints a JSON object.
GUEST = """
import json, os, random, resource, signal, sys, threading, warnings
import numpy, torch, torchvision
from PIL import Image

def state():
    cudnn, signals = torch.backends.cudnn, [signal.SIGINT, signal.SIGTERM, signal.SIGCHLD]
    return {
        "MAX_IMAGE_PIXELS": Image.MAX_IMAGE_PIXELS,
        "filters": [str(rule) for rule in warnings.filters],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()],
        "cudnn": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32],
        "precision": [str(torch.get_default_dtype()), torch.get_float32_matmul_precision()],
        "grad": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "random": [str(random.getstate()), str(numpy.random.get_state()), torch.get_rng_state().tolist()],
        "signals": [str(signal.getsignal(number)) for number in signals],
        "environment": dict(os.environ),
    }

def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before, streams = state(), (sys.stdout, sys.stderr)
from utils.checkpoint import load_model
from utils.runtime import freed_memory
checkpoint, photo, huge = sys.argv[1:]
glibc = freed_memory.configurable_glibc
freed_memory.configurable_glibc = lambda: sys.exit("glibc was configured")
model = load_model(checkpoint)
model.predict(photo)
model.attention(photo)
freed_memory.configurable_glibc = glibc
model.predict([photo] * 40)
peak, refused = memory(), []
for method in (model.predict, model.attention, lambda photo: model.predict([photo] * 3)):
    try:
        method(huge)
    except Exception as error:
        refused.append(f"{type(error).__name__}: {error}")
grown = memory() - peak
after = state()
changed = sorted(name for name in before if before[name] != after[name])
print(json.dumps({"changed": changed, "refused": refused, "grown": grown}))
"""


def write_huge_png(path: Path, side: int) -> Path:
    """Write a black picture of side x side pixels, one bit each, in a small file; return its path."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    row = bytes(1 + side // 8)
    compressor = zlib.compressobj()
    pixels = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    return path


@pytest.fixture(scope="module")
def guest(trained_wide, shapes_folder, tmp_path_factory) -> subprocess.CompletedProcess:
    """Use the library in a process of its own."""
    huge = write_huge_png(tmp_path_factory.mktemp("huge") / "huge.png", 20_000)
    photo = shapes_folder / "data/shapes/images/test/00000.jpg"
    command = [sys.executable, "-c", GUEST, trained_wide / "best.pth", photo, huge]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_nothing_global_changes_and_nothing_is_printed(guest):
    assert (guest.returncode, guest.stderr) == (0, "")
    (line,) = guest.stdout.splitlines()
    assert json.loads(line)["changed"] == []


@pytest.mark.slow
def test_a_huge_picture_is_refused_in_little_memory(guest):
    result = json.loads(guest.stdout)
    assert len(result["refused"]) == 3
    for message in result["refused"]:
        assert message.startswith("UserError: ")
        assert "huge.png: 20000 x 20000 pixels are above" in message
    assert result["grown"] < 50_000  # KiB


def test_the_caller_can_set_max_pixels(trained, tmp_path):
    path = write_huge_png(tmp_path / "a.png", 64)
    model = load_model(trained / "best.pth", device="cpu", max_pixels=64 * 64 - 1)
    with Image.open(path) as image:
        for photo in (path, image):
            for call in (model.predict, model.attention, lambda photo: model.predict([photo])):
                with pytest.raises(UserError, match="64 x 64 pixels"):
                    call(photo)
            assert len(model.predict(photo, max_pixels=64 * 64)) == 8
            assert len(model.attention(photo, max_pixels=64 * 64)) == 8
        model.max_pixels = 64 * 64
        assert len(model.predict([path, image])) == 2
    assert len(load_model(trained / "best.pth", device="cpu").predict(path)) == 8


def test_a_pillow_image_is_refused_before_it_is_decoded(trained, tmp_path, monkeypatch):
    model = load_model(trained / "best.pth", device="cpu")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(Image.Image, "convert", lambda *args: pytest.fail("it was decoded"))
    with (
        Image.open(write_huge_png(tmp_path / "a.png", 20_000)) as image,
        pytest.raises(UserError, match="20000 x 20000 pixels are above .*max_pixels 100000000"),
    ):
        model.predict(image)
