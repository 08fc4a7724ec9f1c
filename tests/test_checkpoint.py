"""Checkpoints come back exactly, in a new process too; mismatches are refused; failed saves lose nothing."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.nn import PyroModule
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import pyrobnn.checkpoint as checkpoint
from pyrobnn import likelihoods, priors
from pyrobnn.checkpoint import CheckpointError, load, save
from pyrobnn.core.documents import sealed
from pyrobnn.core.storage import load_state, save_state
from pyrobnn.guides import MAP, SWAG, Composite, DeltaMixture, Guide, LowRankNormal, MeanField, NormalizingFlow
from pyrobnn.model.bayesianize import bayesianize, buffers
from pyrobnn.model.supervised import SupervisedModel

NORMAL = dist.Normal(0.0, 1.0)
X = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)


def mlp(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, outputs))


def tied_mlp() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    net[1].weight = net[0].weight
    net[2].bias.requires_grad_(False)
    return net


def trained(model: nn.Module, guide: Guide) -> tuple[nn.Module, Guide]:
    """Parameters and buffers at values that no constructor gives."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *(buffer for _, _, buffer in buffers(model)), *guide.parameters()]:
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model, guide


def pair(
    net: nn.Module | None = None, prior: Any = NORMAL, likelihood: Any = None
) -> tuple[SupervisedModel, MeanField]:
    model = SupervisedModel(net or mlp(), likelihood or likelihoods.Categorical(), prior, num_data=40)
    trained(model, guide := MeanField(model))
    return model, guide


def outputs(model: nn.Module, guide: Guide, x: Tensor = X) -> Tensor:
    """Network outputs of three draws under a fixed seed, in evaluation mode."""
    pyro.set_rng_seed(1)
    draws = guide.sample(3)
    model.eval()
    with torch.no_grad():
        each = [poutine.condition(model, {name: d[i] for name, d in draws.items()})(x) for i in range(3)]
    return torch.stack(each)


def log_prior(model: nn.Module, values: dict[str, Tensor]) -> float:
    conditioned = poutine.condition(model.sample_latents, values)
    return poutine.trace(conditioned).get_trace().log_prob_sum().item()


