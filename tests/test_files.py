"""Files are written completely or not at all, and what fails is reported as what it is."""

import resource
import threading
from pathlib import Path

import pytest

from utils.runtime.errors import UserError
from utils.runtime.files import atomic_write, write_json


@pytest.fixture
def file(tmp_path) -> Path:
    """Return the path of a file that holds "old"."""
    path = tmp_path / "file"
    path.write_text("old")
    return path


def assert_untouched(file: Path) -> None:
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_errors_of_the_block_pass_unchanged(file):
    missing = file.with_name("missing")
    with pytest.raises(FileNotFoundError, match="missing"), atomic_write(file, "wb") as target:
        target.write(missing.read_bytes())
    assert_untouched(file)
    with pytest.raises(OSError, match="network down"), atomic_write(file):
        raise OSError("network down")
    assert_untouched(file)
    with pytest.raises(TypeError):
        write_json(file, {"value": object()})
    assert_untouched(file)


@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize(
    "size", [10_000, 10_000_000]
)  # fails when the file is closed, and when it is written
def test_a_full_disk_is_reported_with_the_name_of_the_file(file, mode, size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(UserError, match=f"{file} cannot be written: File too large"):  # noqa: SIM117
            with atomic_write(file, mode) as target:
                target.write("a" * size if mode == "w" else b"a" * size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_untouched(file)


def test_a_file_whose_place_cannot_exist_is_reported(file):
    with pytest.raises(UserError, match=r"below cannot be written: (File exists|Not a directory)"):
        write_json(file / "below", {})
    assert_untouched(file)


def test_threads_may_write_the_same_file(file):
    start, errors = threading.Barrier(8), []

    def write(value: int) -> None:
        try:
            with atomic_write(file) as target:
                start.wait()  # all of them are open now
                target.write(f"{value}" * 100_000)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=write, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    content = file.read_text()
    assert content == content[0] * 100_000
    assert list(file.parent.iterdir()) == [file]
