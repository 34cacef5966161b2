"""Checkpoints by URL and by published name, from a local server that imitates the real ones."""

import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import torchvision

import demo
import export
import main
import val
from file_server import Answer
from helpers import REPOSITORY, SHAPES, TINY, finish_ranks, start_ranks, with_hash
from pipeline.resnet_csra import ResNet_CSRA
from utils.checkpoint import load_model
from utils.runtime.errors import UserError
from utils.weights import published
from utils.weights.downloads import fetch, hash_in_name, may_download, name_in_cache
from utils.weights.google_drive import direct_address
from utils.weights.published import PUBLISHED

PAGE = b"<!DOCTYPE html><html><head><title>Google Drive -\n Quota exceeded</title></head></html>"
# As Google Drive sends it for a file that is too large to be checked for viruses.
WARNING = b"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="other" action="/wrong"><input type="hidden" name="no" value="1"></form>
<form id="download-form" action="/download" method="get">
<input type="submit" id="uc-download-link" value="Download anyway"/>
<input type="hidden" name="id" value="FILE"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="1-2"></form>
</body></html>"""
CONFIRMED = "/download?id=FILE&export=download&confirm=t&uuid=1-2"


def saved(content: object) -> bytes:
    """Return the bytes of a file that torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


SMALL = saved({"a": torch.zeros(3)})
OLD = io.BytesIO()
torch.save({"a": torch.zeros(3)}, OLD, _use_new_zipfile_serialization=False)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Return the state dict of a network for shapes, without the λ that it was trained with."""
    torch.manual_seed(0)
    return ResNet_CSRA(2, 0.4, 8, depth=18).state_dict()


@pytest.fixture(scope="module")
def content(weights) -> bytes:
    return saved(weights)


def left_in(folder: Path) -> list[Path]:
    """Return what is in a folder, which may be missing."""
    return list(folder.glob("*"))


# From a URL.


def test_a_url_is_downloaded_once(content, shapes, hub, server, command, tmp_path):
    url = server.add(f"/a/{with_hash('model', content)}", content)
    (tmp_path / "here.pth").write_bytes(content)
    cached = hub / urlsplit(url).path.rpartition("/")[2]
    options = [*SHAPES, "--img_size", 40, "--out", tmp_path / "r.json", "--load_from"]
    metrics = []
    for source in (url, url, tmp_path / "here.pth"):
        result = command(val, *options, source)
        assert (result.status, result.err) == (0, "")
        assert (f"downloading {url} to {cached}\n" in result.out) == (metrics == [])
        metrics.append(json.loads((tmp_path / "r.json").read_text()))
        if source == url:
            server.close()  # without network from here on
    assert metrics[0] == metrics[1] == metrics[2]
    assert len(server.asked) == 1
    assert left_in(hub) == [cached]
    assert cached.read_bytes() == content


def test_load_model_takes_a_url_and_prints_nothing(content, hub, server, capfd):
    url = server.add("/best.pth?download=1", content)
    model = load_model(url, "shapes", lam=0.2, device="cpu")
    assert model.options["lam"] == 0.2
    server.close()
    assert load_model(url, "shapes", device="cpu").options["num_heads"] == 2
    assert capfd.readouterr() == ("", "")
    (cached,) = left_in(hub)
    in_place = load_model(cached.as_uri(), "shapes", device="cpu")
    assert in_place.options["num_heads"] == 2
    assert left_in(hub) == [cached]  # a file:// address is read where it is


def test_main_takes_backbone_weights_from_a_url(shapes, hub, server, monkeypatch):
    state = torchvision.models.resnet18(weights=None).state_dict()
    url = server.add("/cutmix.pth", saved(state))
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", "--backbone_weights", url])
    args = main.resolve(main.make_parser().parse_args())
    network = main.build_model(args, torch.device("cpu"))
    assert torch.equal(network.state_dict()["conv1.weight"], state["conv1.weight"])


def test_the_bar_shows_in_a_terminal_only(hub, server, monkeypatch, capsys):
    fetch(server.add("/hidden.pth", SMALL))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(server.add("/shown.pth", SMALL))
    out, err = capsys.readouterr()
    assert out == ""
    assert "hidden" not in err
    assert "shown" in err
    assert f"0.00/{len(SMALL) / 1024:.2f}k" in err


FAILURES = {
    "wrong hash": (Answer(SMALL), "/m-00000000.pth", "its SHA-256 starts with"),
    "cut": (Answer(SMALL[:-9], length=len(SMALL)), "/m.pth", f"after {len(SMALL) - 9} of {len(SMALL)} bytes"),
    "cut, of unknown length": (Answer(SMALL[:-9], length=None), "/m.pth", "what came is damaged"),
    "cut, of the old format": (Answer(OLD.getvalue()[:-9], length=None), "/m.pth", "what came is"),
    "page": (Answer(PAGE, "text/html; charset=utf-8"), "/m.pth", "(Google Drive - Quota exceeded)"),
    "page under another type": (Answer(b"\n<html>"), "/m-00000000.pth", "a web page came"),
    "missing": (Answer(PAGE, "text/html", status=404), "/m.pth", "404"),
    "to http": (Answer(b"", status=302, location="http://example.org/m.pth"), "/m.pth", "not https"),
    "to a file": (Answer(b"", status=302, location="file:///etc/passwd"), "/m.pth", "Redirection to url"),
    "in a circle": (Answer(b"", status=302, location="/m.pth"), "/m.pth", "redirect"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_download_says_where_to_put_the_file_and_leaves_none(failure, hub, server, workdir, fails):
    answer, path, says = FAILURES[failure]
    url = server.add(path, answer)
    place = hub / name_in_cache(url)
    hub.mkdir(parents=True)
    fails(
        demo, "--img_dir", REPOSITORY / "docs" / "attention.jpg", "--load_from", url, says=[url, place, says]
    )
    assert left_in(hub) == []
    with pytest.raises(UserError, match="put the file at"):
        load_model(url)
    assert left_in(hub) == []


def test_without_network_the_line_says_where_to_put_the_file(hub, server, workdir, fails):
    url = server.url("/m-00000000.pth")
    server.close()
    place = hub / "m-00000000.pth"
    says = [f"cannot download {url}: Connection refused; put the file at {place} by hand"]
    fails(export, "--out", "m.pt2", "--load_from", url, says=says)
    assert not hub.exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example.org/m.pth", "only https://"),
        ("http://127.0.0.1.example.org/m.pth", "only https://"),
        ("ftp://example.org/m.pth", "only https://"),
        ("file://elsewhere/m.pth", "only https://"),
        ("https://[1/m.pth", "https://[1/m.pth: "),
        ("https:///m.pth", "no host given"),
        ("file:///gone/m.pth", "/gone/m.pth: no such file"),
    ],
)
def test_other_addresses_are_refused_in_one_line(url, says, hub, workdir, fails):
    fails(export, "--out", "m.pt2", "--load_from", url, says=[says])
    assert not hub.exists()


def test_http_is_for_this_machine():
    assert may_download("https://example.org/m.pth")
    assert all(may_download(f"http://{host}:80/m") for host in ("127.0.0.1", "localhost", "[::1]"))


def test_a_server_that_falls_silent_is_given_up(hub, server, monkeypatch):
    monkeypatch.setattr("utils.weights.downloads.TIMEOUT", 0.3)
    monkeypatch.setattr(server, "send", lambda handler: time.sleep(1))
    with pytest.raises(UserError, match="timed out; put the file at"):
        fetch(server.url("/m.pth"))
    assert not hub.exists()


def test_a_damaged_file_in_the_cache_is_refused(hub, server):
    path = fetch(server.add(f"/{with_hash('m', SMALL)}", SMALL))
    path.write_bytes(SMALL[:-1])
    with pytest.raises(UserError, match=r"is damaged.*delete it"):
        fetch(server.url(f"/{path.name}"))


def test_names_in_the_cache():
    assert name_in_cache("https://a.org/b/resnet18-f37072fd.pth?x=1") == "resnet18-f37072fd.pth"
    names = {name_in_cache(f"https://a.org/{part}/best.pth") for part in ("voc", "coco", "../..")}
    assert len(names) == 3  # the last part of the address alone would take one file for the other
    assert all(name.startswith("best_") and name.endswith(".pth") for name in names)
    for odd in ("https://a.org", "https://a.org/..", "https://a.org/%2F", f"https://a.org/{'é/x' * 300}"):
        name = name_in_cache(odd)
        assert Path(name).name == name
        assert 0 < len(name) < 120
    assert [
        hash_in_name(name) for name in ("a-1234567.pth", "a-12345678.pth", "12345678.pth", "a-1234567g.pth")
    ] == [
        "",
        "12345678",
        "",
        "",
    ]


@pytest.mark.slow
def test_two_processes_download_once(content, shapes, server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = server.add("/best.pth", content)
    options = [*SHAPES, "--img_size", 40, "--batch_size", 5, "--load_from", url]
    status, out, err = finish_ranks(start_ranks(2, "val.py", *options))
    assert status == 0, err
    assert out.count("downloading") == len(server.asked) == 1
    assert len(left_in(tmp_path / "hub" / "checkpoints")) == 1


# Google Drive.


def test_drives_warning_page_is_confirmed(hub, server):
    url = server.add("/uc?export=download&id=FILE", Answer(WARNING, "text/html; charset=utf-8"))
    server.add(CONFIRMED, SMALL)
    assert fetch(url).read_bytes() == SMALL
    assert server.asked == ["/uc?export=download&id=FILE", CONFIRMED]


def test_a_page_after_the_warning_page_is_no_file(hub, server):
    url = server.add("/uc?export=download&id=FILE", Answer(WARNING, "text/html"))
    server.add(CONFIRMED, Answer(PAGE, "text/html"))
    with pytest.raises(
        UserError, match=r"a web page came, not a file \(Google Drive - Quota exceeded\); put"
    ):
        fetch(url)


def test_the_warning_page_cannot_lead_elsewhere(hub, server):
    outside = WARNING.replace(b'"/download"', b'"http://example.org/x"')
    with pytest.raises(UserError, match=r"it leads to http://example.org/x\?id=FILE.*not https"):
        fetch(server.add("/uc", Answer(outside, "text/html")))


def test_links_by_which_drive_shares_a_file():
    direct = "https://drive.google.com/uc?export=download&id=1a-B_2"
    for link in ("file/d/1a-B_2/view?usp=sharing", "open?id=1a-B_2"):
        assert direct_address(f"https://drive.google.com/{link}") == direct
    assert direct_address(direct) == direct


# By published name.


@pytest.fixture
def by_name(content, shapes, hub, server, monkeypatch) -> str:
    """Publish the network for shapes, on a server with Drive's warning page; return its name."""
    url = server.add("/uc?id=FILE", Answer(WARNING, "text/html"))
    server.add(CONFIRMED, content)
    row = replace(PUBLISHED["voc07_resnet101"], name="shapes_small", url=url, file="csra_shapes.pth")
    row = replace(row, model="resnet18", num_heads=2, lam=0.4, dataset="shapes")
    monkeypatch.setitem(published.PUBLISHED, row.name, row)
    return row.name


