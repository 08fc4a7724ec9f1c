"""The default BayesianRegressor beside scikit-learn's Gaussian process and gradient boosting on UCI sets.

A seed is one of the published splits. All methods are at defaults that were chosen on other splits, and are given the
same training rows: at most ``--rows`` of a split's, chosen by the seed, since the Gaussian process is cubic in them.
All test rows are scored. The Gaussian process has a squared-exponential kernel with a length scale for each column and
noise, by marginal likelihood. Gradient boosting has no density: it is given a Gaussian with the standard deviation of
its residuals in five-fold cross-validation. Of ``GradientBoostingRegressor`` and ``HistGradientBoostingRegressor`` the
rival is whichever is better on the set.

    python -m benchmarks.reproduce.sklearn_uci --seeds 0 1 2 3 4 --json sklearn_uci.json

The last table compares the regressor with the better rival of each set. The standard error is that of the mean
difference over the splits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from scipy.stats import norm
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Experiment, Row, arguments
from benchmarks.reproduce.uci import PUBLISHED
from pyrobnn.sklearn import BayesianRegressor

OURS = "BayesianRegressor"
Scored = tuple[np.ndarray, np.ndarray]
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, bool]


def bayesian(data: Data) -> Scored:
    """Log densities and means of the test rows, by the estimator as it comes."""
    x, y, new, truth, seed, quick = data
    fitted = BayesianRegressor(random_state=seed, epochs=1 if quick else None).fit(x, y)
    return fitted.log_prob(new, truth), fitted.predict(new)


def gaussian_process(data: Data) -> Scored:
    """The same by scikit-learn's Gaussian process, on standardized columns."""
    x, y, new, truth, seed, quick = data
    kernel = ConstantKernel() * RBF(np.ones(x.shape[1])) + WhiteKernel()
    process = GaussianProcessRegressor(
        kernel, normalize_y=True, random_state=seed, optimizer=None if quick else "fmin_l_bfgs_b"
    )
    pipeline = make_pipeline(StandardScaler(), process)
    with warnings.catch_warnings():  # columns that do not matter have length scales at their bound
        warnings.simplefilter("ignore", ConvergenceWarning)
        mean, std = pipeline.fit(x, y).predict(new, return_std=True)
    return norm.logpdf(truth, mean, std), mean


def boosting(kind: Callable[..., GradientBoostingRegressor], data: Data) -> Scored:
    """The same by trees, with the standard deviation of their residuals on rows that they were not trained on."""
    x, y, new, truth, seed, _ = data
    std = np.sqrt(np.mean((cross_val_predict(kind(random_state=seed), x, y, cv=5) - y) ** 2))
    mean = kind(random_state=seed).fit(x, y).predict(new)
    return norm.logpdf(truth, mean, std), mean


METHODS: dict[str, Callable[[Data], Scored]] = {
    OURS: bayesian,
    "Gaussian process": gaussian_process,
    "gradient boosting": lambda data: boosting(GradientBoostingRegressor, data),
    "histogram boosting": lambda data: boosting(HistGradientBoostingRegressor, data),
}


def run(split: int, options: argparse.Namespace) -> dict[str, Row]:
    """All sets and methods on one split."""
    rows = {}
    for name in options.sets:
        (x, y), (new, truth) = ([part.double().numpy() for part in pair] for pair in datasets.uci(name, split))
        y, truth = y.ravel(), truth.ravel()
        chosen = np.random.default_rng(split).permutation(len(x))[: 60 if options.quick else options.rows]
        data = (x[chosen], y[chosen], new, truth, split, options.quick)
        for label in options.methods:
            started = time.process_time()
            density, mean = METHODS[label](data)
            rows[f"{name}: {label}"] = {
                "log likelihood": float(density.mean()),
                "RMSE": float(np.sqrt(np.mean((mean - truth) ** 2))),
                "seconds": time.process_time() - started,
            }
    return rows


def verdict(results: dict[str, list[Row]]) -> str:
    """Markdown: differences of the log likelihood from the better rival, and how many are within their error."""
    lines = ["| set | better rival | difference | standard error | within one or better |", "|---|---|---:|---:|---|"]
    names = [key.removesuffix(f": {OURS}") for key in results if key.endswith(f": {OURS}")]
    count = 0
    for name in names:
        scores = {label: [row["log likelihood"] for row in results[f"{name}: {label}"]] for label in METHODS}
        rival = max((label for label in METHODS if label != OURS), key=lambda label: fmean(scores[label]))
        gaps = [ours - theirs for ours, theirs in zip(scores[OURS], scores[rival], strict=True)]
        error = stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        within = fmean(gaps) > -error
        count += within
        lines.append(f"| {name} | {rival} | {fmean(gaps):+.3f} | {error:.3f} | {'yes' if within else 'no'} |")
    return "\n".join([*lines, "", f"{count} of {len(names)} sets"])


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(seeds=[0, 1, 2, 3, 4])
    parser.add_argument("--sets", nargs="+", choices=PUBLISHED, default=list(PUBLISHED), help="default: all nine")
    parser.add_argument("--rows", type=int, default=500, help="training rows at most (default %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help="or some")
    parser.add_argument("--add", metavar="PATH", help="JSON of a run of the other methods on the same splits")
    experiment = Experiment("Defaults on UCI sets", run, lambda name: name.split(":")[0])
    results = experiment.main(parser)
    options = parser.parse_args()
    if options.add:
        earlier = json.loads(Path(options.add).read_text())
        if any(earlier["options"][name] != getattr(options, name) for name in ("seeds", "rows")):
            sys.exit(f"--add: {options.add} is of other splits or another number of rows.")
        results = earlier["results"] | results
    if all(f"{name}: {label}" in results for name in options.sets for label in METHODS):
        print(f"\n{verdict(results)}")


if __name__ == "__main__":
    main()
