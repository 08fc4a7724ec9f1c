"""The standard model: a network, a likelihood, a prior, and the number of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyrobnn.core.explanations import explained
from pyrobnn.core.finite import check_weight
from pyrobnn.core.trees import refuse_arrays
from pyrobnn.model.bayesianize import BayesianModule, bayesianize
from pyrobnn.model.inputs import with_inputs_kept
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.priors import PriorSpec
from pyrobnn.model.substitution import direct_handler

__all__ = ["OutputSpec", "SupervisedModel", "run_network", "select_output"]

OutputSpec: TypeAlias = str | int | Callable[[Any], Tensor] | None
"""Which part of a network's return value the likelihood is given: a key or attribute, an index, or a function."""


@explained
class SupervisedModel(PyroModule):
    r"""A Pyro model of targets given inputs: :math:`p(w) \prod_{i=1}^N p(y_i \mid f_w(x_i))`.

    The weights are drawn outside the data plate; the plate has size ``num_data`` and holds the minibatch, so the
    log likelihood of ``B`` data counts ``N / B`` times and the ELBO keeps its meaning with any loader. With a
    weight for each datum it is :math:`\frac NB \sum_i \omega_i \log p(y_i \mid f_w(x_i))`: N and B count rows, whatever
    these weights are. Sites: the weights ``net.<parameter>``, the likelihood's own ``likelihood.<name>``, and the
    observation ``y``.

    Args:
        net: The network; it is copied. An already :func:`~pyrobnn.model.bayesianize`-d network is taken as it is.
        likelihood: From the network's outputs to the distribution of the targets.
        prior: Prior or prior rules for the weights, as in :func:`~pyrobnn.model.bayesianize`; None for the default.
        num_data: Number N of training data; ``fit`` checks that the loader has as many.
        output: For a network that returns more than one tensor, which one the likelihood is given: a key of a mapping
            or the name of an attribute (``"logits"``), an index into a tuple or list, or a function. If the network
            returns a tensor (torchvision's Inception does in evaluation mode), a key, name or index is not applied.

    Attributes:
        num_data: N; it may be changed when data are added, as in active learning; guides of the model stay valid.
        output: As given.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``num_data`` is not a positive whole number.
    """

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood,
        prior: PriorSpec | None = None,
        *,
        num_data: int,
        output: OutputSpec = None,
    ) -> None:
        super().__init__()
        if not isinstance(likelihood, Likelihood):
            raise TypeError(
                f"likelihood: expected one of pyrobnn.likelihoods, such as likelihoods.Categorical(), got "
                f"{likelihood!r}."
            )
        self.num_data = num_data
        if isinstance(output, bool) or not (output is None or isinstance(output, str | int) or callable(output)):
            raise TypeError(
                f"output: expected a key or attribute (str), an index (int), a function or None, got {output!r}."
            )
        if isinstance(net, BayesianModule):
            if prior is not None:
                raise TypeError("prior: the network already has its priors; pass the plain network to set others.")
        else:
            net = bayesianize(net, prior)
        self.net = net
        self.likelihood = likelihood
        _give_dtype(net, likelihood)
        self._output = (output,)  # in a tuple, so that a function that is a module is not registered as a submodule

    @property
    def num_data(self) -> int:
        """Number N of training data."""
        return self._num_data

    @num_data.setter
    def num_data(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"num_data: expected the number of training data, a positive int, got {value!r}.")
        self._num_data = value

    @property
    def has_default_prior(self) -> bool:
        """Whether the network's prior is the default, since none was stated."""
        net = self._modules["net"]
        assert isinstance(net, BayesianModule)
        return net.has_default_prior

    @property
    def output(self) -> OutputSpec:
        """Which part of the network's return value the likelihood is given."""
        return self._output[0]

    def forward(self, x: Any, y: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Draws the weights, runs the network, and draws or scores the targets.

        Args:
            x: A batch of inputs; a tuple or mapping is passed on as the network's arguments.
            y: Targets ``[B, ...]``, or None to draw them.
            weight: Weight of the log likelihood of each row ``[B]``, finite and at least 0; None for 1. A row of weight
                0 adds nothing, but counts among the B rows.

        Returns:
            The network's outputs ``[B, ...]``, as ``output`` selects them.

        Raises:
            TypeError: If the network does not return a tensor, and ``output`` does not say which one is meant.
            ValueError: If ``y`` has the wrong shape or more rows than ``num_data``, or a weight is wrong.
        """
        outputs = self.predictive(x)
        if not outputs.dim():
            raise ValueError(
                "net: it returned one number for the whole batch; it must return one row of outputs for each row of x "
                "(a squeeze() drops the only row of a batch; use squeeze(-1))."
            )
        if not len(outputs):
            raise ValueError("x: the batch is empty; pass at least one row.")
        observation = self.likelihood(outputs)
        if y is None:
            if weight is not None:
                raise ValueError("weight: it weighs the targets; pass y as well.")
            with pyro.plate("data", len(outputs), dim=-1):
                pyro.sample("y", observation)
            return outputs
        self._check(outputs, y, weight)
        scale: Any = 1.0
        mask: Any = None
        if weight is not None:  # Pyro takes no scale of 0, and 0 times an infinite log density would be NaN
            mask = weight > 0
            scale = weight.where(mask, 1.0)
        if observation.batch_shape == y.shape[:1] and (handler := direct_handler()) is not None:
            handler.observe("y", observation, y, self.num_data / len(y) * scale, mask)
            return outputs
        # A plate that is given indices draws no random permutation of N rows.
        subsample = None if len(y) == self.num_data else torch.arange(len(y))
        with pyro.plate("data", self.num_data, subsample=subsample, dim=-1):
            if mask is None:
                pyro.sample("y", observation, obs=y)
            else:
                with poutine.scale(scale=scale), poutine.mask(mask=mask):
                    pyro.sample("y", observation, obs=y)
        return outputs

    def _check(self, outputs: Tensor, y: Tensor, weight: Tensor | None) -> None:
        self.likelihood.check_shape(outputs, y)
        if len(y) > self.num_data:
            raise ValueError(
                f"num_data: the model was built for {self.num_data} data, but a batch has {len(y)} rows; state the "
                f"size "
                "of the training set."
            )
        if weight is not None:
            if not isinstance(weight, Tensor) or weight.shape != y.shape[:1]:
                found = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
                raise ValueError(f"weight: expected a tensor with one weight for each row, [{len(y)}], got {found}.")
            if dist.is_validation_enabled():  # fit checks it in its first epoch; the check costs a synchronization
                check_weight(weight)

    @pyro_method
    def sample_latents(self) -> dict[str, Tensor]:
        """Draws every latent site without data; guides are built from this."""
        return {**self.net.sample_latents(), **self.likelihood.sample_latents()}

    def predictive(self, x: Any) -> Tensor:
        """The network's outputs alone, as ``output`` selects them, under the weights drawn in this call."""
        return self.select(run_network(self.net, x))

    def select(self, returned: Any) -> Tensor:
        """The part of the network's return value that the likelihood is given.

        Raises:
            TypeError: If that is no tensor.
        """
        return select_output(returned, self.output)

    def extra_repr(self) -> str:
        """The number of data, and which output is used."""
        return f"num_data={self.num_data}" + ("" if self.output is None else f", output={self.output!r}")


def _give_dtype(net: BayesianModule, likelihood: Likelihood) -> None:
    """Gives a likelihood beside a float64 network, or one with latent sites, the dtype of the network's weights.

    Numbers of less precision would round what the network computes, and all sites share one vector.
    """
    dtypes = {net.network.get_parameter(name).dtype for name in net.parameter_names}
    if len(dtypes) == 1 and (likelihood.site_priors or dtypes == {torch.float64}):
        likelihood.to(dtypes.pop())


def select_output(returned: Any, output: OutputSpec) -> Tensor:
    """The part of a network's return value that ``output`` names.

    Raises:
        TypeError: If that is no tensor.
    """
    if output is None or (isinstance(returned, Tensor) and not callable(output)):
        selected = returned
    else:
        selected = _selected(returned, output)
    if isinstance(selected, Tensor):
        return selected
    advice = "pass output= a key, index, attribute or function that selects the tensor for the likelihood"
    if output is not None:
        raise TypeError(f"output: {output!r} selects a {type(selected).__name__}, not a tensor; {advice}.")
    raise TypeError(f"net: it returned a {_contents(returned)}, and not a tensor; {advice}.")


def run_network(net: nn.Module, x: Any) -> Any:
    """``net(x)``, with a tuple or list of inputs as positional and a mapping as keyword arguments; they are kept."""
    args: tuple[Any, ...] = (x,)
    kwargs: Mapping[str, Any] = {}
    if not isinstance(x, Tensor):
        refuse_arrays(x, "x: the inputs")
    if isinstance(x, Mapping):
        args, kwargs = (), x
    elif isinstance(x, tuple | list) and not isinstance(x, PackedSequence):
        args = tuple(x)
    if isinstance(net, BayesianModule):  # which keeps them itself
        return net(*args, **kwargs)
    return with_inputs_kept(net, args, kwargs, net)


def _selected(returned: Any, output: str | int | Callable[[Any], Any]) -> Any:
    if callable(output):
        return output(returned)
    try:
        if isinstance(output, str) and not isinstance(returned, Mapping):
            return getattr(returned, output)
        return returned[output]
    except (AttributeError, LookupError, TypeError) as error:
        raise TypeError(f"output: the network returned a {_contents(returned)}, which has no {output!r}.") from error


def _contents(returned: Any) -> str:
    """The kind of a return value, and what is in it."""
    kind = type(returned).__name__
    if isinstance(returned, Mapping):
        return f"{kind} with {', '.join(map(repr, returned)) or 'nothing'}"
    return f"{kind} of length {len(returned)}" if isinstance(returned, tuple | list) else kind
