"""The versions of PyTorch that work."""

import sys

from utils.runtime.errors import UserError

OLDEST_TORCH = (2, 5)  # the first with torch.serialization.safe_globals, which reading a checkpoint needs


def check_torch() -> None:
    """Raise UserError if PyTorch has been imported and is too old; this function imports nothing."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    version = str(torch.__version__)
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        way_out = "pip install -r requirements.txt"
        raise UserError(f"PyTorch {version} is too old: install {oldest} or later, for example by {way_out}")
