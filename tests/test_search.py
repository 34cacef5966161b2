"""Folders of images: links, folders that cannot be read, and formats that are not read."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

import demo
from utils.inference import photographs, search
from utils.inference.search import find_photos
from utils.runtime.errors import UserError


@pytest.fixture
def photos(workdir) -> Path:
    """Change to a folder with the images photos/a.jpg and elsewhere/b.jpg."""
    for name in ("photos/a.jpg", "elsewhere/b.jpg"):
        Path(name).parent.mkdir()
        Image.new("RGB", (40, 40)).save(name)
    return workdir


def reasons(*places: str) -> dict[str, str]:
    return dict(find_photos(list(places)).skipped)


@pytest.mark.parametrize("place", ["photos", "photos/**/*.jpg", "photo*", "**/*.jpg"])
def test_linked_folders_are_searched_once_each(photos, place):
    Path("photos/link").symlink_to("../elsewhere")
    Path("photos/again").symlink_to(photos / "elsewhere", target_is_directory=True)
    Path("elsewhere/loop").symlink_to("..")
    Path("photos/self").symlink_to(".")
    found = find_photos([place])
    names = sorted(os.path.basename(path) for path in found.images)
    assert (names, found.skipped) == (["a.jpg", "b.jpg"], [])
    assert "photos/a.jpg" in found.images


def test_a_folder_has_its_own_path_where_it_has_one(photos):
    Path("photos/z").mkdir()
    shutil.copy("photos/a.jpg", "photos/z/c.jpg")
    Path("photos/link").symlink_to("z")
    assert find_photos(["photos"]).images == ["photos/a.jpg", "photos/z/c.jpg"]
    assert find_photos(["photos/z", "photos/link"]).images == ["photos/z/c.jpg"]


def test_linked_images_are_read_under_each_name(photos):
    Path("photos/link.jpg").symlink_to("a.jpg")
    assert find_photos(["photos"]).images == ["photos/a.jpg", "photos/link.jpg"]


def test_links_to_nothing_are_named(photos):
    Path("photos/gone.jpg").symlink_to("nowhere.jpg")
    Path("photos/gone").symlink_to("/nowhere")
    Path("photos/round.jpg").symlink_to("round.jpg")
    named = reasons("photos")
    assert sorted(named) == ["photos/gone", "photos/gone.jpg", "photos/round.jpg"]
    assert named["photos/gone"] == "a link to something that is missing"
    assert "symbolic links" in named["photos/round.jpg"]
    assert sorted(reasons("photos/**/*.jpg")) == ["photos/gone", "photos/gone.jpg", "photos/round.jpg"]


@pytest.mark.parametrize("place", ["photos", "photos/**/*.jpg", "."])
def test_a_folder_without_permission_is_named(photos, monkeypatch, place):
    Path("photos/secret").mkdir()
    listdir = os.listdir

    def refuse(path: str) -> list[str]:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(search.os, "listdir", refuse)
    found = find_photos([place])
    assert "photos/a.jpg" in found.images
    assert {os.path.normpath(path): reason for path, reason in found.skipped} == {
        "photos/secret": "Permission denied"
    }


def test_a_place_inside_a_folder_without_permission_is_not_called_missing(photos, monkeypatch):
    def refuse(path: str, **options) -> os.stat_result:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(search.os, "stat", refuse)
    with pytest.raises(UserError, match="--img_dir secret/a.jpg cannot be read: Permission denied"):
        find_photos(["secret/a.jpg"])


OTHERS = ["a.HEIC", "b.heif", "c.cr2", "d.NEF", "e.dng", "f.svg", "g.psd", "h.arw", "i.jxl", "j.tga"]


def test_images_in_formats_that_are_not_read_are_named(photos):
    for name in OTHERS:
        Path("photos", name).touch()
    for name in ("labels.csv", "notes.txt", "film.mp4", "README", ".hidden.heic"):
        Path("photos", name).touch()
    os.mkfifo("photos/pipe.jpg")
    named = reasons("photos")
    assert sorted(named) == sorted(f"photos/{name}" for name in [*OTHERS, "pipe.jpg"])
    assert named["photos/a.HEIC"] == ".heic files are not read: convert it to JPEG or PNG"
    assert named["photos/pipe.jpg"] == "not a regular file"


@pytest.mark.parametrize("name", ["a.mpo", "a.jfif", "a.JPE", "a.jp2", "a.tiff", "a.pgm", "a.webp", "a.apng"])
def test_every_format_that_is_read_is_searched_for(photos, name):
    Image.new("L", (40, 40)).save("a.png")
    Path("a.png").rename(Path("photos", name))
    assert f"photos/{name}" in find_photos(["photos"]).images


def test_images_without_an_ending_are_known_by_their_first_bytes(photos):
    Path("photos/a.jpg").rename("photos/a")
    Path("photos/README").write_text("no image")
    Path("photos/empty").touch()
    os.mkfifo("photos/pipe")
    assert find_photos(["photos"]) == (["photos/a"], [])


def test_a_place_with_nothing_but_unread_images_says_why(photos):
    Path("raw").mkdir()
    Path("raw/a.nef").touch()
    with pytest.raises(UserError, match=r"--img_dir raw names no image.*raw/a.nef: .nef files are not read"):
        find_photos(["photos", "raw"])


def test_the_folder_for_heatmaps_is_not_searched(photos):
    Path("heatmaps").mkdir()
    Path("heatmaps/x.svg").touch()
    found = find_photos(["."], {"--out_dir": Path("heatmaps")})
    assert (found.images, found.skipped) == (["elsewhere/b.jpg", "photos/a.jpg"], [])


@pytest.mark.parametrize(("asked", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_place_in_the_other_unicode_form_is_found(photos, asked, stored):
    name = "Grüße/é.jpg"
    path = Path(unicodedata.normalize(stored, name))
    path.parent.mkdir()
    Path("photos/a.jpg").rename(path)
    assert find_photos([unicodedata.normalize(asked, name)]).images == [str(path)]
    assert find_photos([unicodedata.normalize(asked, "Grüße")]).images == [str(path)]


def test_demo_names_and_counts_what_it_leaves_out(photos, trained, command):
    Path("photos/link").symlink_to("../elsewhere")
    Path("photos/gone").symlink_to("/nowhere")
    Path("photos/x.heic").touch()
    options = ["--load_from", trained / "best.pth", "--device", "cpu", "--num_workers", 0]
    result = command(demo, *options, "--img_dir", "photos")
    assert result.status == 1
    assert result.out.splitlines()[1] == "4 images found, 2 of them not readable"
    assert [line.partition(": ")[0] for line in result.out.splitlines()[2:]] == [
        "photos/a.jpg",
        "photos/link/b.jpg",
    ]
    assert result.err.splitlines() == [
        "skipped: photos/gone: a link to something that is missing",
        "skipped: photos/x.heic: .heic files are not read: convert it to JPEG or PNG",
        "skipped 2 of 4 images: not readable",
    ]


def test_an_image_without_permission_is_named_in_plain_words(photos, trained, command, monkeypatch):
    def refuse(path: str, *args, **options) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(photographs, "load_image", refuse)
    options = ["--load_from", trained / "best.pth", "--device", "cpu", "--num_workers", 0]
    result = command(demo, *options, "--img_dir", "photos")
    assert result.err.splitlines()[0] == "skipped: photos/a.jpg: Permission denied"
