"""Each parser refuses malformed files in one line; tests/stress/torture.py --fuzz tries many more."""

import pytest

from stress.fuzz import PARSERS, fuzz


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_malformed_files_are_refused_in_one_line(tmp_path, name):
    refused, _ = fuzz(name, tmp_path, count=20)  # gives up after 600 files
    assert refused >= 20
