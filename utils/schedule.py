"""The learning rate: linear warm-up times step decay."""


def learning_rate(base: float, iteration: int, epoch: int, warmup_iterations: int, decay_step: int) -> float:
    """Return base · min(1, k/W) · 0.1^⌊e/s⌋ for iteration k of the run, in epoch e, both counted from 0.

    warmup_iterations: W ≥ 0, no warm-up at 0. decay_step: s > 0 epochs between tenfold drops.
    """
    warmup = min(1.0, iteration / warmup_iterations) if warmup_iterations else 1.0
    return base * warmup * 0.1 ** (epoch // decay_step)