def files(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the specification and its digests, as another version of the library might."""
    spec = json.loads((path / "spec.json").read_text())
    change(spec)
    (path / "spec.json").write_text(json.dumps(sealed(spec)))


# ------------------------------------------------------------------------------------------------ round trips

PRIORS = {
    "normal": NORMAL,
    "per weight": lambda name, parameter, module: dist.Laplace(
        torch.zeros_like(parameter), 1 + torch.rand_like(parameter)
    ),
    "uniform": dist.Uniform(-3.0, 3.0),
    "student": dist.StudentT(3.0, 0.0, 0.5),
    "he": priors.he(),
    "mixture": priors.scale_mixture(),
    "horseshoe": priors.horseshoe(0.3),
    "latent scale": priors.latent_scale(dist.LogNormal(0.0, 0.5)),
    "learned scale": priors.learned_scale(0.7),
    "centered": priors.centered(0.2),
    "first layer only": [("0.*", NORMAL), ("*", None)],
    "norm layers too": [(nn.BatchNorm1d, dist.Normal(1.0, 0.1)), ("*", NORMAL)],
}
LIKELIHOODS = {
    "Categorical": lambda: likelihoods.Categorical(class_dim=1),
    "Bernoulli": likelihoods.Bernoulli,
    "Normal, fixed": lambda: likelihoods.Normal(0.3),
    "Normal, learned": lambda: likelihoods.Normal(0.3, learn_scale=True),
    "Normal, not stated": likelihoods.Normal,
    "Normal, one per output": lambda: likelihoods.Normal(shape=(2,)),
    "Normal, latent": lambda: likelihoods.Normal(dist.Gamma(2.0, 3.0)),
    "HeteroscedasticNormal": lambda: likelihoods.HeteroscedasticNormal(0.02),
    "HeteroscedasticNormal, warming": lambda: likelihoods.HeteroscedasticNormal(beta=0.5, warmup=3),
    "Poisson": likelihoods.Poisson,
}


def assert_same(first: tuple[nn.Module, Guide], second: tuple[nn.Module, Guide]) -> None:
    (model, guide), (loaded, loaded_guide) = first, second
    assert type(loaded_guide) is type(guide)
    assert loaded_guide.config() == guide.config()
    placeholders = {f"net.net.{alias}" for names in model.net.parameter_names.values() for alias in names}
    for module, other in ((model, loaded), (guide, loaded_guide)):
        state, found = module.state_dict(), other.state_dict()
        assert state.keys() == found.keys()
        for name in state.keys() - placeholders:
            assert torch.equal(state[name], found[name]), name
            assert state[name].dtype == found[name].dtype
        flags = {name: p.requires_grad for name, p in module.named_parameters()}
        assert flags == {name: p.requires_grad for name, p in other.named_parameters()}
    assert model.num_data == loaded.num_data
    assert model.likelihood.config() == loaded.likelihood.config()
    assert {n: p.spec() for n, p in model.net.site_priors.items()} == {
        n: p.spec() for n, p in loaded.net.site_priors.items()
    }
    values = {name: draw[0] for name, draw in guide.sample(1).items()}
    assert log_prior(model, values) == log_prior(loaded, values)
    assert torch.equal(outputs(model, guide), outputs(loaded, loaded_guide))


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_comes_back(tmp_path: Path, prior: str) -> None:
    saved = pair(prior=PRIORS[prior])
    save(tmp_path, *saved)
    assert_same(saved, load(tmp_path, mlp()))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_comes_back(tmp_path: Path, likelihood: str) -> None:
    saved = pair(likelihood=LIKELIHOODS[likelihood]())
    save(tmp_path, *saved)
    loaded, guide = load(tmp_path, mlp())
    assert type(loaded.likelihood) is type(saved[0].likelihood)
    assert_same(saved, (loaded, guide))


def swag(model: nn.Module) -> SWAG:
    """With more iterates than it keeps deviations."""
    guide = SWAG(model, rank=3, scale=0.5)
    for _ in range(5):
        with torch.no_grad():
            guide.flat_loc.add_(0.1 * torch.randn_like(guide.flat_loc))
        guide.collect()
    return guide


def flow(model: nn.Module) -> NormalizingFlow:
    if importlib.util.find_spec("zuko") is None:
        pytest.skip("needs zuko, of the extra flows")
    return NormalizingFlow(model, 2, transform="affine", hidden=(4,), max_latents=60)


HALF_AND_HALF = [
    ("3.*", functools.partial(LowRankNormal, rank=2)),
    (("net.0.weight", "likelihood*"), functools.partial(MeanField, antithetic=False, init_scale=0.3)),
    ("*", MAP),
]


@pytest.mark.parametrize(
    "build",
    [
        lambda m: MAP(m, jacobian=True),
        lambda m: MAP(m),
        lambda m: MeanField(m, antithetic=False, init_scale=0.3),
        lambda m: LowRankNormal(m, rank=3, max_bytes=10_000),
        swag,
        lambda m: Composite(m, HALF_AND_HALF),
        lambda m: Composite(
            m, [("net.*", functools.partial(Composite, rules=[*HALF_AND_HALF[:1], ("*", MAP)])), ("*", MAP)]
        ),
        lambda m: Composite(m, [("3*", functools.partial(DeltaMixture, num_members=3)), ("*", MAP)]),
        flow,
    ],
    ids=[
        "MAP, Jacobian",
        "MAP",
        "MeanField, not antithetic",
        "LowRankNormal",
        "SWAG",
        "Composite",
        "Composite, nested",
        "Composite, ensemble",
        "NormalizingFlow",
    ],
)
def test_guides_come_back_with_their_options(tmp_path: Path, build: Callable[[nn.Module], Guide]) -> None:
    model = SupervisedModel(mlp(), likelihoods.Normal(dist.HalfNormal(1.0)), NORMAL, num_data=40)
    saved = trained(model, build(model))
    save(tmp_path, *saved)
    assert_same(saved, load(tmp_path, mlp()))


def test_parts_of_a_guide_map_come_back_as_they_were(tmp_path: Path) -> None:
    model = SupervisedModel(mlp(), likelihoods.Normal(dist.HalfNormal(1.0)), NORMAL, num_data=40)
    guide = Composite(model, HALF_AND_HALF)
    save(tmp_path, model, guide)
    parts = load(tmp_path, mlp())[1].parts
    assert [(type(p), list(p.layout), p.config()) for p in parts] == [
        (type(p), list(p.layout), p.config()) for p in guide.parts
    ]
    assert [type(p) for p in parts] == [LowRankNormal, MeanField, MAP]


class OwnFamily(MAP):
    """Not one of the library's."""


def test_a_guide_map_with_a_family_of_ones_own_is_filled_in_place(tmp_path: Path) -> None:
    model = SupervisedModel(mlp(), likelihoods.Categorical(), NORMAL, num_data=40)
    trained(model, guide := Composite(model, [("3*", OwnFamily), ("*", MAP)]))
    save(tmp_path, model, guide)
    with pytest.raises(ValueError, match=r"guide: 'tests.test_checkpoint.OwnFamily' is not one.*pass it as guide="):
        load(tmp_path, mlp())
    other = Composite(model, [("3*", OwnFamily), ("*", MAP)])
    _, loaded = load(tmp_path, model=model, guide=other)
    assert torch.equal(loaded.state_dict()["0.loc"], guide.state_dict()["0.loc"])


def test_tied_frozen_and_double_come_back(tmp_path: Path) -> None:
    net = tied_mlp().double()
    model = SupervisedModel(
        net, likelihoods.Normal(dist.LogNormal(0.0, 1.0)), [("2.*", None), ("*", NORMAL)], num_data=9
    )
    model = model.double()
    guide = MeanField(model)
    guide.flat_log_scale.requires_grad_(False)
    saved = trained(model, guide)
    save(tmp_path, *saved)
    fresh = tied_mlp().double().requires_grad_()
    loaded, loaded_guide = load(tmp_path, fresh)
    assert loaded.net.parameter_names["0.weight"] == ["0.weight", "1.weight"]
    assert loaded.net.network[2].weight.requires_grad
    assert not loaded.net.network[2].bias.requires_grad
    assert loaded_guide.flat_loc.dtype == torch.float64
    pyro.set_rng_seed(0)
    assert torch.equal(outputs(*saved, X.double()), outputs(loaded, loaded_guide, X.double()))
    assert not loaded_guide.flat_log_scale.requires_grad


def test_predictions_are_the_same_in_a_new_process(tmp_path: Path) -> None:
    model, guide = pair(prior=priors.latent_scale(), likelihood=likelihoods.Normal(dist.LogNormal(0.0, 1.0)))
    save(tmp_path / "run", model, guide)
    script = f"""
        import torch
        from tests.test_checkpoint import load, mlp, outputs, save_state
        torch.set_num_threads(1)
        model, guide = load({str(tmp_path / "run")!r}, net=mlp())
        save_state({str(tmp_path / "outputs")!r}, outputs(model, guide))
    """
    assert run_python(script).returncode == 0
    assert torch.equal(load_state(tmp_path / "outputs"), outputs(model, guide))


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    root = Path(checkpoint.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode == 1:
        pytest.fail(done.stderr)
    return done


def test_loading_needs_no_data_and_changes_nothing(tmp_path: Path) -> None:
    class Untouchable(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the network was run")

    net = Untouchable(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model, guide = pair(net)
    random_state = torch.get_rng_state()
    save(tmp_path, model, guide)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    load(tmp_path, net)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_placeholders_are_not_stored(tmp_path: Path) -> None:
    net = tied_mlp()
    save(tmp_path, *pair(net, [("2.weight", None), ("*", NORMAL)]))
    (data,) = tmp_path.glob("tensors-*.safetensors")
    with safe_open(data, "pt") as stored:
        of_network = {name for name in stored.keys() if name.startswith("model.net.net.")}  # noqa: SIM118
    assert of_network == {"model.net.net.2.weight", "model.net.net.2.bias"}


def test_the_device_can_be_named(tmp_path: Path) -> None:
    saved = pair()
    save(tmp_path, *saved)
    assert_same(saved, load(tmp_path, mlp(), device="cpu"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_saved_on_a_gpu_and_loaded_anywhere(tmp_path: Path) -> None:
    model = SupervisedModel(mlp(), likelihoods.Normal(0.3), NORMAL, num_data=40).cuda()
    save(tmp_path, *trained(model, guide := MeanField(model)))
    for device, net in ((None, mlp().cuda()), ("cuda", mlp()), (None, mlp()), ("cpu", mlp().cuda())):
        loaded, loaded_guide = load(tmp_path, net, device=device)
        kind = device or next(net.parameters()).device.type
        assert {t.device.type for m in (loaded, loaded_guide) for t in m.state_dict().values()} == {kind}
        assert torch.equal(loaded_guide.flat_loc.cpu(), guide.flat_loc.cpu())


# ------------------------------------------------------------------------------------------- networks refused


def without_bias() -> nn.Module:
    net = mlp()
    net[3] = nn.Linear(5, 2, bias=False)
    return net


def with_relu() -> nn.Module:
    net = mlp()
    net[2] = nn.ReLU()
    return net


def without_statistics() -> nn.Module:
    net = mlp()
    net[1] = nn.BatchNorm1d(5, track_running_stats=False)
    return net


def untied() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (without_bias, "the parameter '3.bias' is missing"),
        (lambda: mlp().append(nn.Linear(2, 2)), "the parameter '4.weight' is not expected"),
        (lambda: mlp(7), r"the parameter '3.weight' has shape \[7, 5\], expected \[2, 5\]"),
        (lambda: mlp().double(), "the parameter '0.weight' has dtype float64, expected float32"),
        (with_relu, "the module '2' has class ReLU, expected Tanh"),
        (without_statistics, "the buffer '1.running_mean' is missing"),
        (lambda: nn.Sequential(*[nn.Linear(3, 3) for _ in range(9)]), "and [0-9]+ more"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), "'0.weight' is lazy"),
    ],
    ids=["missing", "extra", "shape", "dtype", "activation", "buffer", "all wrong", "lazy"],
)
def test_another_network_is_refused_by_name(tmp_path: Path, net: Callable[[], nn.Module], message: str) -> None:
    save(tmp_path, *pair())
    with pytest.raises(ValueError, match=f"^net: .*{message}"):
        load(tmp_path, net())


def test_untied_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path, *pair(tied_mlp()))
    with pytest.raises(
        ValueError, match=r"'1.weight' is not expected.*'0.weight' has tied \[\], expected \['1.weight'\]"
    ):
        load(tmp_path, untied())


# ---------------------------------------------------------------------------------------- checkpoints refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(format_version=2), "path: .* format version 2 .*upgrade"),
        (lambda s: s.update(format_version="1"), "path: .*format version is '1'"),
        (lambda s: s.update(format="something"), "path: .*spec.json is not one of its kind"),
        (lambda s: s.pop("tensors"), "path: .*damaged.*spec.json: tensors: expected an entry"),
        (lambda s: s.pop("guide"), "path: .*damaged.*spec.json: guide: expected an entry"),
        (lambda s: s["model"].pop("priors"), r"path: .*damaged.*spec.json: model\.priors: expected an entry"),
        (lambda s: s["model"]["likelihood"].update({"class": "Zipf"}), "likelihood: 'Zipf'"),
        (lambda s: s["model"]["likelihood"].update({"class": "torch"}), "likelihood: 'torch'"),
        (
            lambda s: s["model"]["priors"]["0.weight"].update(prior="Spike"),
            r"path: spec.json .*model\.priors\.0\.weight: .*'Spike'",
        ),
        (
            lambda s: s["model"]["priors"]["0.weight"]["distribution"].update(family="Nrmal"),
            r"path: spec.json .*model\.priors\.0\.weight: .*'Nrmal'",
        ),
        (
            lambda s: s["model"]["priors"]["0.weight"]["distribution"].update(family="torch"),
            r"path: spec.json .*model\.priors\.0\.weight: .*'torch'",
        ),
        (
            lambda s: s["model"]["priors"].pop("0.weight"),
            "model: .*the tensor 'net.prior:0/weight.loc' is missing",
        ),
        (lambda s: s["guide"].update({"class": "Oracle"}), "guide: 'Oracle'"),
        (lambda s: s["guide"].update({"class": "Site"}), "guide: 'Site'"),
        (
            lambda s: s["guide"]["sites"].pop("net.0.weight"),
            "guide: .*the site 'net.0.weight' is not expected",
        ),
        (
            lambda s: s["guide"]["sites"].update({"net.4.weight": s["guide"]["sites"]["net.0.weight"]}),
            "guide: .*the site 'net.4.weight' is missing",
        ),
        (
            lambda s: s["guide"]["sites"]["net.0.weight"].update(shape=[1]),
            r"guide: .*the site 'net.0.weight' has shape \[5, 3\], expected \[1\]",
        ),
    ],
)
def test_what_does_not_match_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    save(tmp_path, *pair())
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=f"^{message}"):
        load(tmp_path, mlp())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "is not the file that was written"),
        (flip_a_bit, "is not the file that was written"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.with_name("spec.json").write_text("{"), "spec.json: "),
        (lambda path: path.with_name("spec.json").write_bytes(b"\xff\xfe"), "spec.json: "),
        (lambda path: path.with_name("spec.json").write_text("[]"), "not one of its kind"),
    ],
    ids=["truncated", "bit flip", "deleted", "not JSON", "not text", "not a dict"],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    save(tmp_path, *pair())
    (data,) = tmp_path.glob("tensors-*")
    damage(data)
    with pytest.raises(ValueError, match=f"^path: .*damaged.*{message}"):
        load(tmp_path, mlp())


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=r"^path: .*no pyrobnn checkpoint: there is no .*spec\.json"):
            load(path, mlp())
    save_state(tmp_path, {})
    with pytest.raises(FileNotFoundError, match="no pyrobnn checkpoint"):
        load(tmp_path, mlp())


