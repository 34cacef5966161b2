"""Compare the learning rate at every iteration with the formula."""

import math
from argparse import Namespace

import pytest

import main
from helpers import RUN
from main import learning_rate
from utils.training.messages import warmup_line


@pytest.mark.parametrize("decay_step", [1, 4, 5])
@pytest.mark.parametrize("warmup_epochs", [0, 1, 2, 7])
def test_every_iteration_follows_the_formula(warmup_epochs, decay_step):
    per_epoch = 3
    for epoch in range(12):
        for k in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            warmup = min(1, k / (warmup_epochs * per_epoch)) if warmup_epochs else 1
            expected = 0.01 * warmup * 0.1 ** math.floor(epoch / decay_step)
            rate = learning_rate(0.01, k, epoch, warmup_epochs * per_epoch, decay_step)
            assert rate == pytest.approx(expected, rel=1e-12)


def test_warm_up_starts_at_zero_and_multiplies_the_decay():
    assert learning_rate(1, 0, 0, 10, 4) == 0
    assert learning_rate(1, 10, 1, 10, 4) == 1
    # If the warm-up is longer than the decay step, the rate decays before the warm-up ends.
    assert learning_rate(1, 50, 5, 100, 4) == pytest.approx(0.05)


def test_a_warm_up_that_outlasts_the_run_is_reported(shapes, tmp_path, command):
    result = command(main, *RUN, "--total_epoch", 1, "--output_dir", tmp_path / "run")
    assert result.status == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.startswith("warning: ")]
    assert "--warmup_epoch 1" in line
    assert "--total_epoch 1" in line
    assert "never reaches --lr 0.01" in line


def test_a_warm_up_that_ends_before_the_run_is_not_reported():
    assert warmup_line(Namespace(warmup_epoch=2, total_epoch=3, lr=0.01)) == ""
    assert warmup_line(Namespace(warmup_epoch=3, total_epoch=2, lr=0.01)).startswith("warning: ")
