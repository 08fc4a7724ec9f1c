"""Reading posteriors over structure: tables, the most probable, structures as draws, figures."""

from __future__ import annotations

import functools
import math
from typing import Any

import matplotlib.pyplot as plt
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, Composite, ConcreteStructure, Guide, MeanField
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.structure import distribution, most_probable, structure_sites, structure_values
from tests.layers.structure.networks import SITES, cell_model

EDGES = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 3.0]])
GATES = torch.tensor([1.0, -1.0, 2.0, -0.5])


def known(beta: float = 1.0) -> tuple[SupervisedModel, Composite]:
    """A guide with given logits."""
    model = cell_model()
    init = {
        SITES[0]: EDGES,
        SITES[1]: GATES,
        SITES[2]: torch.tensor([3.0]),
        SITES[3]: torch.tensor([[0.0, 0.0, 4.0, 0.0]]),
    }
    family = functools.partial(ConcreteStructure, init=init, beta=beta, init_scale=0.0)
    return model, Composite(model, [("*structure*", family), ("*", MAP)])


def test_probabilities_are_those_of_the_logits() -> None:
    model, guide = known(beta=0.5)
    table = distribution(model, guide)
    torch.testing.assert_close(table.probabilities[SITES[0]], (EDGES / 0.5).softmax(-1))
    torch.testing.assert_close(table.probabilities[SITES[1]], (GATES / 0.5).sigmoid())
    expected = sum(
        float(dist.Categorical(logits=logits / 0.5).entropy().sum()) for logits in (EDGES, torch.tensor([0.0, 0, 4, 0]))
    )
    expected += sum(
        float(torch.distributions.Bernoulli(logits=x / 0.5).entropy().sum()) for x in (GATES, torch.tensor(3.0))
    )
    assert float(table.entropy()) == pytest.approx(expected, rel=1e-5)


def test_the_most_probable_structure() -> None:
    assert most_probable(*known()) == {
        SITES[0]: {"0->1": "zero", "0->2": "identity", "1->2": "conv"},
        SITES[1]: {"0": True, "1": False, "2": True, "3": False},
        SITES[2]: {"0": True},
        SITES[3]: {"blocks": "2"},
    }


@pytest.mark.statistical
def test_other_guides_are_read_by_their_draws() -> None:
    """A guide that has the concrete's draws but is not known as one: 20,000 draws, three decimals of error at most."""
    model, guide = known()
    exact = distribution(model, guide).probabilities

    class Unknown(Guide):
        facts = guide.facts

        def marginal(self, name: str) -> dist.Distribution:
            return guide.marginal(name)

        def rsample(self, noise: Tensor | None = None) -> Draws:
            return guide.rsample(noise)

        def sample(self, num_samples: int) -> Draws:
            return guide.sample(num_samples)

    torch.manual_seed(0)
    found = distribution(model, Unknown(model), num_samples=20_000).probabilities
    for name in SITES:
        error = (exact[name] * (1.0 - exact[name]) / 20_000).sqrt()
        assert float(((found[name] - exact[name]).abs() / (error + 1e-9)).max()) < 5.0


def test_the_table_in_words() -> None:
    table = distribution(*known())
    text = str(table)
    assert SITES[0] in text
    assert "0->1  zero 0.787  identity 0.107  conv 0.107" in text
    assert "0  open 0.731" in text
    assert "0-&gt;1" in table._repr_html_()
    row = table.rows[1]
    assert (row["site"], row["edge"], row["choice"]) == (SITES[0], "0->2", "identity")
    assert math.isclose(sum(row["probabilities"].values()), 1.0, rel_tol=1e-6)


def test_structures_become_one_hot_draws() -> None:
    model, guide = known()
    chosen = most_probable(model, guide)
    values = structure_values(model, chosen)
    assert torch.equal(values[SITES[0]], torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]))
    assert torch.equal(values[SITES[1]], torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert torch.equal(values[SITES[3]], torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    assert list(structure_sites(model)) == SITES


def test_figures() -> None:
    table = distribution(*known())
    try:
        graph = table.plot(SITES[0])
        arcs = [line for line in graph.lines if len(line.get_xdata()) == 50]
        shown = (EDGES.softmax(-1)[:, 1:] >= 0.02).sum()  # zero is left out
        assert len(arcs) == int(shown)
        darkest = 0.25 + 0.75 * float(EDGES.softmax(-1)[2, 2])
        assert max(float(line.get_alpha()) for line in arcs) == pytest.approx(darkest)
        assert sorted(text.get_text() for text in graph.texts) == ["0", "1", "2"]
        figure, ax = plt.subplots()
        assert table.plot(SITES[1], ax=ax) is ax
        widths = [patch.get_width() for patch in ax.patches]
        assert widths[:4] == pytest.approx(GATES.sigmoid().tolist())
        assert len(table.plot(SITES[3]).patches) == 4
        figure.canvas.draw()
        with pytest.raises(ValueError, match=r"site: expected one of net.edges.structure"):
            table.plot()
    finally:
        plt.close("all")


def _without(structure: dict[str, Any], site: str) -> dict[str, Any]:
    return {name: value for name, value in structure.items() if name != site}


def test_structures_that_do_not_fit_are_refused() -> None:
    model, guide = known()
    good = most_probable(model, guide)
    for bad, message in (
        (_without(good, SITES[1]), "it says nothing of the site 'net.gate"),
        (good | {"other": {}}, "there is no site 'other'"),
        (good | {SITES[0]: {"0->1": "zero", "0->2": "zero"}}, "says nothing of the edge of .* '1->2'"),
        (good | {SITES[3]: {"blocks": "9"}}, "edge 'blocks' has no operation '9'; it has 0, 1, 2, 3"),
    ):
        with pytest.raises(ValueError, match=message):
            structure_values(model, bad)


def test_models_without_structure_are_refused() -> None:
    model = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=4)
    with pytest.raises(ValueError, match="model: it has no site of structure"):
        distribution(model, MeanField(model))
    other, _ = known()
    with pytest.raises(ValueError, match=r"guide: it lacks the model's site 'net.edges.structure'"):
        distribution(other, MeanField(model))
