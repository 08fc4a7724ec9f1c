"""Data-parallel training: the gradient of the union batch, whatever the number of processes; errors reach all."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import pyrobnn as pb
from pyrobnn.core.ranks import Ranks
from pyrobnn.guides import MAP, DeltaMixture, LowRankNormal, MeanField
from pyrobnn.objectives import ELBO
from pyrobnn.objectives.mean_teacher import MeanTeacher
from tests.training.processes import Failed, on_ranks

_NOISE = torch.Generator().manual_seed(0)
N = 45  # batches of 10 leave 5, of which one process gets 3 and the other 2
X = torch.randn(N, 3, generator=_NOISE)
Y = X @ torch.randn(3, 1, generator=_NOISE) + 0.3 * torch.randn(N, 1, generator=_NOISE)
DATA = TensorDataset(X, Y)
GUIDES = {
    "MeanField": MeanField,
    "MAP": MAP,
    "LowRankNormal": lambda model: LowRankNormal(model, 2),
    "DeltaMixture": lambda model: DeltaMixture(model, 3),
}


def built(norm: bool = False, learned: bool = False, num_data: int = N, seed: int = 0) -> pb.SupervisedModel:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Tanh(), nn.Linear(8, 1))
    likelihood = pb.likelihoods.Normal() if learned else pb.likelihoods.Normal(0.3)
    return pb.SupervisedModel(net, likelihood, dist.Normal(0.0, 1.0), num_data=num_data)


def loader(size: int = 10) -> DataLoader[Any]:
    return DataLoader(DATA, size, shuffle=True)


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def state(*modules: nn.Module) -> dict[str, Tensor]:
    return {f"{i}.{n}": v.clone() for i, module in enumerate(modules) for n, v in module.state_dict().items()}


def trained(guide: str = "MeanField", draws: str = "same_draws", **options: Any) -> tuple[dict[str, Tensor], Any]:
    """Each process begins with weights and a random state of its own."""
    model = built(options.pop("norm", False), options.pop("learned", False), seed=rank())
    posterior = GUIDES[guide](model)
    torch.manual_seed(100 + rank())
    options = {"epochs": 3, "lr": 0.01, "seed": 1, "progress": False} | options
    history = pb.fit(model, posterior, options.pop("loader", loader()), data_parallel=draws, **options)
    numbers = {name: value for name, value in history.to_dict().items() if name not in ("seconds", "divergence_name")}
    return state(model, posterior), numbers


def assert_same(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Tensors are close, all else is equal."""
    if isinstance(found, Tensor):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    elif isinstance(found, dict | tuple):
        keys = found if isinstance(found, dict) else range(len(found))
        assert len(found) == len(expected)
        for key in keys:
            assert_same(found[key], expected[key], tolerance)
    else:
        assert found == expected


# -------------------------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("guide", GUIDES)
def test_two_processes_train_as_one_does_with_the_same_draws(guide: str, tmp_path: Path) -> None:
    """Fifteen steps of SGD, in which an error of the gradient stays an error: 45 rows, the last batch has 5."""
    options = {"optimizer": torch.optim.SGD, "lr": 0.02, "validation": [(X[:9], Y[:9]), (X[9:], Y[9:])]}
    first, second = on_ranks(_trained, tmp_path, guide, options)
    expected, history = trained(guide, **options)
    assert_same(first, second)
    assert_same(first[0], expected, 1e-6)
    for name in ("elbo", "log_likelihood", "kl", "validation"):
        assert first[1][name] == pytest.approx(history[name], rel=1e-5)
    assert first[1]["steps"] == history["steps"] == 15


def _trained(guide: str, options: dict[str, Any]) -> Any:
    return trained(guide, **options)


