r"""Likelihoods: a network's output becomes the distribution of an observation.

Each likelihood is a Pyro module, one to a file: called with the network's output ``[B, ...]`` it returns a distribution
of batch shape ``[B]``. :meth:`Likelihood.reduction` returns what :func:`pyrobnn.predict` reduces posterior draws with.

To add a likelihood, subclass :class:`Likelihood` and implement

* :meth:`~Likelihood.parameters_of` and :meth:`~Likelihood.distribution` (of a :class:`ClassLikelihood` only
  :meth:`~ClassLikelihood.log_probabilities`);
* :meth:`~Likelihood.target_shape`, where a formula is cheaper than asking the distribution;
* :meth:`~Likelihood.check_targets`, if targets are not arbitrary finite floats;
* :meth:`~Likelihood.config`, for constructor arguments that a checkpoint must restore;
* :meth:`~Likelihood.reduction`, if the prediction has more than mean, variance and the parameters of each draw: see
  :class:`~pyrobnn.model.likelihoods.reductions.MomentReduction` and :class:`~pyrobnn.prediction.MomentPrediction`;
* :meth:`~Likelihood.fisher_information`, for curvature in closed form; by default targets are sampled.

Checkpoints restore the likelihoods that are exported here.
"""

from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.bernoulli import Bernoulli
from pyrobnn.model.likelihoods.categorical import Categorical
from pyrobnn.model.likelihoods.classes import ClassLikelihood
from pyrobnn.model.likelihoods.conditional_flow import ConditionalFlow
from pyrobnn.model.likelihoods.dirichlet import Dirichlet
from pyrobnn.model.likelihoods.gamma import Gamma
from pyrobnn.model.likelihoods.heteroscedastic_normal import HeteroscedasticNormal
from pyrobnn.model.likelihoods.laplace import Laplace
from pyrobnn.model.likelihoods.log_normal import LogNormal
from pyrobnn.model.likelihoods.mixture_density import MixtureDensity
from pyrobnn.model.likelihoods.negative_binomial import NegativeBinomial
from pyrobnn.model.likelihoods.normal import Normal
from pyrobnn.model.likelihoods.ordinal import Ordinal
from pyrobnn.model.likelihoods.poisson import Poisson
from pyrobnn.model.likelihoods.student_t import StudentT
from pyrobnn.model.likelihoods.zero_inflated_poisson import ZeroInflatedPoisson

__all__ = [
    "Bernoulli",
    "Categorical",
    "ClassLikelihood",
    "ConditionalFlow",
    "Dirichlet",
    "Gamma",
    "HeteroscedasticNormal",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "MixtureDensity",
    "NegativeBinomial",
    "Normal",
    "Ordinal",
    "Poisson",
    "StudentT",
    "ZeroInflatedPoisson",
]
