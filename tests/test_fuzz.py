"""A short run of the program behind ``make fuzz``."""

from __future__ import annotations

import resource

import fuzz
import pytest


@pytest.mark.parametrize("container", fuzz.CONTAINERS)
def test_damaged_source_is_refused_in_one_line_or_converted_right(container: str) -> None:
    cases = list(fuzz.run(container, count=40, seed=1))
    assert [case for case in cases if not case] == []
    assert "refused" in {case.outcome for case in cases}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < fuzz.LARGEST_GIB
