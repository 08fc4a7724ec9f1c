"""The usual model: a network, a likelihood, a prior, and how many data there are."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyrobnn.bayesianize import BayesianModule, bayesianize
from pyrobnn.likelihoods import Likelihood
from pyrobnn.priors import PriorSpec
from pyrobnn.substitution import listener

__all__ = ["SupervisedModel"]


class SupervisedModel(PyroModule):
    r"""A Pyro model of targets given inputs: :math:`p(w) \prod_{i=1}^N p(y_i \mid f_w(x_i))`.

    The weights are drawn outside the data plate; the plate has size ``num_data`` and holds the minibatch, so the
    log likelihood of ``B`` data counts ``N / B`` times and the ELBO keeps its meaning with any loader. Sites: the
    weights ``net.<parameter>``, the likelihood's own ``likelihood.<name>``, and the observation ``y``.

    Args:
        net: The network; it is copied. An already :func:`~pyrobnn.bayesianize`-d network is taken as it is.
        likelihood: What the outputs mean.
        prior: Prior or prior rules for the weights, as in :func:`~pyrobnn.bayesianize`.
        num_data: Number N of training data, stated once, here; ``fit`` checks the loader against it.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``num_data`` is not a positive whole number.
    """

    def __init__(
        self, net: nn.Module, likelihood: Likelihood, prior: PriorSpec | None = None, *, num_data: int
    ) -> None:
        super().__init__()
        if not isinstance(likelihood, Likelihood):
            raise TypeError(
                f"likelihood: expected one of pyrobnn.likelihoods, such as likelihoods.Categorical(), got "
                f"{likelihood!r}."
            )
        if isinstance(num_data, bool) or not isinstance(num_data, int) or num_data < 1:
            raise ValueError(f"num_data: expected the number of training data, a positive int, got {num_data!r}.")
        if isinstance(net, BayesianModule):
            if prior is not None:
                raise TypeError("prior: the network already has its priors; pass the plain network to set others.")
        elif prior is None:
            raise TypeError("prior: missing; pass a distribution such as pyro.distributions.Normal(0., 1.), or rules.")
        else:
            net = bayesianize(net, prior)
        self.net = net
        self.likelihood = likelihood
        self.num_data = num_data

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
        """Draws the weights, runs the network, and draws or scores the targets.

        Args:
            x: A batch of inputs; a tuple or dict is passed on as the network's arguments.
            y: Targets, or None to draw them.

        Returns:
            The network's outputs ``[B, ...]``.

        Raises:
            ValueError: If ``y`` has the wrong shape or more rows than ``num_data``.
        """
        outputs = run_network(self.net, x)
        if not len(outputs):
            raise ValueError("x: the batch is empty; pass at least one row.")
        observation = self.likelihood(outputs)
        size = subsample = None
        if y is not None:
            self._check(outputs, y)
            if observation.batch_shape == y.shape[:1] and (handler := listener()) is not None:
                handler.observe("y", observation, y, self.num_data / len(y))
                return outputs
            size = self.num_data
            # A plate that is given indices draws no random permutation of N rows.
            subsample = None if len(y) == size else torch.arange(len(y))
        with pyro.plate("data", size or len(outputs), subsample=subsample, dim=-1):
            pyro.sample("y", observation, obs=y)
        return outputs

    def _check(self, outputs: Tensor, y: Tensor) -> None:
        self.likelihood.check_shape(outputs, y)
        if len(y) > self.num_data:
            raise ValueError(
                f"num_data: the model was told of {self.num_data} data, but a batch has {len(y)} rows; state the size "
                "of the training set."
            )

    @pyro_method
    def sample_latents(self) -> dict[str, Tensor]:
        """Draws every latent site without data; guides are built from this."""
        return {**self.net.sample_latents(), **self.likelihood.sample_latents()}

    def predictive(self, x: Any) -> Tensor:
        """The network's outputs alone, under the weights drawn in this call."""
        return run_network(self.net, x)

    def extra_repr(self) -> str:
        """The data's size."""
        return f"num_data={self.num_data}"


def run_network(net: nn.Module, x: Any) -> Any:
    """``net(x)``, with a tuple or list of inputs as positional and a dict as keyword arguments."""
    if isinstance(x, dict):
        return net(**x)
    return net(*x) if isinstance(x, tuple | list) else net(x)
