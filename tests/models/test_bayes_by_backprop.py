import pyro.poutine as poutine
import pytest
import torch

import pyrobnn as pb
from models.bayes_by_backprop import bayes_by_backprop


@pytest.mark.parametrize("mixture", [True, False])
def test_log_prior_is_that_of_the_paper(mixture: bool) -> None:
    model = bayes_by_backprop(10, inputs=4, hidden=3, classes=2, mixture=mixture, pi=0.25, sigma1=1.0, sigma2=0.1)
    trace = poutine.trace(model).get_trace(torch.randn(5, 2, 2), torch.tensor([0, 1, 0, 1, 1]))
    trace.compute_log_prob()
    for name, site in trace.nodes.items():
        if not name.startswith("net."):
            continue
        w = site["value"].double()
        wide = torch.distributions.Normal(0.0, 1.0).log_prob(w)
        narrow = torch.distributions.Normal(0.0, 0.1).log_prob(w)
        mixed = torch.logaddexp(torch.tensor(0.25).log() + wide, torch.tensor(0.75).log() + narrow)
        expected = (mixed if mixture else wide).sum()
        torch.testing.assert_close(site["log_prob_sum"].double(), expected, rtol=1e-4, atol=1e-4)


def test_kl_is_exact_only_for_the_gaussian_prior() -> None:
    for mixture, word in ((True, "Monte Carlo"), (False, "exact")):
        model = bayes_by_backprop(10, inputs=4, hidden=3, classes=2, mixture=mixture)
        rows = pb.describe(model, pb.guides.MeanField(model)).rows
        assert {row["kl"] for row in rows} == {word}
