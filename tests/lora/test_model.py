"""Models with random adapters: which weights are random, what is shared, and truth in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyrobnn as pb
from pyrobnn.model.stochastic import StochasticModule
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.lora.networks import adapted, batches, classifier, language_model, randomized, sequences, tagger

LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
GUIDES: dict[str, Callable[[Any], Any]] = {
    "mean_field": pb.guides.MeanField,
    "ensemble": partial(pb.guides.DeltaMixture, num_members=3),
    "low_rank_ensemble": partial(pb.guides.LowRankEnsemble, num_members=3),
    "swag": partial(pb.guides.SWAG, rank=3),
    "laplace": partial(pb.guides.Laplace, structure="kronecker"),
}
FAMILY = {"mean_field": 2, "ensemble": 3, "low_rank_ensemble": 4, "swag": 6, "laplace": 3}
"""Numbers that a posterior holds for a weight of the adapters, at most; Laplace's factors are counted beside."""


def base_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in net.named_parameters() if not parameter.requires_grad}


def trained(kind: str, model: Any, loader: list[Any], **options: Any) -> Any:
    """A guide of a family, after two epochs."""
    guide = GUIDES[kind](model)
    callbacks = [guide.collector(start=0, every=1)] if kind == "swag" else []
    pb.fit(model, guide, loader, epochs=2, lr=1e-3, progress=False, callbacks=callbacks, **options)
    return guide.fit(model, loader) if kind == "laplace" else guide


# ------------------------------------------------------------------------------------------ what is random


@pytest.mark.parametrize(("random", "expected"), [("A", 4 * 2 * 16), ("B", 4 * 16 * 2), ("all", 2 * 4 * 2 * 16)])
def test_the_latents_are_those_of_the_adapters(random: Any, expected: int) -> None:
    """Two layers of query and value, 16 × 16, rank 2."""
    model = pb.lora.model(classifier(), pb.likelihoods.Categorical(), num_data=6, random=random)
    layout = pb.guides.MeanField(model).layout
    assert layout.size == expected
    assert all("lora_" in name for name in layout)


def test_globs_name_other_weights() -> None:
    """One layer's adapters and the new head, with its bias."""
    model = pb.lora.model(
        classifier(),
        pb.likelihoods.Categorical(),
        num_data=6,
        random=["*layer.1*lora_A*", "*modules_to_save*"],
    )
    assert pb.guides.MeanField(model).layout.size == 2 * 2 * 16 + 3 * 16 + 3


def test_the_default_prior_is_scaled_by_the_fan_in_and_tempered() -> None:
    model = pb.lora.model(classifier(), pb.likelihoods.Categorical(), num_data=6)
    assert model.has_default_prior
    scales = {
        local: {round(float(site.prior.base_dist.stddev.max()), 6) for name, site in layout.items() if local in name}
        for layout in [pb.guides.MAP(model).layout]
        for local in ("lora_A", "lora_B")
    }
    assert scales == {"lora_A": {0.25}, "lora_B": {round(2**-0.5, 6)}}
    stated = pb.lora.model(classifier(), pb.likelihoods.Categorical(), dist.Normal(0.0, 0.2), num_data=6)
    assert not stated.has_default_prior


def test_without_noise_it_is_the_network() -> None:
    """At the weights the network has, the logits are the network's, with padding."""
    net = randomized(classifier()).eval()
    model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6)
    inputs = sequences()
    found = pb.predict(model, pb.guides.MAP(model), inputs, num_samples=1).mean
    torch.testing.assert_close(found, net(**inputs).logits.softmax(-1))


def test_what_is_random_is_what_is_drawn_and_b_is_trained_beside() -> None:
    """BLoB's form: A has a posterior, B and the head are points that training moves."""
    net = classifier()
    model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6, random="A")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained("mean_field", model, batches(sequences(), LABELS))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {
        f"net.net.{name}" for name, p in net.named_parameters() if p.requires_grad and "lora_A" not in name
    }


