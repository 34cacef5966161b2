"""Write checkpoints completely or not at all."""

import io
from pathlib import Path
from typing import Any

import torch

from utils.runtime.files import atomic_write


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint; `path` holds a complete one at every moment."""
    content = io.BytesIO()  # if torch.save cannot write to a file, it hides the reason
    torch.save(checkpoint, content)
    with atomic_write(path, "wb") as file:
        file.write(content.getbuffer())
