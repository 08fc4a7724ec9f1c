"""The same Bayesian network in other libraries: prior N(0, 1), posterior scale 1e-2, BatchNorm deterministic.

Peers are optional (the ``bench`` extra); each function imports its own, and raises ImportError where it is missing.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.networks import Workload, latent_parameters

__all__ = [
    "INIT_SCALE",
    "LR",
    "bayesian_torch_net",
    "bayesian_torch_step",
    "blitz_step",
    "plain_pyro",
    "posteriors_step",
    "pyro_step",
    "tyxe_step",
]

INIT_SCALE = 1e-2
LR = 1e-5
"""So small that thousands of steps on one batch end nowhere near zero gradients, whose denormal numbers are slow."""


def plain_pyro(workload: Workload) -> tuple[Callable[..., Tensor], AutoNormal]:
    """The network as a user of Pyro alone writes it, with an AutoNormal guide."""
    pyro.clear_param_store()
    net = copy.deepcopy(workload.net)
    to_pyro_module_(net)
    for name, parameter in latent_parameters(net).items():
        path, _, attribute = name.rpartition(".")
        prior = dist.Normal(torch.zeros(()), torch.ones(())).expand(parameter.shape).to_event(parameter.dim())
        setattr(net.get_submodule(path), attribute, PyroSample(prior))
    rows = torch.arange(len(workload.y))  # given, so that the plate does not draw a permutation of the data set

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = net(x)
        size, subsample = (len(x), None) if y is None else (workload.num_data, rows)
        with pyro.plate("data", size, subsample=subsample):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)
        return logits

    guide = AutoNormal(model, init_scale=INIT_SCALE)
    guide(workload.x, workload.y)
    return model, guide


def pyro_step(workload: Workload, *, validate: bool) -> Callable[[], Any]:
    """Pyro's AutoNormal, TraceMeanField_ELBO and SVI."""
    model, guide = plain_pyro(workload)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LR}), TraceMeanField_ELBO())

    def step() -> float:
        with pyro.validation_enabled(validate):
            return svi.step(workload.x, workload.y)

    return step


def bayesian_torch_net(workload: Workload, kind: str = "Reparameterization") -> nn.Module:
    """bayesian-torch's conversion, with the ``"Reparameterization"`` or the ``"Flipout"`` estimator."""
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn

    net = copy.deepcopy(workload.net)
    settings = {
        "prior_mu": 0.0,
        "prior_sigma": 1.0,
        "posterior_mu_init": 0.0,
        "posterior_rho_init": math.log(math.expm1(INIT_SCALE)),
        "type": kind,
        "moped_enable": False,
    }
    dnn_to_bnn(net, settings)
    return net


def bayesian_torch_step(workload: Workload, kind: str = "Reparameterization") -> Callable[[], Any]:
    """Cross-entropy plus KL / N, with the same fused Adam."""
    net = bayesian_torch_net(workload, kind)
    from bayesian_torch.models.dnn_to_bnn import get_kl_loss

    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(workload.x), workload.y) + get_kl_loss(net) / workload.num_data
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def posteriors_step(workload: Workload) -> Callable[[], Any]:
    """posteriors' ``vi.diag`` in place, with torchopt's Adam.

    BatchNorm goes without running statistics, whose update it refuses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import posteriors
        import torchopt
    net = copy.deepcopy(workload.net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    parameters = {name: value.detach().clone() for name, value in latent_parameters(net).items()}

    def log_posterior(values: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        logits = functional_call(net, values, (x,))
        log_prior = posteriors.utils.diag_normal_log_prob(values)
        return -F.cross_entropy(logits, y) + log_prior / workload.num_data, logits

    transform = posteriors.vi.diag.build(
        log_posterior,
        torchopt.adam(lr=LR),
        temperature=1 / workload.num_data,
        init_log_sds=math.log(INIT_SCALE),
    )
    state = transform.init(parameters)

    def step() -> float:
        nonlocal state
        state, _ = transform.update(state, (workload.x, workload.y), inplace=True)
        return state.nelbo.item()

    return step


def blitz_step(workload: Workload) -> Callable[[], Any]:
    """BLiTZ's layers, put in by hand because it converts no network; its KL is a difference of densities."""
    from blitz.losses import kl_divergence_from_nn
    from blitz.modules import BayesianConv2d, BayesianLinear

    shared = {"prior_sigma_1": 1.0, "prior_sigma_2": 1.0, "posterior_rho_init": math.log(math.expm1(INIT_SCALE))}

    def layer(module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.Linear):
            return BayesianLinear(module.in_features, module.out_features, bias=module.bias is not None, **shared)
        if isinstance(module, nn.Conv2d):
            sizes = (module.in_channels, module.out_channels, module.kernel_size)
            place = {"stride": module.stride, "padding": module.padding, "bias": module.bias is not None}
            return BayesianConv2d(*sizes, **place, **shared)
        return None

    net = copy.deepcopy(workload.net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if (new := layer(child)) is not None:
                setattr(parent, name, new)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(workload.x), workload.y) + kl_divergence_from_nn(net) / workload.num_data
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def tyxe_step(workload: Workload, estimator: str | None = None) -> Callable[[], Any]:
    """TyXe's BNN under SVI; ``estimator`` is None, ``"flipout"`` or ``"local_reparameterization"``.

    It asks Pyro for a function that Pyro 1.9 no longer has, which is given back to it here.
    """
    import tyxe
    from tyxe import guides, likelihoods, priors

    if not hasattr(pyro.util, "deep_getattr"):
        pyro.util.deep_getattr = lambda owner, path: operator.attrgetter(path)(owner)
    pyro.clear_param_store()
    prior = priors.IIDPrior(dist.Normal(0.0, 1.0), hide_module_types=(nn.BatchNorm2d,))
    guide = lambda net: guides.AutoNormal(net, init_scale=INIT_SCALE)  # noqa: E731
    bnn = tyxe.VariationalBNN(
        copy.deepcopy(workload.net), prior, likelihoods.Categorical(dataset_size=workload.num_data), guide
    )
    svi = SVI(bnn.model, bnn.guide, pyro.optim.Adam({"lr": LR}), TraceMeanField_ELBO())
    context = getattr(tyxe.poutine, estimator) if estimator else contextlib.nullcontext

    def step() -> float:
        with context():
            return svi.step((workload.x,), workload.y)

    return step
