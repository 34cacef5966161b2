"""Every parser tells a malformed file in one line; tests/stress/torture.py --fuzz tries many more."""

import pytest

from stress.fuzz import PARSERS, fuzz


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_malformed_files_are_told_in_one_line(tmp_path, name):
    refused, _ = fuzz(name, tmp_path, count=20)  # or it gives up, having tried 600
    assert refused >= 20
