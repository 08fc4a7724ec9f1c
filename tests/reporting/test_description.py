"""The table of a conversion tells the truth about every parameter, and its text is aligned."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn import likelihoods, priors
from pyrobnn.guides import MAP, SWAG, Composite, Laplace, LowRankNormal, MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.reporting.description import describe, family

NORMAL = dist.Normal(0.0, 1.0)


def zoo() -> SupervisedModel:
    """Every kind of row: random, hierarchical, tied, deterministic, frozen, and a latent noise."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(12, 4),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
    )
    net[5].weight = net[4].weight
    net[5].bias.requires_grad_(False)
    rules = [
        ("0.weight", priors.horseshoe(0.5)),
        ("0.bias", dist.Laplace(0.0, 2.0)),
        ("3.weight", priors.latent_scale()),
        ("3.bias", priors.learned_scale(0.25)),
        ("4.weight", priors.scale_mixture()),
        ("*", NORMAL),
    ]
    return SupervisedModel(net, likelihoods.Normal(dist.LogNormal(0.0, 1.0)), rules, num_data=10)


def by(key: str, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in rows if row[key] is not None}


def test_each_network_parameter_has_one_row_in_order() -> None:
    model = zoo()
    rows = describe(model).rows
    assert list(by("parameter", rows)) == [name for name, _ in model.net.network.named_parameters()]
    assert len([row for row in rows if row["parameter"]]) == len(by("parameter", rows))
    for name, row in by("parameter", rows).items():
        assert row["shape"] == tuple(model.net.network.get_parameter(name).shape)
        assert row["numel"] == model.net.network.get_parameter(name).numel()


def test_the_rows_with_a_site_are_exactly_the_latent_sites_of_the_guide() -> None:
    model = zoo()
    guide = MeanField(model)
    found = by("site", describe(model).rows)
    assert sorted(found) == sorted(guide.layout)
    assert {name: row["shape"] for name, row in found.items()} == {n: tuple(s.shape) for n, s in guide.layout.items()}


def test_status_prior_and_tied_names() -> None:
    rows = by("parameter", describe(zoo()).rows)
    assert {name: row["status"] for name, row in rows.items()} == {
        "0.weight": "random",
        "0.bias": "random",
        "1.weight": "deterministic",
        "1.bias": "deterministic",
        "3.weight": "random",
        "3.bias": "random",
        "4.weight": "random",
        "4.bias": "random",
        "5.bias": "frozen",
    }
    assert {name: row["tied"] for name, row in rows.items() if row["tied"]} == {"4.weight": ["5.weight"]}
    assert rows["0.weight"]["prior"] == "Horseshoe(0.5)"
    assert rows["0.weight"]["site"] is None, "given its scales a horseshoe weight is no site"
    assert rows["0.bias"]["prior"] == "Laplace(0, 2)"
    assert rows["3.bias"]["prior"] == "Normal(0, learned 0.25)"
    assert rows["1.weight"]["prior"] is None


def test_posterior_family_and_kind_of_divergence() -> None:
    model = zoo()
    guide = MeanField(model)
    rows = by("site", describe(model, guide).rows)
    kinds = {name: (row["posterior"], row["kl"]) for name, row in rows.items()}
    assert kinds["net.4.bias"] == ("Normal", "exact")
    assert kinds["net.0.bias"] == ("Normal", "exact"), "torch registers Normal against Laplace"
    assert kinds["net.3.weight"] == ("Normal", "exact")
    assert kinds["net.4.weight"] == ("Normal", "Monte Carlo")
    assert kinds["net.0.weight.local_scale"] == ("exp(Normal)", "Monte Carlo")
    draw = guide.rsample()
    for name, site in guide.layout.items():
        is_exact = guide.divergence(draw, {name: PriorTerm(site.prior)}).exact
        assert kinds[name][1] == ("exact" if is_exact else "Monte Carlo")
    assert all(row["posterior"] is None for row in describe(model, guide).rows if row["site"] is None)


def test_a_point_estimate_has_no_kl() -> None:
    model = zoo()
    rows = by("site", describe(model, MAP(model)).rows).values()
    assert {(row["posterior"], row["kl"]) for row in rows} == {("Delta", None)}


def test_the_kl_of_composites_and_coupled_sites() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model = SupervisedModel(net, likelihoods.Categorical(), NORMAL, num_data=10)

    def kinds(guide: Any) -> dict[str, tuple[str, str | None]]:
        rows = by("site", describe(model, guide).rows)
        return {name: (row["posterior"], row["kl"]) for name, row in rows.items()}

    last = {"net.2.weight", "net.2.bias"}
    found = kinds(Composite(model, [("net.2.*", MeanField), ("*", MAP)]))
    assert found == {name: ("Normal", "exact") if name in last else ("Delta", None) for name in found}
    found = kinds(Composite(model, [("net.2.*", MeanField), ("*", MeanField)]))
    assert set(found.values()) == {("Normal", "exact")}
    assert {kl for _, kl in kinds(LowRankNormal(model, 2)).values()} == {"exact"}
    laplace = Laplace(model)
    assert {kl for _, kl in kinds(laplace).values()} == {None}, "a point before the fit"
    loader = [(torch.randn(10, 3), torch.tensor([0, 1] * 5))]
    found = kinds(laplace.fit(model, loader))
    assert found == {name: ("Normal", "exact") if name in last else ("Delta", None) for name in found}