class Keeping(torch.optim.SGD):
    """Moves nothing, and keeps the gradients of its last step."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.kept = torch.cat([p.grad.reshape(-1) for p in self.param_groups[0]["params"] if p.grad is not None])


def _gradient(draws: str, seeds: int) -> Tensor:
    """Gradients ``[seeds, d]`` of one step on all data."""
    found = []
    for seed in range(seeds):
        model = built()
        guide = MeanField(model, init_scale=0.3)
        optimizer = Keeping(guide.parameters(), lr=0.0)
        whole = DataLoader(DATA, N)
        options: dict[str, Any] = {"optimizer": optimizer, "epochs": 1, "seed": seed, "progress": False}
        pb.fit(model, guide, whole, data_parallel=draws, **options)
        found.append(optimizer.kept)
    return torch.stack(found)


@pytest.mark.statistical
def test_own_draws_have_the_expectation_of_one_process_and_half_the_variance(tmp_path: Path) -> None:
    """60 steps of two processes and of one; the largest z-score of 82 numbers stays below 4."""
    two = on_ranks(_gradient, tmp_path, "own_draws", 60)
    one = _gradient("own_draws", 60)
    assert torch.equal(*two)
    difference = two[0].mean(0) - one.mean(0)
    error = ((two[0].var(0) + one.var(0)) / 60).sqrt()
    assert float((difference / error).abs().max()) < 4.0
    assert float(two[0].var(0).sum() / one.var(0).sum()) == pytest.approx(0.5, abs=0.15)


def test_own_draws_differ_between_processes(tmp_path: Path) -> None:
    first, second = on_ranks(_draws, tmp_path)
    assert_same(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def _draws() -> tuple[Tensor, Tensor]:
    model = built()
    seen: list[Tensor] = []
    hook = model.net.network[0].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.detach().clone()))
    guide = MeanField(model)
    pb.fit(model, guide, loader(), epochs=1, seed=0, data_parallel="own_draws", progress=False)
    hook.remove()
    return guide.flat_loc.detach(), seen[-1]


# ------------------------------------------------------------------------------------------------- data and state


def test_each_row_is_read_once_and_the_order_is_that_of_one_process(tmp_path: Path) -> None:
    first, second = on_ranks(_rows, tmp_path)
    alone = _rows()
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in alone]
    assert sorted(row for batch in alone[:5] for row in batch) == list(range(N))
    assert alone[:5] != alone[5:]


def _rows() -> list[list[int]]:
    seen: list[list[int]] = []
    data = DataLoader(TensorDataset(X, Y, torch.arange(N)), 10, shuffle=True)

    def read(raw: Any) -> Any:
        seen.append(raw[2].tolist())
        return raw[:2]

    model = built(seed=rank())
    options: dict[str, Any] = {"epochs": 2, "seed": 0, "progress": False, "batch": read}
    pb.fit(model, MAP(model), data, data_parallel="own_draws", **options)
    return seen


def test_batches_of_its_own_share_are_taken_as_they_are(tmp_path: Path) -> None:
    """One process has 30 rows in three batches, the other 15 in one: it waits at the end of the epoch."""
    first, second = on_ranks(_own_share, tmp_path)
    assert_same(first, second)
    assert first[1]["steps"] == 2 * 3


def _own_share() -> Any:
    own = [(X[:10], Y[:10]), (X[10:20], Y[10:20]), (X[20:30], Y[20:30])] if rank() == 0 else [(X[30:], Y[30:])]
    return trained(loader=own, epochs=2)


def test_a_distributed_sampler_is_taken_as_it_is(tmp_path: Path) -> None:
    first, second = on_ranks(_sampled, tmp_path)
    assert_same(first[:2], second[:2])
    assert first[2] == second[2] == 1  # the number of the last epoch


def _sampled() -> Any:
    sampler: DistributedSampler[Any] = DistributedSampler(DATA)
    found = trained(loader=DataLoader(DATA, 5, sampler=sampler), epochs=2)
    return *found, sampler.epoch


def test_batch_norm_and_a_learned_scale_are_the_same_in_all_processes(tmp_path: Path) -> None:
    """Running means of two halves, averaged, are those of the whole while weights stand still."""
    options = {"norm": True, "learned": True, "lr": 0.0, "epochs": 1, "loader": DataLoader(DATA, 44, drop_last=True)}
    first, second = on_ranks(_trained, tmp_path, "MAP", options)
    expected, _ = trained("MAP", **options)
    assert_same(first, second)
    name = "0.net.net.1.running_mean"
    assert float(expected[name].abs().max()) > 1e-3
    assert_same(first[0][name], expected[name], 1e-6)
    assert int(first[0]["0.net.net.1.num_batches_tracked"]) == 1


def test_members_have_statistics_of_their_own(tmp_path: Path) -> None:
    first, second = on_ranks(_trained, tmp_path, "DeltaMixture", {"norm": True, "learned": True})
    assert_same(first, second)


def test_early_stopping_and_callbacks_stop_all_processes(tmp_path: Path) -> None:
    first, second = on_ranks(_stopped, tmp_path)
    assert first == second == ("patience", "callback", 2)


def _stopped() -> Any:
    early = trained("MAP", epochs=40, early_stopping=True, patience=1, loader=DataLoader(DATA, 10), lr=0.5)[1]
    called = trained("MAP", epochs=9, callbacks=[lambda h: rank() == 1 and h.epochs == 2])[1]
    return early["stopped"], called["stopped"], len(called["elbo"])


# ------------------------------------------------------------------------------------------------- checkpoints


def test_a_run_is_resumed_on_the_same_and_on_another_number_of_processes(tmp_path: Path) -> None:
    whole = on_ranks(_trained, tmp_path / "a", "MeanField", {"epochs": 4})
    for name, size in (("two", 2), ("one", 1)):
        kept = {"checkpoint": tmp_path / name}
        on_ranks(_trained, tmp_path / f"{name}-begin", "MeanField", kept | {"epochs": 2})
        options = kept | {"epochs": 4, "resume": True, "seed": None}
        found = on_ranks(_trained, tmp_path / f"{name}-end", "MeanField", options, size=size)
        assert_same(found[0][0], whole[0][0], 0.0 if size == 2 else 2e-6)
        assert len(found[0][1]["elbo"]) == 4
    assert {file.suffix for file in (tmp_path / "two").iterdir() if file.is_file()} <= {".json", ".safetensors"}


def test_own_draws_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole = on_ranks(_own, tmp_path / "a", {"epochs": 4})
    kept = {"checkpoint": tmp_path / "kept"}
    on_ranks(_own, tmp_path / "b", kept | {"epochs": 2})
    found = on_ranks(_own, tmp_path / "c", kept | {"epochs": 4, "resume": True})
    assert_same(found[1], whole[1])


def _own(options: dict[str, Any]) -> Any:
    return trained(draws="own_draws", **options)[0]


def test_a_killed_process_ends_the_others_with_an_error_and_the_checkpoint_is_usable(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    first, _ = on_ranks(_killed, tmp_path / "a", kept, dies=1)
    assert isinstance(first, Failed)
    assert first.args[0].startswith("RankLostError: data_parallel: a process of the 2 died, or no longer answers (")
    assert f"checkpoint: {kept} holds the state after epoch 2; go on with resume=True." in first.args[0]
    found, _ = on_ranks(_trained, tmp_path / "b", "MeanField", {"epochs": 4, "checkpoint": kept, "resume": True})
    whole = trained(epochs=4)
    assert_same(found[0], whole[0], 2e-6)


def _killed(kept: Path) -> Any:
    def read(raw: Any) -> Any:
        nonlocal count
        count += 1
        if rank() == 1 and count == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return raw

    count = 0
    return trained(epochs=4, checkpoint=kept, batch=read)


# ------------------------------------------------------------------------------------------------------ errors


def test_an_error_of_one_process_is_raised_by_all(tmp_path: Path) -> None:
    first, second = on_ranks(_fails, tmp_path)
    assert second.args[0] == "OSError: no such row"
    assert first.args[0].startswith(
        "RankFailedError: data_parallel: process 1 of 2 failed in epoch 1, at step 3 of it: OSError: no such row"
    )


def _fails() -> Any:
    def read(raw: Any) -> Any:
        nonlocal count
        count += 1
        if rank() == 1 and count == 3:
            raise OSError("no such row")
        return raw

    count = 0
    return trained(batch=read)


WRONG = {
    "N is that of a share": r"loader: its data set is another one in each process, though each has as many",
    "N is not that of all": r"num_data: the model was built for 44 data, but the loaders of 2 processes have 45 rows",
    "the whole set on each": r"num_data: the model was built for 45 data, but the loaders of 2 processes have 90 rows",
    "models differ": r"model: it, or its guide, or num_data, is another one in each process",
    "batches are too small": r"loader: batches of 1 rows cannot be shared by 2 processes",
    "orders differ": r"loader: its sampler yields other rows in each process; give it a generator",
    "replicas": r"loader: its DistributedSampler has num_replicas=3, but there are 2 processes",
    "remembers": r"data_parallel: the term 'mean_teacher' remembers earlier steps",
    "not asked for": r"fit: .* has 2 processes, which it does not synchronize.*pass data_parallel='own_draws'",
}


def test_bad_input_is_refused_by_all_processes(tmp_path: Path) -> None:
    for each in on_ranks(_wrong, tmp_path):
        assert list(each) == list(WRONG)
        for name, said in each.items():
            with pytest.raises(Failed, match=WRONG[name]):
                raise Failed(said)


def _wrong() -> dict[str, str]:
    own = range(rank(), N - 1, 2)
    half = Subset(DATA, list(own))
    generator = torch.Generator().manual_seed(rank())
    share = [(X[rank() :: 2], Y[rank() :: 2])]
    cases: dict[str, tuple[pb.SupervisedModel, Any, Any]] = {
        "N is that of a share": (built(num_data=22), DataLoader(half, 10), None),
        "N is not that of all": (built(num_data=44), share, None),
        "the whole set on each": (built(), [(X, Y)], None),
        "models differ": (built(norm=rank() == 1), loader(), None),
        "batches are too small": (built(), loader(1), None),
        "orders differ": (built(), DataLoader(DATA, 10, shuffle=True, generator=generator), None),
        "replicas": (built(), DataLoader(DATA, 10, sampler=DistributedSampler(DATA, 3, rank())), None),
        "remembers": (built(), loader(), ELBO(terms=[MeanTeacher([X], lambda x: x)])),
    }
    found = {}
    for name, (model, data, elbo) in cases.items():
        try:
            pb.fit(model, MeanField(model), data, epochs=1, elbo=elbo, data_parallel="own_draws", progress=False)
        except (TypeError, ValueError) as error:
            found[name] = str(error)
    try:
        pb.fit(built(), MeanField(built()), loader(), epochs=1, progress=False)
    except RuntimeError as error:
        found["not asked for"] = str(error)
    return found


def test_arguments_are_checked() -> None:
    model = built()
    with pytest.raises(ValueError, match="data_parallel: expected 'own_draws', 'same_draws' or None, got 'both'"):
        pb.fit(model, MeanField(model), loader(), epochs=1, data_parallel="both")  # type: ignore[arg-type]
    with pb.independent_processes(), pytest.raises(ValueError, match="data_parallel: the processes were declared"):
        pb.fit(model, MeanField(model), loader(), epochs=1, data_parallel="own_draws")


def test_one_process_needs_no_group() -> None:
    ranks = Ranks(torch.device("cpu"))
    assert (ranks.size, ranks.rank) == (1, 0)
    assert (ranks.sum([2.0]), ranks.gather("a"), ranks.first(lambda: 3)) == ([2.0], ["a"], 3)
