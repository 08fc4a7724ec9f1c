r"""Columns whose outer products add up to the outputs' Fisher information.

.. math::  \Lambda(f) = \sum_c r_c r_c^\top.

With them the generalized Gauss–Newton matrix of the weights is :math:`\sum_n J_n^\top \Lambda_n J_n =
\sum_{n,c} (J_n^\top r_{nc})(J_n^\top r_{nc})^\top` (Martens 2020). Each likelihood declares its information
(:meth:`pyrobnn.likelihoods.Likelihood.fisher_information`).
"""

from __future__ import annotations

from torch import Tensor

from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.information import SAMPLED_COLUMNS, FisherInformation, sampled_information

__all__ = ["SAMPLED_COLUMNS", "fisher_roots", "information_of"]


def information_of(
    likelihood: Likelihood,
    outputs: Tensor,
    weight: Tensor | None = None,
    max_exact: int | None = None,
    targets: Tensor | None = None,
) -> FisherInformation:
    """The information of data in their outputs.

    Args:
        likelihood: What the outputs mean; its latent sites must be substituted around the call.
        outputs: The network's outputs ``[B, ...]``.
        weight: Weights ``[B]`` of the data's log likelihoods.
        max_exact: Most columns that an exact root may have, any if None; beyond it ``SAMPLED_COLUMNS`` are sampled.
        targets: The targets, which say how each counts if the likelihood masks or weights them.

    Raises:
        ValueError: If the likelihood masks or weights targets, and there are none here, or it does not say by how much.
    """
    argument, scale = likelihood.target_weighting, None
    if argument is not None and (targets is None or (scale := likelihood.target_scale(targets)) is None):
        raise ValueError(
            f"likelihood: {argument} masks or weights targets by their values, but curvature is computed from the "
            f"outputs alone and would count them all; leave {argument} out, or use a posterior without curvature."
        )
    outputs = outputs.detach()
    information = likelihood.fisher_information(outputs)
    if scale is not None:
        information = information.scaled(scale.reshape(len(outputs), -1))
        if max_exact is not None and information.columns > max_exact:
            information = information.sketched(SAMPLED_COLUMNS)
    elif max_exact is not None and information.scores is None and information.columns > max_exact:
        information = sampled_information(likelihood, outputs)
    return information.weighted(weight, outputs.dtype)


def fisher_roots(
    likelihood: Likelihood,
    outputs: Tensor,
    weight: Tensor | None = None,
    max_exact: int | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """The columns of each datum, ``[columns, B, ...]``, without gradients.

    Arguments are those of :func:`information_of`. Of likelihoods of this library the columns are exact, and as many as
    a datum has outputs.
    """
    information = information_of(likelihood, outputs, weight, max_exact, targets)
    root = information.root()  # [B, T, m, c]
    (blocks, _), count = information.index.shape, root.shape[-1]
    columns = outputs.new_zeros(len(outputs), blocks, count, outputs[0].numel())
    # A column of a block is zero at the outputs of the others.
    index = information.index.unsqueeze(1).expand(blocks, count, -1)
    columns.scatter_(-1, index.expand(len(outputs), *index.shape), root.mT)
    return columns.flatten(1, 2).movedim(1, 0).reshape(-1, *outputs.shape)