def test_notes_count_and_state_the_policies() -> None:
    totals, sites, trained, buffers = describe(zoo()).notes
    # random 27 + 3 + 48 + 4 + 16 + 4; deterministic 3 + 3; frozen 4
    assert totals == "Network parameters: 102 random, 6 deterministic, 4 frozen."
    # raw 27, local 27, global 1, 3, 48, its scale 1, 4, 16, 4, the noise 1
    assert sites == "Latent sites: 10, with 132 elements."
    assert trained == "Trained as points in addition to the network: net.prior:3/bias.log_scale."
    assert buffers == (
        "Buffers: running statistics of 1 BatchNorm2d layer: updated once per training step, untouched by prediction."
    )


def test_other_buffers_are_named() -> None:
    class Centered(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("center", torch.zeros(2))

    note = describe(bayesianize(nn.Sequential(Centered()), NORMAL)).notes[-1]
    assert note.startswith("Other buffers (0.center): ")
    assert not [n for n in describe(bayesianize(nn.Linear(2, 2), NORMAL)).notes if "uffers" in n]


def test_text_is_an_aligned_table() -> None:
    model = zoo()
    description = describe(model, MeanField(model))
    table, notes = str(description).split("\n\n")
    header, rule, *body = table.splitlines()
    assert header.split() == [
        "parameter",
        "site",
        "shape",
        "numel",
        "prior",
        "posterior",
        "kl",
        "status",
        "tied",
    ]
    assert len(body) == len(description.rows)
    starts = [i for i, character in enumerate(rule) if character == "─" and (i == 0 or rule[i - 1] == " ")]
    for line in (header, *body):
        assert all(line[start - 2 : start].strip() == "" for start in starts[1:]), line
    assert all(line == line.rstrip() for line in table.splitlines())
    assert notes.splitlines() == description.notes
    assert repr(description) == str(description)
    assert "tied" not in str(describe(bayesianize(nn.Linear(2, 2), NORMAL)))


def test_big_numbers_have_separators_and_scalars_a_name() -> None:
    model = SupervisedModel(nn.Linear(60, 30), likelihoods.Normal(dist.LogNormal(0.0, 1.0)), NORMAL, num_data=1)
    text = str(describe(model))
    assert "  1,800  " in text
    assert "  scalar " in text


def test_html_holds_the_same_cells_escaped() -> None:
    class Container(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<b>", nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self._modules["<b>"](x)

    description = describe(bayesianize(Container(), NORMAL))
    page = description._repr_html_()
    assert page.count("<tr>") == 1 + len(description.rows)
    assert "<b>" not in page
    assert "&lt;b&gt;.weight" in page
    assert all(note in page for note in description.notes)


def test_a_bare_network_and_a_model_of_ones_own() -> None:
    class Own(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = bayesianize(nn.Linear(2, 2), NORMAL)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * pyro.sample("level", dist.Beta(2.0, 2.0))

    assert [row["site"] for row in describe(bayesianize(nn.Linear(2, 2), NORMAL)).rows] == ["weight", "bias"]
    model = Own()
    assert [row["site"] for row in describe(model).rows] == ["net.weight", "net.bias"]
    *_, level = describe(model, MeanField(model, example=(torch.zeros(1, 2),))).rows
    assert (level["parameter"], level["site"], level["prior"]) == (None, "level", "Beta")
    assert (level["posterior"], level["kl"], level["status"]) == ("sigmoid(Normal)", "Monte Carlo", "random")


def test_describing_changes_nothing() -> None:
    model = zoo()
    guide = MeanField(model)
    before = {name: tensor.clone() for name, tensor in [*model.state_dict().items(), *guide.state_dict().items()]}
    random_state = torch.get_rng_state()
    describe(model, guide)
    assert torch.equal(torch.get_rng_state(), random_state)
    after = dict([*model.state_dict().items(), *guide.state_dict().items()])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_wrong_arguments_are_refused() -> None:
    model = zoo()
    with pytest.raises(TypeError, match=r"^model: expected a PyroModule, got function"):
        describe(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^guide: expected one of pyrobnn\.guides, got Linear"):
        describe(model, nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^model: it holds no bayesianized network"):
        describe(nn.Linear(1, 1))
    other = MeanField(bayesianize(nn.Linear(2, 2), NORMAL))
    with pytest.raises(ValueError, match=r"^guide: it lacks the model's site 'net\.0\.weight\.raw'"):
        describe(model, other)


@pytest.mark.parametrize(
    ("distribution", "name"),
    [
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), "Normal"),
        (dist.LogNormal(0.0, 1.0), "LogNormal"),
        (dist.TransformedDistribution(NORMAL, [dist.transforms.SigmoidTransform()]), "sigmoid(Normal)"),
        (
            dist.TransformedDistribution(
                NORMAL,
                [
                    dist.transforms.ComposeTransform(
                        [dist.transforms.ExpTransform(), dist.transforms.AffineTransform(0, 1)]
                    )
                ],
            ),
            "exp(Normal)",
        ),
        (dist.TransformedDistribution(NORMAL, [dist.transforms.AffineTransform(1.0, 2.0)]), "affine(Normal)"),
    ],
)
def test_family(distribution: Any, name: str) -> None:
    assert family(distribution) == name


def test_a_trajectory_not_yet_collected_is_described() -> None:
    model = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(), dist.Normal(0.0, 1.0), num_data=4)
    assert [row["kl"] for row in describe(model, SWAG(model)).rows] == [None, None]


def test_an_estimator_says_which_weights_it_draws() -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.PReLU(), nn.Flatten(), nn.Linear(6, 2, bias=False))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4)
    described = describe(model, MeanField(model), estimator=[("net.0.*", "flipout"), ("*", "per_example")])
    assert {row["site"]: row["estimator"] for row in described.rows} == {
        "net.0.weight": "flipout",
        "net.0.bias": "flipout",
        "net.1.weight": "shared",
        "net.3.weight": "per_example",
    }
    assert "estimator" in str(described) and "per_example" in described._repr_html_()
    assert "estimator" not in str(describe(model))
