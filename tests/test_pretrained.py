"""The weights that a backbone starts from."""

import hashlib
import re
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import main
from helpers import HEADS, INNER, LAYERS, TINY, WIDTH, timm_weights
from pipeline import vit_csra
from pipeline.models import MODELS
from utils.weights import downloads
from utils.weights.downloads import VIT_URLS


def test_cutmix_weights_are_loaded_into_the_trunk(shapes, tmp_path, monkeypatch):
    torch.manual_seed(5)
    resnet = torchvision.models.resnet18(weights=None)
    content = {"epoch": 300, "state_dict": {f"module.{k}": v for k, v in resnet.state_dict().items()}}
    torch.save(content, tmp_path / "cutmix.pth")
    monkeypatch.setattr(
        sys, "argv", ["main.py", "--dataset", "shapes", "--cutmix", str(tmp_path / "cutmix.pth")]
    )
    state = main.build_model(main.resolve(main.make_parser().parse_args()), torch.device("cpu")).state_dict()
    for name, tensor in resnet.state_dict().items():
        assert name.startswith("fc.") or torch.equal(state[name], tensor)


def test_a_cutmix_file_that_does_not_fit_is_refused(shapes, fails, tmp_path):
    path = tmp_path / "cutmix.pth"
    state = torchvision.models.resnet18(weights=None).state_dict()
    arguments = ["--dataset", "shapes", *TINY, "--cutmix", path]
    torch.save({k: v for k, v in state.items() if not k.startswith("layer3.1")}, path)
    fails(main, *arguments, says=[path, "lacks layer3.1.conv1.weight (10 in all)"])
    torch.save({**state, "layer1.0.conv1.weight": torch.zeros(1)}, path)
    fails(main, *arguments, says=[path, "layer1.0.conv1.weight has shape (1,)"])
    torch.save(state, path)
    fails(main, *arguments, "--model", "resnet50", says=[path, "resnet50", "lacks"])
    fails(main, *arguments, "--pretrained", "none", says=["--pretrained", "--cutmix"])
    fails(main, "--dataset", "shapes", "--cutmix", "gone.pth", says=["gone.pth", "no such file"])


def sha256_prefix(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


@pytest.fixture(params=[True, False], ids=["archive", "old format"])
def published(request, shapes, monkeypatch, tmp_path) -> Path:
    """Make a file for resnet18 with its hash in the name, and an empty cache without a network."""
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "made-up.pth", _use_new_zipfile_serialization=request.param)
    path = tmp_path / f"resnet18-{sha256_prefix(tmp_path / 'made-up.pth')}.pth"
    (tmp_path / "made-up.pth").rename(path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(downloads, "weights_url", lambda model: f"https://example.org/{path.name}")
    (tmp_path / "checkpoints").mkdir()

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return path


def test_imagenet_weights_are_read_from_the_cache(published, monkeypatch, fails, tmp_path):
    cached = tmp_path / "checkpoints" / published.name
    arguments = ["--dataset", "shapes", *TINY, "--pretrained", "imagenet"]
    fails(main, *arguments, says=["no route to host", cached, published.name, "--pretrained none"])
    content = bytearray(published.read_bytes())
    cached.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
    state = main.build_model(main.resolve(main.make_parser().parse_args()), torch.device("cpu")).state_dict()
    expected = torch.load(published, weights_only=True)
    assert torch.equal(state["conv1.weight"], expected["conv1.weight"])
    # A wrong bit in the numbers of the last tensor: nothing in a file of the old format tells.
    content[-50] ^= 1
    for damaged in (content, b"cut short"):
        cached.write_bytes(damaged)
        fails(main, *arguments, says=[cached, "is damaged", "delete it", "--pretrained none"])


def test_torchvision_and_timm_publish_the_hash_of_each_file():
    for model in MODELS:
        name = downloads.weights_url(model).rpartition("/")[2]
        assert re.fullmatch(r"[0-9a-f]{8,64}", downloads.hash_in_name(Path(name))), name


def test_vision_transformers_start_from_the_files_of_the_authors():
    release = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/"
    expected = {
        "vit_B16_224": f"{release}jx_vit_base_p16_224-80ecf9dd.pth",
        "vit_L16_224": f"{release}jx_vit_large_p16_224-4ee7a4dc.pth",
    }
    assert expected == VIT_URLS
    assert VIT_URLS.keys() == vit_csra.SIZES.keys()


@pytest.fixture
def timm_file(shapes, monkeypatch, tmp_path) -> Path:
    """Make vit_B16_224 a small network, and its URL that of a small file with its hash in the name."""
    monkeypatch.setitem(vit_csra.SIZES, "vit_B16_224", (LAYERS, HEADS, WIDTH, INNER))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = timm_weights(grid=14)
    del weights["classifier.multi_head.0.head.weight"]
    head = {"head.weight": torch.zeros(1000, WIDTH), "head.bias": torch.zeros(1000)}
    torch.save(weights | head, tmp_path / "made-up.pth")
    name = f"made-up-{sha256_prefix(tmp_path / 'made-up.pth')}.pth"
    path = (tmp_path / "made-up.pth").rename(tmp_path / name)
    monkeypatch.setitem(VIT_URLS, "vit_B16_224", path.as_uri())
    return path


VIT = ["--dataset", "shapes", *TINY, "--model", "vit_B16_224", "--pretrained", "imagenet"]


@pytest.mark.parametrize("img_size", [224, 48])
def test_timms_weights_are_downloaded_once_and_fit_any_image_size(timm_file, monkeypatch, img_size):
    monkeypatch.setattr(sys, "argv", ["main.py", *VIT, "--img_size", str(img_size)])
    for _ in range(2):
        state = main.build_model(
            main.resolve(main.make_parser().parse_args()), torch.device("cpu")
        ).state_dict()
        expected = timm_weights(grid=14)
        assert torch.equal(state["conv_proj.weight"], expected["patch_embed.proj.weight"].float())
        assert state["encoder.pos_embedding"].shape == (1, (img_size // 16) ** 2 + 1, WIDTH)
        assert img_size != 224 or torch.equal(state["encoder.pos_embedding"], expected["pos_embed"].float())
        timm_file.unlink(missing_ok=True)  # the second time it is in the cache


def test_a_download_is_checked_and_its_failure_names_url_and_place(timm_file, fails, tmp_path):
    wrong = timm_file.with_name("made-up-00000000.pth")
    place = tmp_path / "hub" / "checkpoints" / wrong.name
    VIT_URLS["vit_B16_224"] = wrong.as_uri()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    options = [*VIT, "--img_size", 48]
    fails(main, *options, says=["cannot download", wrong.as_uri(), place, "--pretrained none"])
    timm_file.rename(wrong)
    fails(main, *options, says=["invalid hash", wrong.as_uri(), place])
