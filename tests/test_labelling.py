"""demo.py stops at any row and goes on with --resume; processes share the photographs."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import demo
from helpers import REPOSITORY, finish, needs_compiler, start_preloaded, start_torchrun, wait_until
from pipeline import compiling
from preloaded import Preloaded
from utils.inference import label_job, speed_up, tables
from utils.inference.rows import Row, RowsFile, open_rows
from utils.inference.tables import write_csv_table, write_json_table
from utils.runtime.errors import UserError

CPU = ["--num_workers", "0", "--device", "cpu"]
OUTPUTS = ["--csv", "s.csv", "--json", "s.json", "--html", "page"]
NAMES = [f"photos/{name}.jpg" for name in ("a", "b", "c", "d", "e", "f", "ä")]


@pytest.fixture
def photos(shapes, trained, tmp_path, monkeypatch) -> Path:
    """Change to a folder with a checkpoint, seven images in photos/, and a file among them that is none."""
    shutil.copy(trained / "best.pth", tmp_path / "model.pth")
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(NAMES):
        shutil.copy(shapes / f"data/shapes/images/test/{index:05d}.jpg", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    Path("photos/bad.jpg").write_text("no image")
    return tmp_path


def label(command, *options):
    words = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--batch_size", 3]
    return command(demo, *words, *options)


def contents() -> dict[str, bytes]:
    """Return the files that demo.py has written so far, by path."""
    files = [path for path in Path().rglob("*") if path.is_file()]
    return {
        str(path): path.read_bytes() for path in files if "photos" not in path.parts and path.suffix != ".pth"
    }


@pytest.fixture
def whole(photos, command) -> dict[str, bytes]:
    """Return what a run without a stop writes; then the folder is as before it."""
    assert label(command, *OUTPUTS).status == 1
    written = contents()
    for name in ("s.csv", "s.json"):
        Path(name).unlink()
    shutil.rmtree("page")
    return written


class Killed(BaseException):
    """Stands for SIGKILL in tests that do not start a process."""


def kill_at(number: int, torn: int):
    """Label until as many rows are written, then as many bytes of the next one."""
    add = RowsFile.add

    def add_or_die(rows: RowsFile, row: Row) -> None:
        if len(rows.starts) == number:
            os.write(rows.file.fileno(), b'{"image": "photos/x.jpg", "scores": [0.1, 0.'[:torn])
            raise Killed
        add(rows, row)

    return add_or_die


def stop_after(command, number: int, *options, torn: int = 0) -> None:
    """Label until as many rows are written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowsFile, "add", kill_at(number, torn))
        with pytest.raises(Killed):
            label(command, *options)


@pytest.mark.parametrize(("number", "torn"), [(0, 9), (1, 0), (3, 9), (5, 44), (7, 1)])
def test_a_killed_run_goes_on_to_the_same_bytes(photos, whole, command, number, torn):
    stop_after(command, number, *OUTPUTS, torn=torn)
    if number:
        assert set(contents()) == {"s.csv", "s.csv.rows"}
        # Every finished row is in the table already, except for that of the skipped file.
        lines = Path("s.csv").read_bytes().splitlines(keepends=True)
        assert lines == whole["s.csv"].splitlines(keepends=True)[: len(lines)]
        assert len(lines) == 1 + number - (number > 2)
    result = label(command, *OUTPUTS, "--resume")
    assert result.status == 1
    before = f", {number} of them labelled already" if number else ""
    _, first, *lines = result.out.splitlines()
    assert first == f"8 images found{before}"
    assert len([line for line in lines if line.startswith("photos/")]) == 7 - number + (number > 2)
    assert "photos/bad.jpg" in result.err.splitlines()[0]
    assert result.err.splitlines()[1:] == ["skipped 1 of 8 images: not readable"]
    assert contents() == whole


def test_a_resume_compiles_if_the_whole_job_repays_it(photos, command, monkeypatch):
    monkeypatch.setattr(compiling.torch, "compile", lambda features: lambda images: 1.1 * features(images))
    monkeypatch.setattr(speed_up, "has_compiler", lambda: True)
    monkeypatch.setattr(speed_up, "COMPILE_FROM", 8)
    assert label(command, *OUTPUTS).status == 1
    written = take_results()
    stop_after(command, 5, *OUTPUTS)
    assert label(command, *OUTPUTS, "--resume").status == 1
    assert take_results() == written
    assert label(command, *OUTPUTS, "--no-compile").status == 1
    assert take_results() != written


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_goes_on_to_the_same_bytes(photos, command):
    assert label(command, *OUTPUTS, "--compile").status == 1
    written = take_results()
    stop_after(command, 4, *OUTPUTS, "--compile")
    result = label(command, *OUTPUTS, "--compile", "--resume")
    assert "torch.compile failed" not in result.err
    assert take_results() == written


