"""The settings of the structured GAN's table: a generator is trained before the classifier learns from it."""

from __future__ import annotations

from benchmarks.reproduce.structured_gan import COMMON, SETTINGS, weights


def test_by_default_the_classifier_learns_from_samples_late() -> None:
    """Of a generator that has just begun most samples do not have the class that they are labeled with."""
    start = int(SETTINGS["SGAN"].default)
    options = weights(start)
    assert callable(options.generated)
    found = [options.generated(epoch) for epoch in range(start + int(COMMON["ramp"]) + 1)]
    assert found[: start + 1] == [0.0] * (start + 1)
    assert start >= 5 and 0.0 < found[start + 1] < found[-1]


def test_the_other_terms_do_not_wait() -> None:
    options = weights(8)
    for name in ("entropy", "balance", "consistency"):
        schedule = getattr(options, name)
        assert 0.0 < schedule(1) < schedule(5) < schedule(10) == schedule(40), name