def test_padding_does_not_count() -> None:
    """Other tokens under the mask give the same predictions, of tokens that are seen, by the same draws."""
    model = pb.lora.model(randomized(tagger()), pb.likelihoods.Categorical(ignore_index=-100), num_data=6)
    guide = pb.guides.MeanField(model, init_scale=0.2)
    inputs = sequences()
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 5)}
    found, expected = (pb.predict(model, guide, x, num_samples=4, seed=3).mean for x in (inputs, other))
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[seen], expected[seen])
    assert not torch.allclose(found[~seen], expected[~seen])


@pytest.mark.parametrize("estimator", ["local_reparameterization", "flipout", "per_example"])
def test_estimators_draw_in_the_adapters(estimator: str) -> None:
    """With one site of noise the expected log likelihood is that of the shared draw: 200 draws each, z below 5."""
    model = pb.lora.model(
        randomized(classifier()), pb.likelihoods.Categorical(), num_data=6, random="*layer.1*value.lora_A*"
    )
    guide = pb.guides.MeanField(model, init_scale=0.5, antithetic=False)
    inputs = sequences()

    def values(elbo: pb.objectives.ELBO, count: int) -> Tensor:
        with torch.no_grad():
            return torch.tensor([float(elbo.differentiable_loss(model, guide, inputs, LABELS)) for _ in range(count)])

    shared, own = values(pb.objectives.ELBO(), 200), values(pb.objectives.ELBO(estimator=estimator), 200)
    z = (own.mean() - shared.mean()).abs() / (shared.var() / 200 + own.var() / 200).sqrt()
    assert own.std() > 0
    assert float(z) < Z


# ------------------------------------------------------------------------------------------- what is shared


def test_the_base_is_not_copied() -> None:
    net = classifier()
    model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6)
    own = dict(model.net.network.named_parameters())
    assert {name: p.data_ptr() for name, p in base_of(net).items()} == {n: own[n].data_ptr() for n in base_of(net)}
    trainable = [name for name, p in net.named_parameters() if p.requires_grad]
    assert all(own[name].data_ptr() != net.get_parameter(name).data_ptr() for name in trainable)


