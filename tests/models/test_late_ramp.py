"""Weights that are zero at first: values, those of the authors' code, what is refused."""

from __future__ import annotations

import pytest

from models.late_ramp import LateRamp, published_ramp


def test_a_late_ramp_is_zero_until_its_start() -> None:
    ramp = LateRamp(0.5, 8, 4)
    assert [ramp(epoch) for epoch in (0, 8, 9, 10, 12, 40)] == [0.0, 0.0, 0.125, 0.25, 0.5, 0.5]
    for wrong, name in (((-1.0, 8, 4), "end"), ((0.5, -1, 4), "start"), ((0.5, 8, 0), "steps")):
        with pytest.raises(ValueError, match=name):
            LateRamp(*wrong)


def test_the_published_one_has_the_values_of_the_authors_code() -> None:
    found = [published_ramp(epoch) for epoch in (0, 100, 400, 850, 1000)]
    assert found == pytest.approx([0.0, 0.0, 0.01, 0.025, 0.025])
