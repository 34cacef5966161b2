"""The seed of each training step, so that a resumed run draws the same random numbers."""

import numpy as np


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """Return the seed of a step in one process, which dropout draws from."""
    mixed = np.random.SeedSequence((seed, iteration, rank))
    return int(mixed.generate_state(1, np.uint64)[0])
