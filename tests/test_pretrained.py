"""The weights that a backbone starts from."""

import sys

import torch
import torchvision

import main
from conftest import TINY


def test_cutmix_weights_are_loaded_into_the_trunk(shapes, tmp_path, monkeypatch):
    torch.manual_seed(5)
    resnet = torchvision.models.resnet18(weights=None)
    content = {"epoch": 300, "state_dict": {f"module.{k}": v for k, v in resnet.state_dict().items()}}
    torch.save(content, tmp_path / "cutmix.pth")
    monkeypatch.setattr(
        sys, "argv", ["main.py", "--dataset", "shapes", "--cutmix", str(tmp_path / "cutmix.pth")]
    )
    state = main.build_model(main.parse_args()[0], torch.device("cpu")).state_dict()
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


def test_imagenet_weights_are_read_from_the_cache(shapes, monkeypatch, fails, tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    cached = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    arguments = ["--dataset", "shapes", *TINY, "--pretrained", "imagenet"]

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    fails(main, *arguments, says=[cached, "resnet18-f37072fd.pth", "--pretrained none"])
    cached.write_bytes(b"cut short")
    fails(main, *arguments, says=[cached, "delete it"])
    torch.save(state, cached)
    monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
    assert torch.equal(
        main.build_model(main.parse_args()[0], torch.device("cpu")).state_dict()["conv1.weight"],
        state["conv1.weight"],
    )
