"""What theory says of generalization: PAC-Bayes bounds."""

from pyrobnn.diagnostics.generalization.kl_bounds import kl_inverse
from pyrobnn.diagnostics.generalization.pac_bayes import PACBayesBound, pac_bayes_bound

__all__ = ["PACBayesBound", "kl_inverse", "pac_bayes_bound"]
