"""predict_joint(): functions of a posterior at a set of inputs, for every posterior of the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.finite import check_inputs
from pyrobnn.core.trees import is_empty, refuse_arrays
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.prediction.function_posterior import check_predicted
from pyrobnn.prediction.joint_prediction import JointPrediction
from pyrobnn.prediction.predict import predictor_of
from pyrobnn.prediction.predictor import Predictor, PredictorFactory, PredictorOptions
from pyrobnn.prediction.vectorization import Method

__all__ = ["function_at", "predict_joint"]


@explained
def predict_joint(
    model: nn.Module,
    guide: Any,
    inputs: Any,
    num_samples: int = 100,
    *,
    predictor: str | PredictorFactory | None = None,
    likelihood: Likelihood | None = None,
    exact: bool = True,
    batch_size: int | None = None,
    method: Method = "auto",
    max_bytes: int = 256 * 2**20,
    seed: int | None = None,
) -> JointPrediction:
    """K functions of the posterior at a set of inputs, with their mean and covariance over the set.

    Each row of ``draws`` is one function, at all inputs; :func:`pyrobnn.predict` has the marginals of the same.

    Args:
        model: The model, as for :func:`pyrobnn.predict`.
        guide: The posterior: a guide of this library, or draws ``{site: [K, *site shape]}``.
        inputs: The set: a tensor ``[N, ...]``, or a tuple or dict of tensors for networks with several inputs.
        num_samples: Number K of functions.
        predictor: As for :func:`pyrobnn.predict`; None takes the guide's default. One that has no functions refuses.
        likelihood: The likelihood; the model's if None.
        exact: Whether a linearized network, whose functions are Gaussian, also gives their covariance exactly, which
            needs the Jacobian of all outputs at once; False leaves the covariance of the draws.
        batch_size: Rows that the network sees at a time, as for :func:`pyrobnn.predict`.
        method: How draws of the weights are run, likewise.
        max_bytes: Budget for draws, activations and Jacobians.
        seed: Fixes the draws, and leaves torch's random state alone; None takes a seed from it. The same seed gives
            the same functions at other inputs, too, where they are functions of drawn weights.

    Returns:
        The functions. Modes, buffers and ``requires_grad`` of the model are as before.

    Raises:
        TypeError: If inputs, posterior or predictor are of the wrong kind.
        ValueError: If there are no inputs, one is not finite, a number is out of range, the posterior is another
            model's, or the Jacobian of an exact covariance exceeds the budget.
        NotImplementedError: If the predictor has marginals only.
    """
    check_predicted(model, guide, predictor)
    check_positive_int("num_samples", num_samples)
    if isinstance(inputs, np.ndarray):
        refuse_arrays(inputs, "inputs: the set")
    if not isinstance(inputs, Tensor | tuple | Mapping | PackedSequence):
        raise TypeError(
            f"inputs: expected a tensor, tuple or dict of tensors, since functions are drawn at one set of inputs, got "
            f"{type(inputs).__name__}; join the batches of a loader with torch.cat."
        )
    if is_empty(inputs):
        raise ValueError("inputs: the set holds no inputs.")
    check_inputs(inputs, 0)
    options = PredictorOptions(
        num_samples=num_samples,
        likelihood=likelihood,
        method=method,
        max_bytes=max_bytes,
        seed=seed,
        replayed=False,
        batch_size=batch_size,
        exact=exact,
    )
    made = predictor_of(predictor, guide)(model, guide, options)
    if not isinstance(made, Predictor):
        raise TypeError(
            f"predictor: {type(made).__name__} has no method joint(inputs), which draws functions; derive it from "
            "pyrobnn.prediction.Predictor and implement it."
        )
    return made.joint(inputs)


def function_at(model: nn.Module, guide: Any, inputs: Any, *, seed: int | None = None) -> Tensor:
    """Expected targets ``[N, ...]`` under *one function* of the posterior, at a set of inputs; for decisions.

    The predictor is the guide's own: a Laplace approximation over hidden layers is linearized, others draw weights.

    Args:
        model: The model.
        guide: The posterior; of draws ``{site: [K, *site shape]}`` one is taken at random.
        inputs: The set.
        seed: The same seed gives the same function, at other inputs, too; None takes a seed from torch's random state.
    """
    if isinstance(guide, Mapping) and guide:
        with random_state.local(seed):
            chosen = int(torch.randint(len(next(iter(guide.values()))), ()))
        guide = Draws.of(guide).at(slice(chosen, chosen + 1))
    return predict_joint(model, guide, inputs, 1, exact=False, seed=seed).expectations[0]