# ---------------------------------------------------------------------------------------- models of one's own


class Own(PyroModule):
    """A site of its own, a parameter of its own and a bayesianized network."""

    def __init__(self, width: int = 2, extra: bool = False, prior: Any = NORMAL) -> None:
        super().__init__()
        self.net = bayesianize(nn.Linear(3, width), prior)
        self.shift = nn.Linear(1, 1)
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        level = pyro.sample("level", dist.HalfNormal(1.0))
        if self.extra:
            pyro.sample("another", dist.Normal(0.0, 1.0))
        return self.net(x) * level


def test_a_model_of_ones_own_comes_back(tmp_path: Path) -> None:
    saved = trained(model := Own(), MeanField(model, example=(X,)))
    save(tmp_path, *saved)
    with pytest.raises(TypeError, match=r"^net: the checkpoint holds a .*Own; .*model="):
        load(tmp_path, mlp())
    with pytest.raises(TypeError, match=r"^guide: the latent sites of Own are not known without data.*guide="):
        load(tmp_path, model=Own())
    fresh = Own()
    loaded = load(tmp_path, model=fresh, guide=MeanField(fresh, example=(X,)))
    assert loaded[0] is fresh
    assert torch.equal(fresh._modules["shift"].weight, model._modules["shift"].weight)
    assert torch.equal(outputs(*saved), outputs(*loaded))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: Own(extra=True), "^guide: .*the site 'another' is not expected"),
        (lambda: Own(width=4), r"^guide: .*the site 'net.weight' has shape \[4, 3\], expected \[2, 3\]"),
        (
            lambda: Own(prior=dist.Laplace(0.0, 1.0)),
            "^guide: .*the site 'net.weight' has .*prior Laplace, expected Normal",
        ),
        (
            lambda: Own(prior=dist.StudentT(3.0, 0.0, 1.0)),
            r"^model: .*the tensor 'net.prior:weight.df' is not expected",
        ),
    ],
    ids=["site", "shape", "family", "tensor"],
)
def test_another_model_of_ones_own_is_refused(tmp_path: Path, other: Callable[[], Own], message: str) -> None:
    save(tmp_path, model := Own(), MeanField(model, example=(X,)))
    with pytest.raises(ValueError, match=message):
        load(tmp_path, model=(fresh := other()), guide=MeanField(fresh, example=(X,)))