@pytest.mark.parametrize("torn", ["photos/x.jpg,0.", "photos/x.jpg,1.5e-", '"photos/'])
def test_a_torn_row_of_the_table_is_replaced(photos, whole, command, torn):
    stop_after(command, 4, *OUTPUTS)
    with open("s.csv", "a") as file:
        file.write(torn)
    assert label(command, *OUTPUTS, "--resume").status == 1
    assert contents() == whole


def test_several_kills_cost_no_row(photos, whole, command):
    for number in (2, 3, 6):
        stop_after(command, number, *OUTPUTS, "--resume", torn=5)
    assert label(command, *OUTPUTS, "--resume").status == 1
    assert contents() == whole


def test_a_signal_keeps_the_rows_and_says_how_to_go_on(photos, whole, command, monkeypatch):
    def stop(job, row, bar) -> None:
        if row.path == "photos/c.jpg":
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "print_row", stop)
        result = label(command, *OUTPUTS)
    assert result.status == 143
    assert (
        result.err.splitlines()[-1]
        == f"4 rows are in {photos}/s.csv.rows; to go on, run the same command with --resume"
    )
    assert set(contents()) == {"s.csv", "s.csv.rows"}
    assert label(command, *OUTPUTS, "--resume").status == 1
    assert contents() == whole


