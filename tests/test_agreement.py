"""What is said of two sides that were run: the worst clip counts, and a NaN is never lost."""

from __future__ import annotations

import math

import pytest
import torch

from movinet_port.agreement import Tally

CLIP = (1, 2, 8, 8)


def logits(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_worst_clip_counts_relative_to_its_own_largest_logit() -> None:
    tally = Tally()
    tally.add(CLIP, logits(1000.0, 0.0), logits(1000.0, 0.001))
    tally.add(CLIP, logits(1.0, 0.0), logits(1.0, 1e-4))
    tally.add(CLIP, logits(10.0, 0.0), logits(10.0, 0.0))
    found = tally.agreement()
    assert (found.difference, found.magnitude) == (1e-4, 1.0)
    assert found.logits == 1e-4
    assert not found
    assert found.clips == (CLIP,) * 3


@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_in_any_clip_is_no_agreement(position: int) -> None:
    tally = Tally()
    for number in range(3):
        value = math.nan if number == position else 0.0
        tally.add(CLIP, logits(1.0, 0.0), logits(1.0, value))
    assert math.isnan(tally.agreement().logits)
    assert not tally.agreement()


@pytest.mark.parametrize("found", [logits(1.0), logits(1.0, 0.0).float()], ids=["shape", "type"])
def test_logits_of_another_shape_or_type_are_infinitely_far(found: torch.Tensor) -> None:
    tally = Tally()
    tally.add(CLIP, logits(1.0, 0.0), found)
    assert tally.agreement().logits == math.inf


def test_count_of_frames_must_be_exact_and_other_states_near() -> None:
    tally = Tally()
    tally.add(CLIP, logits(1.0), logits(1.0))
    tally.add_state(torch.tensor([1.0]), torch.tensor([1.0 + 1e-4]))
    assert tally.agreement()
    tally.add_state(torch.tensor([10**6]), torch.tensor([10**6 + 1]), exact=True)
    assert tally.agreement().states == math.inf
    assert not tally.agreement()


def test_share_of_videos_with_the_same_class() -> None:
    tally = Tally()
    tally.add((2, 2, 8, 8), torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.5]]))
    found = tally.agreement()
    assert found.top1 == 0.5
    assert found.rms == pytest.approx(math.sqrt(1.25 / 2))