def test_a_published_name_brings_its_data_set_heads_and_lambda(by_name, server, hub, command):
    result = command(val, "--load_from", by_name, "--num_workers", 0, "--device", "cpu", "--img_size", 40)
    assert (result.status, result.err) == (0, "")
    assert "dataset shapes, num_cls 8" in result.out
    assert f"model resnet18, num_heads 2, lam 0.4, load_from {by_name}\n" in result.out
    assert "lambda" not in result.out
    model = load_model(by_name, device="cpu")
    assert (model.options["lam"], model.classes[0]) == (0.4, "circle")
    assert load_model(by_name, lam=0.7, device="cpu").options["lam"] == 0.7
    assert len(server.asked) == 2  # the page and the file, once
    assert left_in(hub) == [hub / "csra_shapes.pth"]


def test_main_takes_backbone_weights_by_name(weights, by_name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", "--backbone_weights", by_name])
    args = main.resolve(main.make_parser().parse_args())
    network = main.build_model(args, torch.device("cpu"))
    assert torch.equal(network.state_dict()["conv1.weight"], weights["conv1.weight"])
    assert args.cutmix == by_name


def test_options_given_by_hand_win_over_the_published_ones(by_name, command):
    options = ["--lam", 0.3, "--num_workers", 0, "--device", "cpu", "--img_size", 40]
    result = command(val, "--load_from", by_name, *options)
    assert (result.status, result.err) == (0, "")
    assert "lam 0.3" in result.out
    assert "this file was trained with lambda 0.4; evaluating with 0.3\n" in result.out


CONTRADICTIONS = {
    "--num_heads 4": ["--num_heads 4", "voc07_resnet101 has num_heads 1"],
    "--model resnet50": ["--model resnet50", "voc07_resnet101 has model resnet101"],
    "--num_cls 80": ["--num_cls 80", "voc07_resnet101 has num_cls 20"],
    "--dataset coco": ["--dataset coco", "voc07_resnet101 has the classes of voc07"],
}


@pytest.mark.parametrize("options", CONTRADICTIONS)
def test_contradictions_get_a_line_before_any_download(options, hub, workdir, fails, monkeypatch):
    monkeypatch.setattr("utils.weights.downloads.download", None)
    name = "voc07_resnet101"
    says = CONTRADICTIONS[options]
    fails(val, "--load_from", name, *options.split(), says=says)
    fails(demo, "--img_dir", ".", "--load_from", name, *options.split(), says=says)
    fails(export, "--out", "m.pt2", "--load_from", name, *options.split(), says=says)


def test_another_data_set_with_the_same_classes_is_no_contradiction(workdir, monkeypatch):
    for name, dataset in (("voc07_resnet101", "voc12"), ("coco_resnet101", "coco2017")):
        monkeypatch.setattr(sys, "argv", ["val.py", "--load_from", name, "--dataset", dataset])
        args = val.parse_args()[1]
        assert (args.dataset, args.lam) == (dataset, PUBLISHED[name].lam)


def test_a_backbone_is_for_training(shapes, hub, fails, monkeypatch):
    monkeypatch.setattr("utils.weights.downloads.download", None)
    says = ["resnet101_cutmix is a backbone", "--backbone_weights resnet101_cutmix"]
    fails(val, "--load_from", "resnet101_cutmix", says=says)
    backbone = ["--backbone_weights", "resnet101_cutmix"]
    says = ["resnet101_cutmix is for --model resnet101, not resnet18"]
    fails(main, "--dataset", "shapes", *TINY, *backbone, says=says)


def test_a_file_wins_over_a_published_name(weights, by_name, command, monkeypatch, tmp_path):
    monkeypatch.setattr("utils.weights.downloads.download", None)
    monkeypatch.chdir(tmp_path)
    torch.save(weights, by_name)
    result = command(
        export, "--dataset", "shapes", "--load_from", by_name, "--out", "m.onnx", "--num_heads", 4
    )
    assert f"--num_heads 4: {by_name} has num_heads 2" in result.err
    assert load_model(by_name, "shapes", device="cpu").options["lam"] == 0.1


def test_a_misspelt_name_gets_the_right_one(workdir, fails):
    for name, right in (("voc07_resnet11", "voc07_resnet101"), ("COCO-ResNet-cut", "coco_resnet_cut")):
        says = [f"{name}: no such file; did you mean {right}", "--list_checkpoints"]
        fails(val, "--load_from", name, says=says)
        with pytest.raises(UserError, match=right):
            load_model(name)
    fails(val, "--load_from", "best.pth", says=["best.pth: no such file"])


def test_another_file_in_the_place_of_a_published_one_is_refused(by_name, hub, shapes, fails):
    hub.mkdir(parents=True)
    torch.save(ResNet_CSRA(1, 0.1, 8, depth=18).state_dict(), hub / "csra_shapes.pth")
    says = ["csra_shapes.pth holds resnet18 with 1 heads", "is resnet18 with 2", "delete"]
    fails(val, "--load_from", by_name, says=says)
    with pytest.raises(UserError, match="holds resnet18 with 1 heads"):
        load_model(by_name)


def test_the_table_has_all_that_is_known(command):
    result = command(val, "--list_checkpoints")
    assert (result.status, result.err) == (0, "")
    head, *rows = result.out.splitlines()
    assert head.split() == ["name", "dataset", "model", "num_heads", "lam", "mAP", "source", "url"]
    assert [row.split()[:7] for row in rows] == [
        ["voc07_resnet101", "voc07", "resnet101", "1", "0.1", "94.7", "authors"],
        ["voc07_resnet_cut", "voc07", "resnet101", "1", "0.1", "95.2", "authors"],
        ["coco_resnet101", "coco", "resnet101", "4", "0.5", "83.3", "authors"],
        ["coco_resnet_cut", "coco", "resnet101", "6", "0.4", "85.6", "authors"],
        ["resnet101_cutmix", "-", "resnet101", "-", "-", "-", "authors"],
        ["voc07_resnet101_mmpretrain", "voc07", "resnet101", "1", "0.1", "94.98", "mmpretrain"],
    ]
    files = [row.file for row in PUBLISHED.values()]
    assert len({*files}) == len(files)
    assert hash_in_name(PUBLISHED["voc07_resnet101_mmpretrain"].file) == "29efb40a"
