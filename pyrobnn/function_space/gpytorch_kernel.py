r"""gpytorch_kernel(): the kernel of the infinitely wide network in GPyTorch, with the scales of its prior to optimize.

GPyTorch (the extra ``gp``) makes Gaussian processes of it: exact ones, whose marginal likelihood chooses the scales;
variational ones with inducing points, for many data and for likelihoods other than Normal (classes, counts). The
kernel is that of :func:`~pyrobnn.function_space.kernel`, in double precision like its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.extras import import_gpytorch
from pyrobnn.function_space.dual import DualActivation
from pyrobnn.function_space.nngp import Kind, limit_of

if TYPE_CHECKING:
    from pyrobnn.function_space.infinite_width_kernel import InfiniteWidthKernel

__all__ = ["gpytorch_kernel"]


@explained
def gpytorch_kernel(
    model: nn.Module,
    kind: Kind = "nngp",
    *,
    input_shape: Sequence[int] | None = None,
    activations: Mapping[type[nn.Module], DualActivation] | None = None,
    batch_shape: Sequence[int] = (),
    active_dims: Sequence[int] | None = None,
    max_bytes: int = 256 * 2**20,
) -> InfiniteWidthKernel:
    """A ``gpytorch.kernels.Kernel``: the covariance of the infinitely wide network.

    ::

        class GP(gpytorch.models.ExactGP):
            def __init__(self, x, y, likelihood):
                super().__init__(x, y, likelihood)
                self.mean = gpytorch.means.ZeroMean()
                self.kernel = pb.function_space.gpytorch_kernel(model)

            def forward(self, x):
                return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

        gp = GP(x.double(), y.double(), gpytorch.likelihoods.GaussianLikelihood()).double()

    Its parameter ``raw_scales`` holds the prior standard deviations by site (``kernel.sites``), positive by a softplus;
    ``kernel.scales`` reads and sets them. They start at those of the model's prior and have gradients.

    Args:
        model: The model or network, as for :func:`~pyrobnn.function_space.kernel`.
        kind: ``"nngp"`` or ``"ntk"``, likewise.
        input_shape: Shape of one input of the network, ``(1, 28, 28)``, say, where it is no vector: GPyTorch has rows
            of numbers.
        activations: Second moments of elementwise modules of your own, by class.
        batch_shape: GPyTorch's: so many sets of scales, for several outputs with kernels of their own.
        active_dims: GPyTorch's: the columns that it sees.
        max_bytes: Budget for what is held beside the result.

    Raises:
        ImportError: If GPyTorch is not installed.
        TypeError: If the model is of the wrong kind.
        ValueError: If a layer or prior has no limit, or ``kind`` is unknown.
    """
    import_gpytorch("gpytorch_kernel")
    from pyrobnn.function_space.infinite_width_kernel import InfiniteWidthKernel

    limit = limit_of(model, kind, None, activations)
    check_positive_int("max_bytes", max_bytes)
    sizes: dict[str, tuple[int, ...]] = {}
    for name, given in (("input_shape", input_shape), ("batch_shape", batch_shape), ("active_dims", active_dims)):
        if given is None:
            continue
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"{name}: expected integers, got {given!r}.")
        for size in given:
            if isinstance(size, bool) or not isinstance(size, int) or size < (name != "active_dims"):
                raise ValueError(f"{name}: expected positive integers, got {given!r}.")
        sizes[name] = tuple(given)
    return InfiniteWidthKernel(
        limit, sizes.get("input_shape"), sizes["batch_shape"], sizes.get("active_dims"), max_bytes
    )