class Watching(TorchDispatchMode):
    """Notes whether an operation makes a tensor of a shape that is not a view of an old one."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.makers = shape, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        pointers = {a.data_ptr() for a in _tensors((args, kwargs))}
        for made in _tensors(result):
            if (
                made.device.type != "meta"
                and tuple(made.shape) in (self.shape, self.shape[::-1])
                and made.data_ptr() not in pointers
            ):
                self.makers.add(str(func))
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        if tree.layout == torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(tree):
            yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


@pytest.mark.parametrize("kind", GUIDES)
def test_neither_training_nor_prediction_nor_a_checkpoint_copies_the_base(kind: str, tmp_path: Path) -> None:
    """No operation makes a tensor of the shape of the feed-forward weights, 24 × 16; values and places stay."""
    net = classifier()
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in base_of(net).items()}
    model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6)
    loader, inputs = batches(sequences(), LABELS), sequences()
    if kind == "laplace":  # which vmaps over data, as the masks of transformers cannot be
        inputs = {"input_ids": inputs["input_ids"]}
    with Watching((24, 16)) as watching:
        guide = trained(kind, model, loader)
        if kind == "mean_field":  # the best epoch is kept, and the run saved
            options: dict[str, Any] = {"validation": loader, "patience": 1, "checkpoint": tmp_path / "fit"}
            pb.fit(model, guide, loader, epochs=2, progress=False, **options)
        pred = pb.predict(model, guide, inputs, num_samples=6, seed=0)
        pb.save(tmp_path / "run", model, guide)
    assert watching.makers == set()
    for name, (place, value) in before.items():
        assert model.net.network.get_parameter(name).data_ptr() == net.get_parameter(name).data_ptr() == place
        assert torch.equal(net.get_parameter(name), value)
    loaded = pb.load(tmp_path / "run", net=net)
    assert loaded[0].net.network.get_parameter(next(iter(before))).data_ptr() == next(iter(before.values()))[0]
    assert torch.equal(pb.predict(*loaded, inputs, num_samples=6, seed=0).mean, pred.mean)


def held(*modules: nn.Module) -> int:
    """Bytes of all tensors of the modules, each memory once; starting values count, views do not."""
    storages = {}
    for module in modules:
        tensors = [*module.parameters(), *module.buffers()]
        for part in module.modules():
            tensors += part.initial_values().values() if isinstance(part, StochasticModule) else []
        storages |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("kind", GUIDES)
def test_memory_is_the_base_and_a_multiple_of_the_adapters(kind: str) -> None:
    """The network's own adapters, the copy's and the starting values are the three more."""
    net = classifier()
    adapters = sum(p.nbytes for p in net.parameters() if p.requires_grad)
    alone = held(net)
    model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6)
    guide = trained(kind, model, batches(sequences(), LABELS))
    buffers = sum(b.nbytes for b in net.buffers())  # indices of positions, which the copy has of its own
    factors = 8 * 8 * 3 * (2**2 + 16**2) if kind == "laplace" else 0  # double precision; eigenvectors beside them
    assert held(net, model, guide) <= alone + buffers + adapters * (FAMILY[kind] + 2) + factors
    copied = pb.SupervisedModel(
        net, pb.likelihoods.Categorical(), [("*lora*", dist.Normal(0.0, 1.0)), ("*", None)], num_data=6, output="logits"
    )
    assert held(net, copied) > 1.9 * alone


def test_members_start_apart_at_the_base() -> None:
    """As PEFT starts adapters: each member's A is drawn, its B is zero, so that all begin with the base's outputs."""
    net = classifier()
    guide = pb.guides.DeltaMixture(pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6), num_members=3)
    for name, draws in guide.atoms(torch.arange(3)).items():
        assert bool((draws == 0).all()) if "lora_B" in name else len(draws.unique(dim=0)) == 3


def test_chains_hold_adapters_only() -> None:
    net = classifier()
    model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6, random=["*lora*", "*modules_to_save*"])
    chains = pb.sample(
        model,
        batches(sequences(), LABELS),
        kernel=pb.sampling.SGLD(1e-4),
        num_samples=3,
        num_chains=2,
        warmup_steps=2,
        seed=0,
        progress=False,
    )
    trainable = sum(p.nbytes for p in net.parameters() if p.requires_grad)
    assert held(chains) == 6 * trainable
    assert pb.predict(model, chains, sequences(), num_samples=6).mean.shape == (6, 3)


def test_a_checkpoint_refuses_another_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = classifier()
    model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6)
    pb.save(tmp_path / "run", model, pb.guides.MeanField(model))
    size = sum(path.stat().st_size for path in (tmp_path / "run").glob("*.safetensors"))
    assert size < sum(p.nbytes for p in base_of(net).values())
    with pytest.raises(ValueError, match="net: its frozen parameters, which the saved model shared"):
        pb.load(tmp_path / "run", net=classifier())


# ---------------------------------------------------------------------------------------------------- truth


class Adapter:
    r"""One linear layer with an adapter whose B is fixed: :math:`y = W x + \frac{\alpha}{r} B A x + \sigma\epsilon`.

    Linear in A, so with a Normal prior the posterior of A is Gaussian, in double precision.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        net = randomized(adapted(nn.Sequential(nn.Linear(3, 4)), target_modules=["0"]), 1.0).double()
        for name, parameter in net.named_parameters():
            parameter.requires_grad_("lora_A" in name)
        self.net, self.noise, self.scale = net, 0.5, 0.7
        layer = net.base_model.model[0]
        self.x = torch.randn(30, 3, dtype=torch.float64)
        base, b = layer.base_layer, layer.lora_B["default"].weight.detach()
        with torch.no_grad():
            self.y = base(self.x) + self.x @ torch.randn(3, 4).double() + 0.5 * torch.randn(30, 4).double()
            features = 2.0 * torch.einsum("or,ni->nori", b, self.x).reshape(30 * 4, -1)  # α / r = 2
            self.precision = features.T @ features / self.noise**2 + torch.eye(6).double() / self.scale**2
            spread = self.scale**2 * features @ features.T + self.noise**2 * torch.eye(120).double()
            evidence = dist.MultivariateNormal(base(self.x).flatten(), spread).log_prob(self.y.flatten())
            pull = features.T @ (self.y - base(self.x)).flatten() / self.noise**2
        self.log_evidence, self.mean = float(evidence), torch.linalg.solve(self.precision, pull)
        self.model = pb.lora.model(
            net,
            pb.likelihoods.Normal(self.noise),
            dist.Normal(0.0, self.scale),
            num_data=30,
            random="A",
            output=None,
        ).double()


