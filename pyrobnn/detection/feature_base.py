"""What detectors of features share: one fit for each draw, and one for the averaged features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.detection.base import FORMS, Detector, Form, check_forms, reduced
from pyrobnn.detection.network_outputs import NetworkOutputs
from pyrobnn.model.likelihoods.reductions import widened

__all__ = ["FeatureDetector", "KeptFeatures"]


class FeatureDetector(Detector):
    """A detector fitted to the last layer's inputs, S times: to those of each draw and to their average.

    Features under one draw have nothing to do with those under another, so inputs are scored under the draws of the
    fit.

    Args:
        buffers: What is found from training data, each ``[S, ...]``.
        forms: The forms that are fitted; ``("averaged",)`` needs one fit, the others K.

    Attributes:
        draws: The number of draws and their seed, ``[2]``.
    """

    needs_features = True
    needs_training = True
    draws: Tensor

    def __init__(self, *buffers: str, forms: Sequence[Form] = FORMS) -> None:
        super().__init__("draws", *buffers)
        self.forms = check_forms(forms)

    @abstractmethod
    def distance(self, features: Tensor, logits: Tensor, sets: slice) -> Tensor:
        """The score ``[s, N]`` of features ``[s, N, F]`` and outputs ``[s, N, C]`` by some of the S fits."""

    @torch.no_grad()
    def scores(self, outputs: NetworkOutputs, forms: tuple[Form, ...]) -> dict[Form, Tensor]:
        """Of the averaged features, and the mean and variance over draws."""
        if not int(self.num_data):
            raise RuntimeError(
                f"{type(self).__name__}: it is not fitted yet; call fit(network_outputs(..., features=True)) on "
                "training data, or load a state dict."
            )
        features = checked_features(outputs)
        fitted, given = self.draws.tolist(), [outputs.num_samples, outputs.seed]
        if fitted != given:
            raise ValueError(
                f"outputs: {type(self).__name__} was fitted under {fitted[0]} draws of seed {fitted[1]}, but these are "
                f"under {given[0]} draws of seed {given[1]}; pass the same num_samples and seed to network_outputs."
            )
        first = int("averaged" in self.forms)
        found: dict[Form, Tensor] = {}
        if "averaged" in forms:
            found["averaged"] = self.distance(
                features.mean(0, keepdim=True), outputs.logits.mean(0, keepdim=True), slice(0, 1)
            )[0]
        if set(forms) - {"averaged"}:
            by_draw = [  # one at a time: distances to many points take memory
                self.distance(features[k : k + 1], outputs.logits[k : k + 1], slice(first + k, first + k + 1))
                for k in range(len(features))
            ]
            found |= reduced(torch.cat(by_draw), forms)
        return {form: score.to(outputs.logits.dtype) for form, score in found.items()}

    def sets(self, by_draw: Tensor) -> Tensor:
        """What the S fits are made of: the average over draws, and each draw, as the forms ask, ``[S, ...]``."""
        parts = [by_draw.mean(0, keepdim=True)] if "averaged" in self.forms else []
        return torch.cat([*parts, by_draw]) if set(self.forms) - {"averaged"} else parts[0]

    def keep(self, outputs_of: NetworkOutputs, num_data: int, **tensors: Tensor) -> None:
        """Stores what was found under the draws of these outputs."""
        draws = torch.tensor([outputs_of.num_samples, outputs_of.seed], device=outputs_of.logits.device)
        self.store(num_data, draws=draws, **tensors)


class KeptFeatures(FeatureDetector):
    """A detector whose fit needs all training features at once.

    Args:
        buffers: What is found from training data.
        forms: The forms that are fitted.
        max_bytes: Most that training features may take.
    """

    def __init__(self, *buffers: str, forms: Sequence[Form], max_bytes: int) -> None:
        super().__init__(*buffers, forms=forms)
        check_positive_int("max_bytes", max_bytes)
        self.max_bytes = max_bytes

    def start(self) -> list[Any]:
        """No batches yet."""
        return []

    def add(self, state: list[Any], outputs: NetworkOutputs) -> None:
        """Keeps a batch's features."""
        first = None if state else outputs  # of later batches only the features are kept
        state.append((first, self.sets(checked_features(outputs)), self.extra(outputs)))
        nbytes = sum(features.nbytes for _, features, _ in state)
        if nbytes > self.max_bytes:
            raise ValueError(
                f"outputs: {type(self).__name__} keeps the features of all training rows, which take more than "
                f"max_bytes={self.max_bytes} for the {len(state[0][1])} fits of forms={self.forms}; pass "
                "forms=('averaged',), fewer rows or draws, or raise max_bytes."
            )

    def extra(self, outputs: NetworkOutputs) -> Tensor:
        """What else is kept of a batch, ``[S, n, ...]``."""
        return outputs.logits.new_zeros(1, len(outputs), 0)

    def finish(self, state: list[Any]) -> None:
        """Fits the detector to all of them."""
        if not state:
            raise ValueError("outputs: there are none to fit to.")
        self.find(state[0][0], torch.cat([f for _, f, _ in state], 1), torch.cat([e for _, _, e in state], 1))

    @abstractmethod
    def find(self, first: NetworkOutputs, features: Tensor, extra: Tensor) -> None:
        """Stores what is found from all features ``[S, N, F]``."""


def checked_features(outputs: NetworkOutputs) -> Tensor:
    """The features.

    Raises:
        ValueError: If there are none, or they are not finite.
    """
    if outputs.features is None:
        raise ValueError("outputs: they have no features; pass features=True to network_outputs.")
    features = widened(outputs.features)
    if not bool(features.isfinite().all()):
        raise ValueError("outputs: features are NaN or infinite.")
    return features
