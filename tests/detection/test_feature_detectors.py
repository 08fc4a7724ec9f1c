"""Detectors of features: by hand, streamed against at once, against pytorch-ood, saved and loaded, bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyrobnn import detection
from pyrobnn.detection import NetworkOutputs
from pyrobnn.detection.gaussian_features import ClassMoments
from tests.detection.networks import CLASSES, DRAWS, FEATURES, data, made_up, posterior

TRAIN, NEW = made_up(90), made_up(40, seed=1)
MAKE: dict[str, Callable[..., detection.Detector]] = {
    "mahalanobis": lambda **o: detection.Mahalanobis(1e-9, **o),
    "relative_mahalanobis": lambda **o: detection.RelativeMahalanobis(1e-9, **o),
    "knn": lambda **o: detection.KNN(k=7, **o),
    "vim": lambda **o: detection.ViM(dim=4, **o),
}


def parts(outputs: NetworkOutputs, *sizes: int) -> list[NetworkOutputs]:
    assert outputs.features is not None and outputs.targets is not None
    columns = zip(
        outputs.logits.split(sizes, 1), outputs.features.split(sizes, 1), outputs.targets.split(sizes), strict=True
    )
    return [replace(outputs, logits=s, features=f, targets=y) for s, f, y in columns]


def expected(
    name: str, train: Tensor, new: Tensor, y: Tensor, w: Tensor, b: Tensor, logits: tuple[Tensor, Tensor]
) -> Tensor:
    """The score of one draw, in plain steps."""
    if name == "knn":
        unit, known = new / new.norm(dim=1, keepdim=True), train / train.norm(dim=1, keepdim=True)
        return torch.stack([(known - row).norm(dim=1).sort().values[6] for row in unit])
    if name == "vim":
        u = -torch.linalg.pinv(w) @ b
        x = train - u
        residual = torch.linalg.eigh(x.T @ x).eigenvectors[:, : FEATURES - 4]
        alpha = logits[0].amax(1).mean() / (x @ residual).norm(dim=1).mean()
        return alpha * ((new - u) @ residual).norm(dim=1) - logits[1].logsumexp(1)
    means = torch.stack([train[y == c].mean(0) for c in range(CLASSES)])
    covariance = torch.cov((train - means[y]).T, correction=0)
    found = torch.stack([((new - m) @ covariance.inverse() * (new - m)).sum(1) for m in means]).amin(0)
    if name == "mahalanobis":
        return found
    d = new - train.mean(0)
    return found - (d @ torch.cov(train.T, correction=0).inverse() * d).sum(1)


def by_loop(name: str) -> list[Tensor]:
    assert TRAIN.features is not None and NEW.features is not None
    assert TRAIN.weight is not None and TRAIN.bias is not None and TRAIN.targets is not None
    f, g, w, b = TRAIN.features, NEW.features, TRAIN.weight, TRAIN.bias
    s, t, y = TRAIN.logits, NEW.logits, TRAIN.targets
    found = [expected(name, f[k], g[k], y, w[k], b[k], (s[k], t[k])) for k in range(DRAWS)]
    return [*found, expected(name, f.mean(0), g.mean(0), y, w.mean(0), b.mean(0), (s.mean(0), t.mean(0)))]


@pytest.mark.parametrize("name", MAKE)
def test_forms_are_those_of_a_loop_over_draws(name: str) -> None:
    *by_draw, averaged = by_loop(name)
    detector = MAKE[name]().fit(TRAIN)
    assert detector.name == name
    draws = torch.stack(by_draw)
    assert torch.allclose(detector(NEW), averaged, rtol=1e-6, atol=1e-6)
    assert torch.allclose(detector(NEW, "mean"), draws.mean(0), rtol=1e-6, atol=1e-6)
    assert torch.allclose(detector(NEW, "variance"), draws.var(0, correction=0), rtol=1e-5)
    assert torch.allclose(detector(parts(NEW, 15, 25), "mean"), detector(NEW, "mean"), rtol=1e-9)
    only = MAKE[name](forms=("averaged",)).fit(TRAIN)
    assert torch.allclose(only(NEW), averaged, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=f"form: {name} has 'averaged' only"):
        only(NEW, "mean")
    each = MAKE[name](forms=("variance",)).fit(TRAIN)
    assert torch.equal(each(NEW, "variance"), detector(NEW, "variance"))


@pytest.mark.parametrize("name", MAKE)
def test_streamed_equals_at_once_and_a_state_dict_brings_it_back(name: str) -> None:
    at_once = MAKE[name]().fit(TRAIN)
    streamed = MAKE[name]().fit(iter(parts(TRAIN, 1, 50, 39)))
    assert torch.allclose(streamed(NEW, "mean"), at_once(NEW, "mean"), rtol=1e-8)
    loaded = MAKE[name]()
    assert not loaded.is_fitted
    loaded.load_state_dict(at_once.state_dict())
    assert loaded.is_fitted
    assert torch.equal(loaded(NEW), at_once(NEW))
    assert "num_data=90" in repr(loaded)


def test_streamed_moments_keep_their_digits_far_from_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 400, 5, generator=generator, dtype=torch.float64) + 1e6
    y = torch.arange(400) // 150  # batches without some of the classes
    moments = ClassMoments(2, 4, 5, x.device)
    for part, labels in zip(x.split(37, 1), y.split(37), strict=True):
        moments.add(part, labels)
    for s in range(2):
        means = torch.stack([x[s, y == c].mean(0) for c in range(3)])
        centered = x[s] - means[y]
        assert torch.allclose(moments.scatter[s], centered.T @ centered, rtol=1e-7, atol=1e-6)
        around = x[s] - x[s].mean(0)
        assert torch.allclose(moments.total_scatter[s], around.T @ around, rtol=1e-7, atol=1e-6)
    assert moments.count.tolist() == [150, 150, 100, 0]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_distances_to_neighbors_keep_their_digits(offset: float, normalize: bool) -> None:
    """Against the loop over pairs, far from zero, too; training rows are their own nearest."""
    train, new = (made_up(rows, seed=seed) for rows, seed in ((90, 1), (20, 2)))
    train, new = (replace(one, features=one.features + offset) for one in (train, new))  # type: ignore[operator]
    knn = detection.KNN(1, normalize=normalize, forms=("averaged",)).fit(train)
    assert train.features is not None and new.features is not None
    known, found = train.features.mean(0), new.features.mean(0)
    if normalize:
        known, found = (rows / rows.norm(dim=-1, keepdim=True) for rows in (known, found))
    expected = (found[:, None] - known).norm(dim=-1).amin(1).to(new.logits.dtype)
    torch.testing.assert_close(knn(new), expected, rtol=1e-5, atol=0.0)
    assert bool((knn(train) == 0).all())


def test_numbers_of_pytorch_ood() -> None:
    peer = pytest.importorskip("pytorch_ood.detector", reason="pytorch-ood is not installed")
    assert TRAIN.features is not None and NEW.features is not None
    assert TRAIN.weight is not None and TRAIN.bias is not None
    train, new, y = TRAIN.features[0].float(), NEW.features[0].float(), TRAIN.targets
    weight, bias = TRAIN.weight[0], TRAIN.bias[0]

    def ours(name: str) -> Tensor:
        first = [replace(o, logits=o.logits[:1], features=o.features[:1]) for o in (TRAIN, NEW)]
        fitted = replace(first[0], weight=TRAIN.weight[:1], bias=TRAIN.bias[:1])
        return MAKE[name]().fit(fitted)(first[1]).float()

    scatter = peer.Mahalanobis(None).fit_features(train, y).predict_features(new)
    assert torch.allclose(ours("mahalanobis") / (2 * 90), scatter, rtol=1e-4)  # theirs: half, and no division by N
    relative = peer.RMD(None).fit_features(train, y).predict_features(new)
    assert torch.allclose(ours("relative_mahalanobis") / 90, relative, rtol=1e-4, atol=1e-6)
    nearest = peer.KNN(None, k=7).fit_features(train, y).predict_features(new)
    assert torch.allclose(ours("knn"), nearest.float(), atol=1e-4)
    virtual = peer.ViM(None, d=4, w=weight, b=bias).fit_features(train, y).predict_features(new)
    assert torch.allclose(ours("vim"), virtual, rtol=1e-4, atol=1e-4)


def test_absent_classes_and_unlabeled_rows() -> None:
    assert TRAIN.targets is not None
    keep = TRAIN.targets != 1
    unseen = replace(TRAIN, targets=torch.where(keep, TRAIN.targets, -1))
    rest = replace(TRAIN, logits=TRAIN.logits[:, keep], features=TRAIN.features[:, keep], targets=TRAIN.targets[keep])
    one, other = detection.Mahalanobis().fit(unseen), detection.Mahalanobis().fit(rest)
    assert torch.allclose(one(NEW), other(NEW))
    assert bool(one(NEW).isfinite().all())
    assert int(one.num_data) == 60


def test_bad_use_is_refused() -> None:
    for name, make in MAKE.items():
        with pytest.raises(RuntimeError, match="it is not fitted yet"):
            make()(NEW)
        with pytest.raises(ValueError, match="outputs: they have no features; pass features=True"):
            make().fit(replace(TRAIN, features=None))
        with pytest.raises(ValueError, match="outputs: there are no"):
            make().fit([]) if "maha" in name else make().fit(replace(TRAIN, features=None) for _ in ()), name
        with pytest.raises(
            ValueError, match=r"outputs: .* was fitted under 4 draws of seed 0, but these .* 4 .* seed 2"
        ):
            make().fit(TRAIN)(replace(NEW, seed=2))
        with pytest.raises(ValueError, match="forms: expected some of"):
            make(forms=("all",))
    for kind in (detection.Mahalanobis, detection.RelativeMahalanobis):
        with pytest.raises(ValueError, match=rf"outputs: {kind.__name__} needs the classes of training data"):
            kind().fit(replace(TRAIN, targets=None))
    with pytest.raises(ValueError, match="outputs: Mahalanobis needs one integer label for each of 90 rows"):
        detection.Mahalanobis().fit(replace(TRAIN, targets=TRAIN.targets.double()))
    with pytest.raises(ValueError, match="outputs: expected labels below 3, got 7"):
        detection.Mahalanobis().fit(replace(TRAIN, targets=TRAIN.targets + 5))
    with pytest.raises(ValueError, match="features that do not vary within classes"):
        detection.Mahalanobis().fit(replace(TRAIN, features=torch.ones_like(TRAIN.features)))
    with pytest.raises(ValueError, match="k: the 91-th nearest of 90 training rows was asked for"):
        detection.KNN(91).fit(TRAIN)
    with pytest.raises(ValueError, match=r"max_bytes=1000 for the 5 fits .* pass forms=\('averaged',\)"):
        detection.KNN(5, max_bytes=1000).fit(TRAIN)
    with pytest.raises(ValueError, match="dim: expected a dimension below that of the 6 features, got 6"):
        detection.ViM(6).fit(TRAIN)
    with pytest.raises(ValueError, match="outputs: ViM needs outputs that are the last layer's weight matrix"):
        detection.ViM().fit(replace(TRAIN, weight=None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MAKE)
def test_a_network_in_half_precision_is_scored_as_one_in_single_precision(name: str, dtype: torch.dtype) -> None:
    """With the same weights, rounded; bfloat16 has eight bits, and outputs are rounded twice."""
    model, guide = posterior()
    draws = {site: value.to(dtype) for site, value in guide.sample(DRAWS).items()}
    single = {site: value.float() for site, value in draws.items()}
    (train, y), (new, _) = data(), data(30, seed=1)
    found = {}
    for kind, given in ((torch.float32, single), (dtype, draws)):
        model = model.to(kind)
        loader = [(train.to(kind), y)]
        detector = MAKE[name]().fit(detection.network_outputs(model, given, loader, DRAWS, features=True))
        found[kind] = detector(detection.network_outputs(model, given, new.to(kind), DRAWS, features=True))
    spread = float(found[torch.float32].std())
    assert found[dtype].dtype == torch.float32
    assert float((found[dtype] - found[torch.float32]).abs().mean()) < 0.1 * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_that_are_no_product_of_weights_and_features_are_refused_in_any_precision(dtype: torch.dtype) -> None:
    model, guide = posterior()
    draws = {site: value.to(dtype) for site, value in guide.sample(DRAWS).items()}
    net = model.net.network
    net.append(torch.nn.Softplus())
    outputs = detection.network_outputs(model.to(dtype), draws, data()[0].to(dtype), DRAWS, features=True)
    with pytest.raises(ValueError, match=r"^outputs: ViM needs outputs that are the last layer's weight matrix"):
        detection.ViM(dim=4).fit(outputs)
