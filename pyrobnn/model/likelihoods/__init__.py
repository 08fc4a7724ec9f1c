r"""Likelihoods: a network's output becomes the distribution of an observation.

Each likelihood is a Pyro module, one to a file: called with the network's output ``[B, ...]`` it returns a distribution
of batch shape ``[B]``. It also says how draws of the posterior are reduced and what they predict
(:meth:`Likelihood.reduction`), so :func:`pyrobnn.predict` knows no list of likelihoods. One of your own subclasses
:class:`Likelihood`, or :class:`ClassLikelihood`, and writes two methods, :meth:`~Likelihood.parameters_of` and
:meth:`~Likelihood.distribution` (of a likelihood of classes one, :meth:`~ClassLikelihood.log_probabilities`).
"""

from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.bernoulli import Bernoulli
from pyrobnn.model.likelihoods.categorical import Categorical
from pyrobnn.model.likelihoods.classes import ClassLikelihood
from pyrobnn.model.likelihoods.heteroscedastic_normal import HeteroscedasticNormal
from pyrobnn.model.likelihoods.normal import Normal
from pyrobnn.model.likelihoods.poisson import Poisson

__all__ = [
    "Bernoulli",
    "Categorical",
    "ClassLikelihood",
    "HeteroscedasticNormal",
    "Likelihood",
    "Normal",
    "Poisson",
]
