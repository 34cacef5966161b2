"""A damaged checkpoint or file of scores is refused, or gives what the whole file gives."""

import io
import itertools
import pickle
import random
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from stress.damage import DAMAGES, KINDS, Damage, try_damage
from utils.metrics.score_files import read_scores
from utils.runtime.archive import ArchiveError, check_archive, read_large
from utils.runtime.errors import UserError
from utils.weights.contents import load_checkpoint
from utils.weights.reading import read_file

WEIGHTS = {"a": torch.arange(60.0).reshape(20, 3), "empty": torch.zeros(0), "b": torch.arange(5)}
IS_ZIPFILE = {"python": zipfile.is_zipfile, "no": lambda file: False, "yes": lambda file: True}


@pytest.mark.parametrize("answer", ["python", "no", pytest.param("yes", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_detected_or_harmless(tmp_path, monkeypatch, damage: Damage, kind: str, answer: str):
    """Also if Python takes a damaged archive for none, or another file for an archive."""
    monkeypatch.setattr(zipfile, "is_zipfile", IS_ZIPFILE[answer])
    outcome = try_damage(KINDS[kind], damage, 100, 0, tmp_path)
    assert outcome.wrong == 0
    assert outcome.refused >= 80  # in the others nothing reads the damaged bytes, for example padding


@pytest.fixture
def whole(tmp_path) -> bytes:
    """Return the bytes of a small file of torch.save, in the working folder."""
    torch.save(WEIGHTS, tmp_path / "whole.pth")
    return (tmp_path / "whole.pth").read_bytes()


def assert_refused_or_same(path: Path, content: bytes) -> bool:
    """Read a file of WEIGHTS; return whether it is refused."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        weights = read_file(path)
    except UserError:
        return True
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    return False


def test_no_byte_of_the_file_is_believed(tmp_path, whole):
    rng = random.Random(0)
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= rng.randrange(1, 256)
        assert_refused_or_same(tmp_path / "damaged.pth", content)


@pytest.mark.parametrize("position", range(4))
def test_a_file_is_an_archive_by_its_first_bytes(tmp_path, whole, position):
    """torch.load takes a file for a pickle if these bytes are damaged."""
    for change in range(1, 256):
        content = bytearray(whole)
        content[position] ^= change
        assert assert_refused_or_same(tmp_path / "damaged.pth", content)


def test_a_tensor_that_the_directory_calls_a_folder_is_refused(tmp_path, whole):
    """torch.load would leave it as the memory was: no numbers are read for a folder."""
    attributes = struct.calcsize("<4s6H3I5H")
    content = bytearray(whole)
    entry = content.rindex(b"whole/data/0") - struct.calcsize("<4s6H3I5H2I")
    content[entry + attributes] |= 0x10
    (tmp_path / "damaged.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.pth is damaged .*\(whole/data/0 has other attributes"):
        read_file(tmp_path / "damaged.pth")


def entries_of(content: bytes) -> list[bytes]:
    """Return the entries of an archive of torch.save, each with its header and trailer."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        starts = [entry.header_offset for entry in archive.infolist()] + [archive.start_dir]
    return [content[start:end] for start, end in itertools.pairwise(starts)]


def rewritten(names: list[str]) -> bytes:
    """Return an archive with entries of these names, as Python's zipfile writes it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, name * 10)
    return content.getvalue()


def check(content: bytes, compressed: bool = False) -> None:
    check_archive(io.BytesIO(content), compressed)


def test_entries_must_fill_the_file_in_order(whole):
    check(whole)
    entries = entries_of(whole)
    size = sum(map(len, entries))
    check(b"".join(entries) + whole[size:])
    first, second, *others = entries
    swapped = b"".join([second, first, *others]) + whole[size:]
    doubled = b"".join([first, *entries]) + whole[size:]
    missing = b"".join([first, *others]) + whole[size:]
    in_front = b"PK\x03\x04" + whole
    for content in (swapped, doubled, missing, in_front, whole + whole, whole + b"\0", whole[:-1], b""):
        with pytest.raises(ArchiveError):
            check(content)


def test_what_other_programs_write_well_is_accepted(tmp_path):
    check(rewritten(["a/data.pkl", "a/data/0"]))
    with zipfile.ZipFile(tmp_path / "again.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        archive.writestr("zeros", bytes(5 * 2**20))  # decompressed in several pieces
        archive.writestr("noise", random.Random(0).randbytes(2**21))
        with archive.open("large", "w", force_zip64=True) as file:
            file.write(b"a size of 64 bits")
    check((tmp_path / "again.zip").read_bytes(), compressed=True)


@pytest.mark.parametrize("names", [["a/data/0", "a/data/0"], ["a/data/k", "a/data/K"]])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(names):
    with pytest.raises(ArchiveError, match="same name"):
        check(rewritten(names))


def test_sizes_of_more_than_32_bits():
    """The directory of a file of 4 GiB that torch.save wrote: two sizes, then the place of the next entry."""
    most = 2**32 - 1
    extra = bytes.fromhex("0100100064000000010000006400000001000000")
    assert read_large([most, most, 854], extra) == [2**32 + 100, 2**32 + 100, 854]
    assert read_large([40, 40, most], bytes.fromhex("010008003c04000001000000")) == [40, 40, 2**32 + 1084]
    for damaged in (extra[:-1], b"\2" + extra[1:], extra[:2] + b"\x18" + extra[3:], extra + b"\0", b""):
        with pytest.raises(ArchiveError, match="a size in it is damaged"):
            read_large([most, most, 854], damaged)


def test_a_compressed_checkpoint_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(UserError, match=r"not from torch.save \(archive/data.pkl is compressed"):
        load_checkpoint(tmp_path / "bomb.pth")


@pytest.fixture
def old(tmp_path) -> bytes:
    """Return the bytes of a file as torch before 1.6 wrote it."""
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    return (tmp_path / "old.pth").read_bytes()


def test_an_old_file_must_hold_all_its_tensors_and_no_more(tmp_path, old):
    assert not assert_refused_or_same(tmp_path / "whole.pth", old)
    for end in range(1, len(old), 7):
        assert assert_refused_or_same(tmp_path / "damaged.pth", old[:-end])
    assert assert_refused_or_same(tmp_path / "damaged.pth", old + b"\0")
    for position in range(2, 15):  # its first two bytes are the version of the pickle
        damaged = old[:position] + bytes([old[position] ^ 1]) + old[position + 1 :]
        assert assert_refused_or_same(tmp_path / "damaged.pth", damaged)


def test_an_old_file_whose_list_of_tensors_is_short_is_refused(tmp_path, old):
    """torch.load would leave the tensors that are not on the list as the memory was."""
    (keys,) = re.findall(rb"\x80\x02\]q\x00\(.*?e\.", old, re.DOTALL)
    shorter = pickle.dumps(pickle.loads(keys)[:-1], protocol=2)
    (tmp_path / "damaged.pth").write_bytes(old.replace(keys, shorter))
    with pytest.raises(UserError, match="it does not end with its last tensor"):
        read_file(tmp_path / "damaged.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"\x80\x02}q\0."])
def test_other_files_are_neither_checkpoints_nor_scores(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="file is damaged or not from torch.save"):
        read_file(tmp_path / "file")
    with pytest.raises(UserError, match="it is not an .npz file"):
        read_scores(tmp_path / "file")


def test_labels_to_ignore_cannot_get_lost(tmp_path):
    """np.load takes an array for missing if its name is damaged, and without it the metrics differ."""
    path = tmp_path / "scores.npz"
    np.savez(path, scores=np.full((2, 2), 0.5), targets=np.eye(2), ignore=np.ones((2, 2)))
    assert read_scores(path).ignore.all()
    content = path.read_bytes()
    place = content.rindex(b"ignore.npy")
    path.write_bytes(content[:place] + b"Ignore.npy" + content[place + 10 :])
    with pytest.raises(UserError, match="the header of Ignore.npy does not agree with the directory"):
        read_scores(path)
