"""load_checkpoint detects damage from a disk or a download."""

import random
import zipfile
from pathlib import Path

import pytest
import torch

from utils.runtime.cli import UserError
from utils.weights.contents import load_checkpoint

CONFIG = {"lam": 0.1, "img_size": 64}


def flip(content: bytearray, rng: random.Random) -> bytearray:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def cut(content: bytearray, rng: random.Random) -> bytearray:
    return content[: rng.randrange(len(content))]


def scribble(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(20):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return content


def splice(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content))
    content[start : start + rng.randrange(50)] = rng.randbytes(rng.randrange(50))
    return content


@pytest.mark.parametrize("damage", [flip, cut, scribble, splice])
def test_damage_is_detected_or_harmless(tmp_path: Path, damage):
    whole, damaged = tmp_path / "whole.pth", tmp_path / "damaged.pth"
    state = {"a": torch.randn(100, 10), "b": torch.arange(5)}
    torch.save({"model": state, "config": CONFIG, "classes": ["a"], "record": {}}, whole)
    assert load_checkpoint(whole)["config"] == CONFIG
    detected = 0
    for seed in range(300):
        damaged.write_bytes(damage(bytearray(whole.read_bytes()), random.Random(seed)))
        try:
            checkpoint = load_checkpoint(damaged)
        except UserError as error:
            detected += "damaged.pth" in str(error)
        else:  # nothing reads the damaged bytes, for example padding
            assert all(torch.equal(checkpoint["model"][name], state[name]) for name in state)
            assert checkpoint["config"] == CONFIG
    assert detected > 250


def test_a_compressed_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(UserError, match="not from torch.save"):
        load_checkpoint(tmp_path / "bomb.pth")
