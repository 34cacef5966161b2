"""The entry point of torch.hub.load(FOLDER, "csra", "best.pth", source="local")."""

from utils.checkpoint import load_model as csra  # noqa: F401

dependencies = ["torch", "torchvision", "numpy", "PIL", "tqdm"]