def test_laplace_is_the_posterior_of_a_linear_adapter() -> None:
    """Exactly: the mean and the whole covariance."""
    adapter = Adapter()
    guide = pb.guides.Laplace(adapter.model, structure="full").double()
    assert guide.layout.size == 6
    with torch.no_grad():
        guide.flat_loc.copy_(adapter.mean)
    guide.fit(adapter.model, [(adapter.x, adapter.y)])
    draws = guide.sample(20_000)
    drawn = next(iter(draws.values())).flatten(1)
    assert z_of_mean(drawn, adapter.mean) < Z
    outer = (drawn - adapter.mean).unsqueeze(-1) * (drawn - adapter.mean).unsqueeze(-2)
    assert z_of_mean(outer, torch.linalg.inv(adapter.precision)) < Z


def test_mean_field_of_a_linear_adapter_is_the_closed_form() -> None:
    """Training finds the means, which mirrored draws make exact. At variances 1 / Λᵢᵢ the gradient by the scales is
    zero and the bound misses the evidence by the known gap: 200 groups of eight draws, z below 5."""
    adapter = Adapter()
    guide = pb.guides.MeanField(adapter.model, init_scale=0.03).double()
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.985)
    elbo = pb.objectives.ELBO(num_particles=2)
    for _ in range(400):
        optimizer.zero_grad()
        elbo.loss_and_grads(adapter.model, guide, adapter.x, adapter.y)
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(guide.flat_loc.detach(), adapter.mean, rtol=0.0, atol=1e-3)  # its scale is 0.4
    with torch.no_grad():
        guide.flat_loc.copy_(adapter.mean)
        guide.flat_log_scale.copy_(-0.5 * adapter.precision.diagonal().log())
    elbo = pb.objectives.ELBO(num_particles=8)  # which share random numbers
    gradients, bounds = [], []
    for _ in range(200):
        guide.zero_grad()
        bounds.append(-elbo.loss_and_grads(adapter.model, guide, adapter.x, adapter.y))
        assert guide.flat_log_scale.grad is not None
        gradients.append(guide.flat_log_scale.grad.clone())
    assert z_of_mean(torch.stack(gradients), 0.0) < Z
    gap = float(0.5 * (adapter.precision.diagonal().log().sum() - torch.logdet(adapter.precision)))
    assert gap > 0.1
    assert z_of_mean(torch.tensor(bounds, dtype=torch.float64), adapter.log_evidence - gap) < Z


# ---------------------------------------------------------------------------------------------- bad input


def test_a_network_without_adapters_is_refused() -> None:
    pytest.importorskip("peft", reason="peft")
    with pytest.raises(ValueError, match=r"net: the Sequential has no LoRA adapters; make them by peft\."):
        pb.lora.model(nn.Sequential(nn.Linear(2, 2)), pb.likelihoods.Categorical(), num_data=4)


def test_a_peft_model_without_lora_is_refused() -> None:
    """Adapters that were folded into the base, and another method of PEFT."""
    net = adapted(nn.Sequential(nn.Linear(3, 4)), target_modules=["0"])
    with pytest.raises(ValueError, match="net: the Sequential has no LoRA adapters"):
        pb.lora.model(net.merge_and_unload(), pb.likelihoods.Categorical(), num_data=4)


