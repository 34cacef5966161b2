"""Any torchvision classifier, cut after its last feature map, with CSRA in place of the rest."""

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pipeline.network import Network, make_classifier, rename


class Trunk_CSRA(Network):
    """torchvision's network `model` up to its last feature map, as `trunk`, and a CSRA `classifier`.

    The state dict has torchvision's names, prefixed with `trunk.`. Weights start random.
    """

    def __init__(self, num_heads: int, lam: float, num_classes: int, model: str):
        super().__init__()
        without_extras = {}
        if model in ("googlenet", "inception_v3"):
            without_extras = {"aux_logits": False, "init_weights": False}
        network = torchvision.models.get_model(model, weights=None, **without_extras)
        self.trunk, width = cut_after_last_map(network)
        self.classifier = make_classifier(num_heads, lam, width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to the last feature map (B, D, h, w)."""
        return self.trunk(self.normalize(images))["map"]

    def adapt(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict under this network's names; torchvision's own lack the prefix `trunk.`."""
        if any(key.startswith("trunk.") for key in state_dict):
            return state_dict
        # torchvision's DenseNet files have names from before its code changed, such as norm.1 for norm1.
        renamed = rename(state_dict, {r"(.*denselayer\d+\.(?:norm|conv))\.": r"\1"})
        return {f"trunk.{name}": value for name, value in renamed.items()}


def cut_after_last_map(network: nn.Module) -> tuple[nn.Module, int]:
    """Return the network up to its last feature map (B, D, H, W), which it outputs as "map", and D."""
    network.eval()
    _, nodes = get_graph_node_names(network, suppress_diff_warning=True)
    every_node = create_feature_extractor(network, nodes, suppress_diff_warning=True).eval()
    with torch.inference_mode():
        small, large = (every_node(torch.zeros(1, 3, side, side)) for side in (128, 256))
    maps = {node: value for node, value in small.items() if isinstance(value, Tensor) and value.ndim == 4}
    # A feature map grows with the image; the output of adaptive pooling does not.
    *_, last = (node for node in maps if maps[node].shape[2] < large[node].shape[2])
    cut = create_feature_extractor(network, {last: "map"}, suppress_diff_warning=True)
    return cut, maps[last].shape[1]
