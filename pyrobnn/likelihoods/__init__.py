r"""Likelihoods: a network's output becomes the distribution of an observation.

Each likelihood is a Pyro module, one to a file: called with the network's output ``[B, ...]`` it returns a distribution
of batch shape ``[B]``. It also says how draws of the posterior are reduced and what they predict
(:meth:`Likelihood.reduction`), so :func:`pyrobnn.predict` knows no list of likelihoods. One of your own subclasses
:class:`Likelihood`, or :class:`ClassLikelihood`, and writes two methods, :meth:`~Likelihood.parameters_of` and
:meth:`~Likelihood.distribution` (of a likelihood of classes one, :meth:`~ClassLikelihood.log_probabilities`).
"""

from pyrobnn.likelihoods.base import Likelihood
from pyrobnn.likelihoods.bernoulli import Bernoulli
from pyrobnn.likelihoods.categorical import Categorical
from pyrobnn.likelihoods.classes import ClassLikelihood
from pyrobnn.likelihoods.heteroscedastic_normal import HeteroscedasticNormal
from pyrobnn.likelihoods.normal import Normal
from pyrobnn.likelihoods.poisson import Poisson

__all__ = [
    "Bernoulli",
    "Categorical",
    "ClassLikelihood",
    "HeteroscedasticNormal",
    "Likelihood",
    "Normal",
    "Poisson",
]
