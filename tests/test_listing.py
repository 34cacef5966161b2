"""Which files exist, found by listing folders."""

import os
from pathlib import Path

import pytest

from utils.data.labels import Paths
from utils.data.samples import check_images_exist
from utils.runtime import listing
from utils.runtime.errors import UserError
from utils.runtime.listing import KnownFiles


@pytest.fixture
def asked(monkeypatch) -> list[bytes]:
    """Collect the files that the system is asked for one by one; a folder is listed after two of them."""
    paths = []
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: [paths.append(path), isfile(path)][1])
    monkeypatch.setattr(listing, "ASKED_FOR", 2)
    return paths


def test_a_folder_is_listed_when_many_files_are_asked_for(workdir, asked):
    for name in ("a", "b", "c", "d", "other/e"):
        (workdir / name).parent.mkdir(exist_ok=True)
        (workdir / name).touch()
    known_files = KnownFiles()
    assert all(os.fsencode(workdir / name) in known_files for name in ("a", "b", "c", "d", "other/e"))
    assert [Path(os.fsdecode(path)).name for path in asked] == ["a", "b", "e"]


@pytest.mark.parametrize("asked_for", [0, 1, 100])
def test_listed_or_not_the_answers_are_those_of_the_system(workdir, monkeypatch, asked_for):
    monkeypatch.setattr(listing, "ASKED_FOR", asked_for)
    Path("photos/inner").mkdir(parents=True)
    Path("photos/a.jpg").touch()
    Path("top.jpg").touch()
    Path("photos/link.jpg").symlink_to("a.jpg")
    Path("photos/to_nothing.jpg").symlink_to("missing.jpg")
    Path("photos/to_folder.jpg").symlink_to("inner")
    names = ["a.jpg", "b.jpg", "link.jpg", "to_nothing.jpg", "to_folder.jpg", "inner", "inner/../a.jpg", ""]
    paths = [f"photos/{name}" for name in names]
    paths += ["top.jpg", "./top.jpg", "none/a.jpg", "/top.jpg", f"{workdir}/top.jpg", "photos//a.jpg"]
    known_files = KnownFiles()
    for path in paths * 2:
        assert (os.fsencode(path) in known_files) == os.path.isfile(path), path


def test_a_folder_that_cannot_be_listed(workdir, asked, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    Path("a.jpg").touch()
    known_files = KnownFiles()
    for _ in range(4):
        assert b"a.jpg" in known_files
        assert b"b.jpg" not in known_files


def test_a_missing_image_is_named_and_counted(workdir, asked):
    for name in "abcde":
        Path(f"{name}.jpg").touch()
    Path("cafe\u0301.jpg").touch()
    images = Paths.of([*(f"{name}.jpg" for name in "abcde"), "caf\u00e9.jpg"])
    check_images_exist(images, Path("train.json"))
    Path("d.jpg").unlink()
    Path("e.jpg").unlink()
    with pytest.raises(UserError, match="d.jpg, named in train.json, is missing \\(2 of 6 are\\)"):
        check_images_exist(images, Path("train.json"))