def test_adapters_that_have_no_effect_are_refused() -> None:
    net = adapted(nn.Sequential(nn.Linear(3, 4)), target_modules=["0"])
    net.merge_adapter()
    with pytest.raises(ValueError, match=r"net: the adapters of '.*0' are merged into its base weights"):
        pb.lora.model(net, pb.likelihoods.Categorical(), num_data=4)
    net.unmerge_adapter()
    net.disable_adapter_layers()
    with pytest.raises(ValueError, match=r"net: the adapters of '.*0' are disabled"):
        pb.lora.model(net, pb.likelihoods.Categorical(), num_data=4)
    net.enable_adapter_layers()
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="net: all adapters are frozen"):
        pb.lora.model(net, pb.likelihoods.Categorical(), num_data=4)


def test_wrong_choices_are_refused() -> None:
    net = adapted(nn.Sequential(nn.Linear(3, 4)), target_modules=["0"])
    with pytest.raises(ValueError, match="random: 'a' matches no parameter; the adapters are "):
        pb.lora.model(net, pb.likelihoods.Categorical(), num_data=4, random="a")
    with pytest.raises(TypeError, match="random: expected 'A', 'B', 'all'"):
        pb.lora.model(net, pb.likelihoods.Categorical(), num_data=4, random=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prior: expected one prior for the random weights"):
        pb.lora.model(net, pb.likelihoods.Categorical(), [("*", None)], num_data=4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module with LoRA adapters, got int"):
        pb.lora.model(3, pb.likelihoods.Categorical(), num_data=4)  # type: ignore[arg-type]


def test_a_thawed_base_is_refused() -> None:
    model = pb.lora.model(classifier(), pb.likelihoods.Categorical(), num_data=6)
    model.net.network.requires_grad_(True)
    with pytest.raises(ValueError, match=r"model: the parameter .* must stay frozen"):
        trained("mean_field", model, batches(sequences(), LABELS))


# ----------------------------------------------------------------------------------- other networks of PEFT


def test_the_last_adapter_is_a_last_layer() -> None:
    """The output layer's B is linear in the logits, so its Laplace approximation is exact but for the likelihood."""
    net = randomized(language_model())
    last = pb.lora.adapters(net)[-1]
    assert last == "base_model.model.lm_head.lora_B.default"
    inputs = {"input_ids": sequences()["input_ids"]}
    model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6, output=lambda found: found.logits[:, -1])
    guide = pb.guides.Laplace(model, structure="last_layer", last_layer=last)
    guide.fit(model, [(inputs, LABELS)])
    assert guide.last_layer == last
    assert guide.is_linear
    assert len(guide.covered) == 1


def test_adapters_of_embeddings() -> None:
    """The rows of A are those of the vocabulary, and their prior has scale 1."""
    net = adapted(nn.Sequential(nn.Embedding(9, 5)), target_modules=["0"])
    model = pb.lora.model(net, pb.likelihoods.Normal(1.0), num_data=4, output=None)
    layout = pb.guides.MeanField(model).layout
    assert {name.split(".")[-2]: tuple(site.shape) for name, site in layout.items()} == {
        "lora_embedding_A": (2, 9),
        "lora_embedding_B": (5, 2),
    }
    first = next(iter(layout.values()))
    assert float(first.prior.base_dist.stddev.unique()) == 1.0
    inputs = torch.arange(4)
    pb.fit(model, pb.guides.MeanField(model), [(inputs, torch.zeros(4, 5))], epochs=1, progress=False)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_base_of_half_precision_and_autocast(autocast: bool) -> None:
    """PEFT keeps adapters in float32 beside a base in bfloat16; either way predictions are about those of float32."""
    torch.manual_seed(0)
    net = classifier()
    inputs = sequences()
    model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6, random="A")
    expected = pb.predict(model, pb.guides.MeanField(model), inputs, num_samples=3, seed=0).mean
    if not autocast:
        for name, parameter in net.named_parameters():
            parameter.data = parameter.data if "lora" in name else parameter.data.bfloat16()
        model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=6, random="A")
    guide = pb.guides.MeanField(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = pb.predict(model, guide, inputs, num_samples=3, seed=0).mean
        trained("mean_field", model, batches(inputs, LABELS))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
    assert all(torch.equal(p, model.net.network.get_parameter(n)) for n, p in base_of(net).items())