class Named(nn.Module):
    """Returns its logits by name and by place."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(3, 2), kind

    def forward(self, x: Tensor) -> Any:
        logits = self.layer(x)
        return {"logits": logits} if self.kind is dict else (logits.sum(-1), logits)


@pytest.mark.parametrize(("kind", "output"), [(dict, "logits"), (tuple, 1), (tuple, -1)])
def test_what_is_selected_of_the_outputs_comes_back(tmp_path: Path, kind: type, output: Any) -> None:
    model = SupervisedModel(Named(kind), likelihoods.Categorical(), NORMAL, num_data=40, output=output)
    trained(model, guide := MeanField(model))
    save(tmp_path, model, guide)
    loaded, other = load(tmp_path, Named(kind))
    assert isinstance(loaded, SupervisedModel)
    assert loaded.output == output
    assert torch.equal(outputs(loaded, other), outputs(model, guide))
    changed = SupervisedModel(Named(kind), likelihoods.Categorical(), NORMAL, num_data=40, output=0)
    with pytest.raises(ValueError, match=rf"^model: it has output=0, but was saved with output={output!r}"):
        load(tmp_path, model=changed)


def test_a_function_of_the_outputs_needs_the_model(tmp_path: Path) -> None:
    def build() -> SupervisedModel:
        return SupervisedModel(
            Named(tuple), likelihoods.Categorical(), NORMAL, num_data=40, output=lambda returned: returned[1]
        )

    model = build()
    trained(model, guide := MeanField(model))
    save(tmp_path, model, guide)
    with pytest.raises(TypeError, match=r"^net: the model was saved with a function as output=.*pass it as model="):
        load(tmp_path, Named(tuple))
    loaded, other = load(tmp_path, model=build())
    assert torch.equal(outputs(loaded, other), outputs(model, guide))


def test_a_likelihood_of_ones_own_needs_the_model(tmp_path: Path) -> None:
    class Laplace(likelihoods.Normal):
        pass

    saved = pair(likelihood=Laplace(0.4))
    save(tmp_path, *saved)
    with pytest.raises(ValueError, match=r"^likelihood: .*Laplace' is not one of pyrobnn's.*model="):
        load(tmp_path, mlp())
    fresh = SupervisedModel(mlp(), Laplace(0.7), NORMAL, num_data=40)
    assert_same(saved, load(tmp_path, model=fresh))
    with pytest.raises(ValueError, match=r"^model: it has num_data=7, but was saved with num_data=40"):
        load(tmp_path, model=SupervisedModel(mlp(), Laplace(0.7), NORMAL, num_data=7))
    with pytest.raises(ValueError, match=r"^model: .*'likelihood' has learn_scale True, expected False"):
        load(tmp_path, model=SupervisedModel(mlp(), Laplace(), NORMAL, num_data=40))


def test_a_guide_of_ones_own_needs_itself(tmp_path: Path) -> None:
    class Wider(MeanField):
        pass

    model = SupervisedModel(mlp(), likelihoods.Categorical(), NORMAL, num_data=40)
    saved = trained(model, Wider(model))
    save(tmp_path, *saved)
    with pytest.raises(ValueError, match=r"^guide: .*Wider' is not one of pyrobnn\.guides.*guide="):
        load(tmp_path, mlp())
    with pytest.raises(ValueError, match=r"^guide: it is a MeanField, but the checkpoint holds a .*Wider\."):
        load(tmp_path, model=model, guide=MeanField(model))
    fresh = SupervisedModel(mlp(), likelihoods.Categorical(), NORMAL, num_data=40)
    assert_same(saved, load(tmp_path, model=fresh, guide=Wider(fresh)))


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    model, guide = pair()
    with pytest.raises(TypeError, match=r"^model: expected a PyroModule"):
        save(tmp_path, lambda x: x, guide)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^guide: expected one of pyrobnn\.guides"):
        save(tmp_path, model, mlp())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^guide: it is not this model's: .*'net.3.weight' has shape \[9, 5\]"):
        save(tmp_path, model, pair(mlp(9))[1])
    assert files(tmp_path) == set()
    save(tmp_path, model, guide)
    for arguments in ({}, {"net": mlp(), "model": model}):
        with pytest.raises(TypeError, match=r"^net: pass either"):
            load(tmp_path, **arguments)
    with pytest.raises(TypeError, match=r"^net: expected a Module, got dict"):
        load(tmp_path, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^net: it already is a Bayesian network"):
        load(tmp_path, model.net)
    with pytest.raises(TypeError, match=r"^guide: expected a Guide"):
        load(tmp_path, mlp(), guide=mlp())  # type: ignore[arg-type]


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

    with pytest.raises(TypeError, match=r"^state 'net\.net\._extra_state': expected a tensor, got dict"):
        save(tmp_path, *pair(Counting(3, 2)))


# ---------------------------------------------------------------------------------------------- atomic writes

FAILURES = {
    "writing tensors": (safetensors.torch, "save_file", OSError(28, "No space left on device")),
    "writing tensors, in Rust": (safetensors.torch, "save_file", SafetensorError("No space left on device")),
    "flushing": (os, "fsync", OSError(5, "Input/output error")),
    "writing the document": (Path, "write_text", OSError(28, "No space left on device")),
    "renaming": (os, "replace", OSError(1, "Operation not permitted")),
    "Ctrl-C": (os, "replace", KeyboardInterrupt()),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    old, new = pair(), pair()
    save(tmp_path / "run", *old)
    for name in ("notes.txt", "spec.json.backup", "tensors-backup.safetensors"):
        (tmp_path / "run" / name).write_text("mine")
    before = files(tmp_path / "run")
    where, name, error = FAILURES[failure]

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail)
        for path in (tmp_path / "run", tmp_path / "first"):
            expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError
            with pytest.raises(expected, match=None if failure == "Ctrl-C" else "^path: .*untouched"):
                save(path, *new)
    assert files(tmp_path / "run") == before
    assert not (tmp_path / "first").exists()
    assert_same(old, load(tmp_path / "run", mlp()))


@pytest.mark.skipif(os.name != "posix", reason="limits of file size are a POSIX matter")
def test_a_full_disk_and_a_kill_leave_the_old_checkpoint(tmp_path: Path) -> None:
    saved = pair()
    save(tmp_path / "run", *saved)
    before = files(tmp_path / "run")
    script = f"""
        import os, resource, signal
        from tests.test_checkpoint import files, pair, save, Path
        path = Path({str(tmp_path / "run")!r})
        before = files(path)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
        try:
            save(path, *pair())
        except OSError as error:
            assert "untouched" in str(error), error
        else:
            raise AssertionError("the limit did not bite")
        assert files(path) == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.replace = lambda *args: os._exit(9)
        save(path, *pair())
    """
    assert run_python(script).returncode == 9
    assert len(files(tmp_path / "run")) == len(before) + 3, "tensors, a draft and the lock of a process that is gone"
    assert_same(saved, load(tmp_path / "run", mlp()))
    save(tmp_path / "run", *(again := pair()))
    assert len(files(tmp_path / "run")) == len(before) + 1, "the next save tidies up, but for the previous tensors"
    assert_same(again, load(tmp_path / "run", mlp()))


def test_saving_where_a_file_is_fails_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"^path: could not write to .*file"):
        save(tmp_path / "file", *pair())
    assert (tmp_path / "file").read_text() == "mine"


def test_checkpoint_and_training_state_share_a_directory(tmp_path: Path) -> None:
    saved = pair()
    save(tmp_path, *saved)
    save_state(tmp_path, {"epoch": 3})
    save(tmp_path, *saved)
    assert load_state(tmp_path) == {"epoch": 3}
    assert_same(saved, load(tmp_path, mlp()))
    assert len(files(tmp_path)) == 5, "two documents, their tensors, and the tensors of the previous checkpoint"


# -------------------------------------------------------------------------------------------- training states

TENSORS = st.sampled_from(
    [
        torch.tensor(3.25),
        torch.arange(5, dtype=torch.uint8),
        torch.tensor([True, False]),
        torch.tensor([float("nan"), float("-inf"), 1e-45, -0.0]),
        torch.randn(2, 3, dtype=torch.float64),
        torch.randn(2, 3).t(),
        torch.randn(4).bfloat16(),
        torch.zeros(0, 3),
        torch.tensor(2**62),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
    ]
)
KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just("$tensor")
TREES = st.recursive(
    KEYS | st.floats() | TENSORS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS | st.tuples(KEYS), inner),
    max_leaves=15,
)


def same(first: Any, second: Any) -> bool:
    """Equality of kinds and values, bit for bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return (
            first.dtype == second.dtype
            and torch.equal(
                first.resolve_conj().contiguous().reshape(-1).view(torch.uint8),
                second.resolve_conj().contiguous().reshape(-1).view(torch.uint8),
            )
            and first.shape == second.shape
        )
    if isinstance(first, dict):
        return same(list(first.items()), list(second.items()))
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return repr(first) == repr(second)


