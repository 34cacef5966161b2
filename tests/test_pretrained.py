"""The weights that a backbone starts from."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import main
from helpers import TINY, with_hash
from pipeline import vit_csra
from pipeline.models import MODELS
from small_networks import HEADS, INNER, LAYERS, WIDTH, timm_weights
from utils.command_line import load_from
from utils.weights.downloads import hash_in_name, name_in_cache
from utils.weights.imagenet import VIT_URLS, weights_url


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


@pytest.fixture(params=[True, False], ids=["archive", "old format"])
def published(request, shapes, hub, server, monkeypatch, tmp_path) -> Path:
    """Make a file for resnet18 with its hash in the name, and a server that does not have it."""
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "made-up.pth", _use_new_zipfile_serialization=request.param)
    name = with_hash("resnet18", (tmp_path / "made-up.pth").read_bytes())
    monkeypatch.setattr(load_from, "weights_url", lambda model: server.url(f"/{name}"))
    return (tmp_path / "made-up.pth").rename(tmp_path / name)


def test_imagenet_weights_are_read_from_the_cache(published, hub, monkeypatch, fails):
    cached = hub / published.name
    arguments = ["--dataset", "shapes", *TINY, "--pretrained", "imagenet"]
    fails(main, *arguments, says=["Not Found", f"put the file at {cached}", "or use --pretrained none"])
    content = bytearray(published.read_bytes())
    hub.mkdir(parents=True)
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
        name = weights_url(model).rpartition("/")[2]
        assert re.fullmatch(r"[0-9a-f]{8,64}", hash_in_name(name)), name
        assert name_in_cache(weights_url(model)) == name  # as torch.hub names it


def test_vision_transformers_start_from_the_files_of_the_authors():
    release = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/"
    expected = {
        "vit_B16_224": f"{release}jx_vit_base_p16_224-80ecf9dd.pth",
        "vit_L16_224": f"{release}jx_vit_large_p16_224-4ee7a4dc.pth",
    }
    assert expected == VIT_URLS
    assert VIT_URLS.keys() == vit_csra.VITS.keys()


@pytest.fixture
def timm_file(shapes, server, hub, monkeypatch, tmp_path) -> str:
    """Make vit_B16_224 a small network, and its URL that of a small file with its hash in the name."""
    monkeypatch.setitem(vit_csra.VITS, "vit_B16_224", (LAYERS, HEADS, WIDTH, INNER))
    weights = timm_weights(grid=14)
    del weights["classifier.multi_head.0.head.weight"]
    head = {"head.weight": torch.zeros(1000, WIDTH), "head.bias": torch.zeros(1000)}
    torch.save(weights | head, tmp_path / "made-up.pth")
    content = (tmp_path / "made-up.pth").read_bytes()
    url = server.add(f"/{with_hash('made-up', content)}", content)
    monkeypatch.setitem(VIT_URLS, "vit_B16_224", url)
    return url


VIT = ["--dataset", "shapes", *TINY, "--model", "vit_B16_224", "--pretrained", "imagenet"]


@pytest.mark.parametrize("img_size", [224, 48])
def test_timms_weights_are_downloaded_once_and_fit_any_image_size(timm_file, server, monkeypatch, img_size):
    monkeypatch.setattr(sys, "argv", ["main.py", *VIT, "--img_size", str(img_size)])
    for _ in range(2):
        state = main.build_model(
            main.resolve(main.make_parser().parse_args()), torch.device("cpu")
        ).state_dict()
        expected = timm_weights(grid=14)
        assert torch.equal(state["conv_proj.weight"], expected["patch_embed.proj.weight"].float())
        assert state["encoder.pos_embedding"].shape == (1, (img_size // 16) ** 2 + 1, WIDTH)
        assert img_size != 224 or torch.equal(state["encoder.pos_embedding"], expected["pos_embed"].float())
    assert len(server.asked) == 1  # the second time it is in the cache
