"""The last table of the benchmark of the estimators, on numbers that were made up."""

from __future__ import annotations

from benchmarks.reproduce.sklearn_uci import METHODS, OURS, verdict


def rows(*values: float) -> list[dict[str, float]]:
    return [{"log likelihood": value} for value in values]


def test_the_better_rival_decides_and_one_standard_error_is_allowed() -> None:
    others = [label for label in METHODS if label != OURS]
    results = {f"{name}: {label}": rows(0.0, 0.0, 0.0) for name in ("near", "far") for label in others}
    results["near: gradient boosting"] = rows(1.0, 1.0, 1.0)
    results[f"near: {OURS}"] = rows(0.8, 1.3, 0.8)  # -0.033, of which the standard error is 0.167
    results[f"far: {OURS}"] = rows(-0.1, -0.2, -0.3)  # -0.2 and 0.058
    near, far, _, count = verdict(results).splitlines()[2:]
    assert near == "| near | gradient boosting | -0.033 | 0.167 | yes |"
    assert far.endswith("| -0.200 | 0.058 | no |")
    assert count == "1 of 2 sets"
