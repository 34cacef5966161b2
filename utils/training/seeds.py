"""Seeds of random numbers that a resumed run must draw again."""

import numpy as np


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """Return the seed of a step's random numbers in one process, so that a resume can repeat dropout."""
    mixed = np.random.SeedSequence((seed, iteration, rank))
    return int(mixed.generate_state(1, np.uint64)[0])