@settings(max_examples=50)
@given(tree=TREES)
def test_every_structure_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.mktemp("state")
    save_state(path, tree)
    assert same(load_state(path), tree)


def test_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(steps: int, resume: bool) -> tuple[Tensor, list[float]]:
        torch.manual_seed(3)
        net = mlp()
        optimizer = torch.optim.Adam(net.parameters(), amsgrad=True)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
        losses: list[float] = []
        if resume:
            state = load_state(tmp_path)
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            torch.set_rng_state(state["torch"])
            random.setstate(state["python"])
            losses = state["losses"]
        for _ in range(steps):
            optimizer.zero_grad()
            loss = net(torch.randn(6, 3) + random.random()).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        save_state(
            tmp_path,
            {
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "torch": torch.get_rng_state(),
                "python": random.getstate(),
                "losses": losses,
            },
        )
        return torch.cat([p.detach().reshape(-1) for p in net.parameters()]), losses

    random.seed(4)
    straight = run(6, resume=False)
    random.seed(4)
    run(3, resume=False)
    torch.manual_seed(99)
    random.seed(99)
    resumed = run(3, resume=True)
    assert torch.equal(straight[0], resumed[0])
    assert straight[1] == resumed[1]


def test_shared_and_tied_tensors_come_back(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    save_state(tmp_path, {"a": base, "b": base[2:4], "c": base.view(2, 3), "d": nn.Parameter(base)})
    loaded = load_state(tmp_path)
    assert same(loaded, {"a": base, "b": base[2:4], "c": base.view(2, 3), "d": base})
    loaded["a"].zero_()
    assert torch.equal(loaded["b"], base[2:4])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [0, {1, 2}]}, r"^state\.a\.1: expected a dict, list.*got set"),
        ({"optimizer": {"state": {0: object()}}}, r"^state\.optimizer\.state\.0: .*got object"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, r"^state\.a: cannot save .*complex128"),
        ({"a": torch.eye(2).to_sparse()}, r"^state\.a: cannot save .*sparse"),
        ({"a": torch.zeros(2, device="meta")}, r"^state\.a: cannot save .*meta"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(tmp_path: Path, tree: Any, message: str) -> None:
    save_state(tmp_path, {"epoch": 1})
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path, tree)
    assert load_state(tmp_path) == {"epoch": 1}


def test_states_are_refused_like_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^path: .*no pyrobnn training state: .*state\.json"):
        load_state(tmp_path)
    save_state(tmp_path, torch.ones(3))
    document = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(document | {"state": {"$tensor": "other"}}))
    with pytest.raises(CheckpointError, match=r"^path: .*damaged.* the entry 'state.\$tensor' is not what was written"):
        load_state(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps(sealed(document | {"state": {"$tensor": "other"}})))
    with pytest.raises(CheckpointError, match=r"^path: state\.json .*damaged: state.\$tensor: .*got 'other'"):
        load_state(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps(document | {"format_version": 9}))
    with pytest.raises(ValueError, match=r"^path: .*format version 9 .*upgrade"):
        load_state(tmp_path)
