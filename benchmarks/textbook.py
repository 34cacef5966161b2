"""The textbook's way to compute each stage: simple and correct code that does nothing for speed."""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pipeline.csra import TEMPERATURES


class Photos(Dataset):
    """Images as Pillow and torchvision's transforms load them: float tensors (3, S, S) in [0, 1]."""

    def __init__(self, paths: list[str], targets: np.ndarray, img_size: int, train: bool):
        self.paths = paths
        self.targets = targets
        resize = [transforms.Resize((img_size, img_size))]
        if train:
            crop = transforms.RandomResizedCrop(img_size, scale=(0.7, 1.0))
            resize = [crop, transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*resize, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image), torch.tensor(self.targets[index], dtype=torch.float32)


class Heads(nn.Module):
    """CSRA with one convolution for each head (paper, Eq. 5-8)."""

    def __init__(self, num_heads: int, lam: float, input_dim: int, num_classes: int):
        super().__init__()
        self.temperatures = TEMPERATURES[num_heads]
        self.lam = lam
        self.convs = nn.ModuleList(
            nn.Conv2d(input_dim, num_classes, 1, bias=False) for _ in self.temperatures
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = x.new_zeros(())
        for conv, T in zip(self.convs, self.temperatures):
            norm = conv.weight.norm(dim=1, keepdim=True).view(1, -1, 1)
            scores = conv(x).flatten(2) / norm
            if math.isinf(T):
                attended = scores.max(dim=2).values
            else:
                attended = (torch.softmax(T * scores, dim=2) * scores).sum(dim=2)
            logits = logits + scores.mean(dim=2) + self.lam * attended
        return logits


class PatchTokens(nn.Module):
    """torchvision's ViT-B/16 up to the patch tokens after its last norm, as a map (B, D, S/16, S/16)."""

    def __init__(self) -> None:
        super().__init__()
        vit = torchvision.models.vit_b_16()
        self.conv_proj = vit.conv_proj
        self.class_token = vit.class_token
        self.encoder = vit.encoder

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.encoder(tokens)[:, 1:].transpose(1, 2).reshape(patches.shape)


def make_trunk(model: str) -> tuple[nn.Module, int]:
    """Return torchvision's network up to its last feature map (B, D, h, w), and D.

    model: a ResNet, vit_B16_224 or mobilenet_v2.
    """
    if model == "vit_B16_224":
        return PatchTokens(), 768
    network = torchvision.models.get_model(model)
    if model == "mobilenet_v2":
        return network.features, network.last_channel
    return nn.Sequential(*list(network.children())[:-2]), network.fc.in_features


class Network(nn.Module):
    """torchvision's network, with Heads in place of its average pooling and classifier."""

    def __init__(self, model: str, num_heads: int, lam: float, num_classes: int):
        super().__init__()
        self.trunk, width = make_trunk(model)
        self.heads = Heads(num_heads, lam, width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.heads(self.trunk(images))


def copy_weights(network: Network, ours: nn.Module) -> None:
    """Copy the weights of our network, which holds the same tensors in the same order."""
    state = [*ours.state_dict().values()]
    trunk, heads = state[: -len(network.heads.convs)], state[-len(network.heads.convs) :]
    network.trunk.load_state_dict(dict(zip(network.trunk.state_dict(), trunk)))
    network.heads.load_state_dict(dict(zip(network.heads.state_dict(), heads)))


def train(network: Network, loader: DataLoader, lr: float, device: torch.device) -> list[float]:
    """Train one epoch with SGD and read the loss at every step; return the losses."""
    groups = [
        {"params": network.trunk.parameters(), "lr": lr},
        {"params": network.heads.parameters(), "lr": 10 * lr},
    ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4)
    criterion = nn.BCEWithLogitsLoss()
    network.train()
    losses = []
    for images, targets in loader:
        loss = criterion(network(images.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def predict(network: Network, loader: DataLoader, device: torch.device) -> np.ndarray:
    """Return the scores (N, C) of a loader's images; move them to the CPU batch by batch."""
    network.eval()
    return np.concatenate([torch.sigmoid(network(images.to(device))).cpu().numpy() for images, _ in loader])


@torch.no_grad()
def label_folder(folder: str, depth: int, img_size: int, device: str) -> None:
    """Score the images of a folder one at a time, as tutorials do; weights and scores are files beside it."""
    weights = torch.load(f"{folder}.pth")
    network = Network(f"resnet{depth}", 1, 0.1, weights["heads.convs.0.weight"].shape[0])
    network.load_state_dict(weights)
    network.to(device).eval()
    transform = transforms.Compose([transforms.Resize((img_size, img_size)), transforms.ToTensor()])
    scores = {}
    for path in sorted(Path(folder).iterdir()):
        image = transform(Image.open(path).convert("RGB"))
        scores[path.name] = torch.sigmoid(network(image.unsqueeze(0).to(device)))[0].tolist()
    Path(f"{folder}.json").write_text(json.dumps(scores))


def label_in_batches(
    folder: str, weights_file: str, model: str, img_size: int, batch_size: int, num_workers: int
) -> None:
    """Score the images of a folder in batches on the CPU, and write the scores to a file beside it."""
    weights = torch.load(weights_file)
    network = Network(model, 1, 0.1, weights["heads.convs.0.weight"].shape[0])
    network.load_state_dict(weights)
    paths = sorted(str(path) for path in Path(folder).iterdir())
    photos = Photos(paths, np.zeros((len(paths), 1)), img_size, train=False)
    loader = DataLoader(photos, batch_size, num_workers=num_workers)
    scores = predict(network, loader, torch.device("cpu"))
    Path(f"{folder}.json").write_text(json.dumps(dict(zip(paths, scores.tolist()))))


def evaluate(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Compute the metrics of utils.evaluation.evaluate, except AP, in loops over classes and images."""
    images, classes = scores.shape
    top3 = np.zeros(scores.shape, bool)
    for i in range(images):
        for c in sorted(range(classes), key=lambda c: -scores[i, c])[:3]:
            top3[i, c] = True
    ap = [average_precision(scores[:, c], targets[:, c]) for c in range(classes)]
    metrics = {"mAP": sum(ap) / classes}
    for suffix, allowed in (("", np.ones(scores.shape, bool)), ("_3", top3)):
        hits, predicted, positives = [0] * classes, [0] * classes, [0] * classes
        for c in range(classes):
            for i in range(images):
                chosen = scores[i, c] >= 0.5 and allowed[i, c]
                predicted[c] += chosen
                positives[c] += targets[i, c]
                hits[c] += chosen and targets[i, c]
        cp = sum(h / p if p else 0 for h, p in zip(hits, predicted)) / classes
        cr = sum(h / p if p else 0 for h, p in zip(hits, positives)) / classes
        op, recall = sum(hits) / max(sum(predicted), 1), sum(hits) / max(sum(positives), 1)
        values = (cp, cr, 2 * cp * cr / (cp + cr), op, recall, 2 * op * recall / (op + recall))
        metrics |= {f"{name}{suffix}": v for name, v in zip(("CP", "CR", "CF1", "OP", "OR", "OF1"), values)}
    return metrics


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean of the precision at the rank of each positive."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    hits, total = 0, 0.0
    for rank, i in enumerate(order, start=1):
        if targets[i]:
            hits += 1
            total += hits / rank
    return total / hits