@pytest.mark.parametrize("size", [900, 1500])
def test_a_full_disk_ends_in_one_line_and_keeps_the_rows(photos, whole, command, size):
    """A limit on the size of files stands for the disk; Python turns its signal into an error."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        result = label(command, "--csv", "s.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    lines = [line for line in result.err.splitlines() if not line.startswith("skipped")]
    assert (result.status, len(lines)) == (2, 1)
    assert "s.csv.rows cannot be written: File too large; " in lines[0]
    assert "rows are kept: to go on, run the same command with --resume" in lines[0]
    assert Path("s.csv.rows").stat().st_size == size  # the last row is torn
    assert label(command, "--csv", "s.csv", "--resume").status == 1
    assert Path("s.csv").read_bytes() == whole["s.csv"]


def test_an_error_before_the_first_row_leaves_nothing(photos, command, monkeypatch):
    def full(rows: RowsFile, row: Row) -> None:
        raise UserError("full")

    monkeypatch.setattr(RowsFile, "add", full)
    result = label(command, "--csv", "s.csv")
    assert (result.status, result.err) == (2, "demo.py: error: full\n")
    assert contents() == {}


def test_rows_that_are_there_are_not_lost_without_resume(photos, command, fails):
    stop_after(command, 4, "--csv", "s.csv")
    words = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--csv", "s.csv"]
    before = contents()
    fails(demo, *words, says=["s.csv.rows holds the rows of a stopped demo.py", "--resume, or remove it"])
    assert contents() == before
    Path("s.csv.rows").write_text("mine")
    for options in ([], ["--resume"]):
        fails(demo, *words, *options, says=["s.csv.rows exists and is not from demo.py"])


def test_resume_refuses_what_would_give_other_scores(photos, command, fails):
    stop_after(command, 4, "--csv", "s.csv")
    before = contents()
    words = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--csv", "s.csv", "--resume"]
    for option, value, earlier in (
        ("img_size", 64, 40),
        ("lam", 0.5, 0.1),
        ("normalize", "0.5", "none"),
        ("tta", "flip", "off"),
        ("max_pixels", 1000, 100_000_000),
        ("html", "page", False),
    ):
        shown = True if option == "html" else value
        fails(demo, *words, f"--{option}", value, says=["s.csv.rows", f"{option} {earlier}, not {shown}"])
    checkpoint = torch.load("model.pth", weights_only=True)
    torch.save(checkpoint | {"classes": list("abcdefgh")}, "model.pth")
    fails(demo, *words, says=["s.csv.rows was begun with other class names"])
    weight = checkpoint["model"]["layer4.0.conv1.weight"]
    weight[0, 0, 0, 0] += 1
    torch.save(checkpoint, "model.pth")
    fails(demo, *words, says=["s.csv.rows was begun with other weights"])
    fails(demo, *words[:-3], "--resume", says=["--resume", "--csv, --json or --html"])
    assert contents() == before


def test_another_batch_size_or_more_workers_may_go_on(photos, whole, command):
    stop_after(command, 4, "--csv", "s.csv", "--json", "s.json")
    options = ["--csv", "s.csv", "--json", "s.json", "--resume", "--batch_size", 2, "--num_workers", 2]
    assert label(command, *options).status == 1
    rows, expected = json.loads(Path("s.json").read_text()), json.loads(whole["s.json"])
    for row, other in zip(rows, expected, strict=True):
        assert row["image"] == other["image"]
        assert row["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_photographs_may_come_and_go_before_a_resume(photos, command):
    stop_after(command, 5, "--csv", "s.csv")
    Path("photos/a.jpg").unlink()
    shutil.copy("photos/f.jpg", "photos/aa.jpg")
    result = label(command, "--csv", "s.csv", "--resume")
    assert "\n8 images found, 4 of them labelled already\nphotos/aa.jpg: " in result.out
    names = [line.partition(",")[0] for line in Path("s.csv").read_text("utf-8-sig").splitlines()]
    assert names == ["image", "photos/aa.jpg", *NAMES[1:]]


def test_a_skipped_file_is_remembered(photos, command):
    stop_after(command, 4, "--csv", "s.csv")
    shutil.copy("photos/a.jpg", "photos/bad.jpg")
    Path("photos/gone.jpg").symlink_to("nowhere")
    result = label(command, "--csv", "s.csv", "--resume")
    assert result.status == 1
    assert "\n9 images found, 1 of them not readable, 4 of them labelled already\n" in result.out
    assert [line[:24] for line in result.err.splitlines()] == [
        "skipped: photos/gone.jpg",
        "skipped: photos/bad.jpg ",
        "skipped 2 of 9 images: n",
    ]
    assert "bad.jpg" not in Path("s.csv").read_text("utf-8-sig")


def test_a_finished_table_has_nothing_to_resume(photos, command, monkeypatch):
    assert label(command, "--csv", "s.csv", "--resume").status == 1  # nothing is there yet, so it begins
    before = contents()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_predictor", None)
        result = label(command, "--csv", "s.csv", "--resume")
    assert (result.status, result.err) == (0, "")
    assert "s.csv: finished, nothing to do; without --resume, all" in result.out
    assert contents() == before


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_a_table_without_rows_that_lacks_a_photograph_is_not_finished(photos, command, fails, option):
    table = f"s.{option[2:]}"
    words = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--resume", option, table]
    stop_after(command, 4, "--csv", "s.csv")
    Path("s.csv.rows").unlink()
    if option == "--json":
        assert label(command, option, table).status == 1
        shutil.copy("photos/a.jpg", "photos/c2.jpg")
    before = contents()
    name = "d" if option == "--csv" else "c2"
    fails(demo, *words, says=[f"{table} has no row of photos/{name}.jpg", "without --resume, all images"])
    assert contents() == before


def test_another_output_does_not_replace_a_finished_table(photos, command, fails):
    assert label(command, "--csv", "s.csv").status == 1
    before = contents()
    words = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--csv", "s.csv", "--resume"]
    fails(demo, *words, "--json", "s.json", says=["s.csv is finished, but s.json is not there"])
    assert contents() == before


def test_a_kill_while_the_tables_are_written_loses_nothing(photos, whole, command, monkeypatch):
    def die(*args) -> None:
        raise Killed

    for name in ("write_csv_table", "new_page"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(label_job, name, die)
            with pytest.raises(Killed):
                label(command, *OUTPUTS, "--resume")
        assert "s.csv.rows" in contents()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "make_row", die)  # every row is there
        assert label(command, *OUTPUTS, "--resume").status == 1
    assert contents() == whole


@pytest.mark.parametrize(("part", "damaged"), [(b'{"image', b"\0\0image"), (b'"scores"', b'"points"')])
def test_a_damaged_row_is_labelled_again(photos, whole, command, part, damaged):
    stop_after(command, 6, *OUTPUTS)
    lines = Path("s.csv.rows").read_bytes().splitlines(keepends=True)
    assert part in lines[4]
    lines[4] = lines[4].replace(part, damaged)
    Path("s.csv.rows").write_bytes(b"".join(lines))
    assert label(command, *OUTPUTS, "--resume").status == 1
    assert contents() == whole


def test_a_table_that_another_program_holds_is_whole_at_the_end(photos, whole, command, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "open", refuse, raising=False)
        assert label(command, *OUTPUTS).status == 1
    assert contents() == whole


def test_a_table_of_one_sure_class_goes_on(photos, command, monkeypatch):
    """A table of 0 and 1 alone looks like a table of labels, which demo.py does not replace."""
    monkeypatch.setattr(tables, "csv_row", lambda photo, scores: f"{photo},1\n")
    stop_after(command, 3, "--csv", "s.csv")
    assert label(command, "--csv", "s.csv", "--resume").status == 1


HOLD = """
import sys, time
from pathlib import Path
from utils.runtime.locks import holding_lock
with holding_lock(Path(sys.argv[1]), "in use"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_for_one_table_ends_in_one_line(photos, command):
    Path("link.json").symlink_to("s.json")
    words = [sys.executable, "-c", HOLD, str(photos / ".s.json.lock")]
    other = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    for options in (["--json", "s.json"], ["--json", "link.json"], ["--csv", "s.csv", "--json", "s.json"]):
        result = label(command, *options, "--resume")
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert f"another demo.py is writing {photos}/s.json: wait" in result.err
    other.kill()
    other.communicate()
    Path("link.json").unlink()
    assert label(command, "--json", "s.json").status == 1
    assert set(contents()) == {"s.json"}


def test_what_a_killed_run_was_writing_is_removed(photos, command):
    for name in (".s.csv.0f.part", ".page.0f.part/index.html", ".page.0f.part.earlier/index.html"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    stop_after(command, 4, *OUTPUTS)
    assert len(contents()) == 5
    assert label(command, *OUTPUTS, "--resume").status == 1
    assert not [name for name in contents() if name.startswith(".")]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scores(tmp_path):
    classes = [f"class {c}" for c in range(500)]
    photos = [f"{number}.jpg" for number in range(1000)]
    rng = np.random.default_rng(0)
    tracemalloc.start()
    with open_rows([tmp_path / "s.csv"], {"lam": 0.1}, resume=False) as rows:
        for photo in photos:
            rows.add(Row(photo, rng.random(500)))
    with open_rows([tmp_path / "s.csv"], {"lam": 0.1}, resume=True) as rows:
        write_csv_table(tmp_path / "s.csv", classes, photos, rows.scores(photos), utf8_mark=False)
        write_json_table(tmp_path / "s.json", classes, photos, rows.scores(photos))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # the scores are 4,000,000 bytes
    assert len(json.loads((tmp_path / "s.json").read_text())) == 1000


# ---- other processes ----

# Runs demo.py, and writes to the file decoded.<restart>.<rank> which photographs it decodes.
LOGGED = """
import os, sys, time
import demo
from utils.inference import photographs
from utils.runtime.script import run_script

load_image = photographs.load_image
log = open(f"decoded.{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}.{os.environ.get('RANK', 0)}", "a", 1)
pause = float(os.environ.get("PAUSE", 0))

def load(path, *args, **options):
    log.write(path + "\\n")
    time.sleep(pause)
    return load_image(path, *args, **options)

photographs.load_image = load
run_script(demo.main)
"""


@pytest.fixture(scope="module")
def many(shapes_folder, trained, tmp_path_factory) -> Path:
    """Return a folder with a checkpoint, 36 photographs, and a script that logs what it decodes."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "photos").mkdir()
    shutil.copy(trained / "best.pth", folder / "model.pth")
    for number in range(36):
        photo = shapes_folder / f"data/shapes/images/test/{number % 9:05d}.jpg"
        shutil.copy(photo, folder / f"photos/{number}.jpg")
    (folder / "photos/bad.jpg").write_text("no image")
    (folder / "logged.py").write_text(LOGGED)
    return folder


def start_label(processes: int, *options, **variables: str) -> Preloaded | subprocess.Popen:
    script = Path("logged.py").absolute()
    words = ["--load_from", "model.pth", *CPU, "--img_dir", "photos", "--batch_size", 2, *OUTPUTS]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables
    if processes == 1:
        return start_preloaded(script, *words, *options, env=environment)
    return start_torchrun(processes, script, *words, *options, env=environment)


def decoded(restart: int) -> list[str]:
    return [path for log in Path().glob(f"decoded.{restart}.*") for path in log.read_text().splitlines()]


def take_results() -> dict[str, bytes]:
    """Return and remove what demo.py has written."""
    for log in Path().glob("decoded.*"):
        log.unlink()
    written = contents()
    shutil.rmtree("page")
    for name in ("s.csv", "s.json"):
        Path(name).unlink()
    return written


class Printed(NamedTuple):
    """What one process writes and prints."""

    written: dict[str, bytes]
    out: str
    err: str


@pytest.fixture(scope="module")
def expected(many) -> Printed:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(many)
        status, out, err = finish(start_label(1))
        assert status == 1, err
        return Printed(take_results(), out, err)


@pytest.fixture
def one_process(many, expected, monkeypatch) -> Printed:
    """Change to the folder of many photographs; return what one process writes and prints there."""
    monkeypatch.chdir(many)
    return expected


@pytest.mark.slow
def test_processes_share_the_photographs(one_process):
    written, out, err = one_process
    status, our_out, our_err = finish(start_label(2))
    assert (status, our_out) == (0, out), our_err  # torchrun would take status 1 for a crash
    assert [line for line in our_err.splitlines() if line.startswith("skipped")] == err.splitlines()
    assert sorted(decoded(0)) == sorted(map(str, Path("photos").iterdir()))  # each once
    assert take_results() == written


@pytest.mark.slow
def test_the_processes_write_the_heatmaps_of_one(many, monkeypatch):
    monkeypatch.chdir(many)
    pictures = []
    for processes in (1, 2):
        options = ["--heatmap", "--top", 1, "--out_dir", f"maps{processes}"]
        places = [f"photos/{number}.jpg" for number in range(6)]
        status, _, err = finish(start_label(processes, *options, "--img_dir", *places))
        assert status == 0, err
        folder = Path(f"maps{processes}")
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}
        pictures.append(found)
        take_results()
    assert len(pictures[0]) == 2 * 6
    assert pictures[0] == pictures[1]
    for folder in Path().glob("maps*"):
        shutil.rmtree(folder)


def wait_for_rows(process: subprocess.Popen, number: int) -> None:
    rows = Path("s.csv.rows")
    wait_until(lambda: rows.exists() and rows.read_bytes().count(b"\n") > number, process)


def photos_with_rows() -> set[str]:
    lines = Path("s.csv.rows").read_text().splitlines(keepends=True)
    return {json.loads(line)["image"] for line in lines[1:] if line.endswith("\n")}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_costs_no_row(one_process):
    written = one_process.written
    launcher = start_label(2, "--resume", PET_MAX_RESTARTS="1", PAUSE="0.2")
    wait_for_rows(launcher, 9)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    done = photos_with_rows()
    status, out, err = finish(launcher)
    assert status == 0, err
    assert out.count("37 images found") == 2
    again = set(decoded(1))
    assert len(done) > 9
    assert len(done & again) <= 1  # of a batch that was stopped halfway
    assert done | again == {str(path) for path in Path("photos").iterdir()}
    assert take_results() == written


@pytest.mark.slow
@pytest.mark.parametrize(("first", "number", "then"), [(1, signal.SIGKILL, 2), (2, signal.SIGTERM, 1)])
def test_another_number_of_processes_goes_on(one_process, first, number, then):
    written = one_process.written
    process = start_label(first, PAUSE="0.2")
    wait_for_rows(process, 5)
    process.send_signal(number)
    assert finish(process)[0] != 0
    done = photos_with_rows()
    lines = Path("s.csv").read_text().splitlines()[1:]
    assert {line.partition(",")[0] for line in lines} <= done
    assert len(lines) >= len(done) - 1
    for log in Path().glob("decoded.*"):
        log.unlink()
    status, out, err = finish(start_label(then, "--resume"))
    assert status == (then == 1), err
    assert f"37 images found, {len(done)} of them labelled already" in out
    assert len(done & set(decoded(0))) <= 1
    assert take_results() == written
