"""Warnings of the first epochs: a fit that is no better than a constant predictor, and inputs far from unit scale.

Neither takes a pass of the network of its own. Both are about supervised models, whose inputs and outputs are known.
"""

from __future__ import annotations

ADVICE = (
    "what helps is a prior with a wider scale (the default, Normal(0, 1), say) where zero weights are the mode, inputs "
    "of unit scale (pyrobnn.Standardizer), more epochs or a larger lr, a smaller weight of the divergence "
    "(ELBO(temperature=...))"
)
"""What helps against a posterior that ignores its inputs or its data."""
