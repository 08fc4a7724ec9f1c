"""Units over executors: results equal serial ones bit for bit; a dead worker loses its unit; a later call resumes."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.core.executors import unit_seeds
from pyrobnn.guides import MAP, DeltaMixture
from pyrobnn.sampling import HMC, SGLD, SamplingDivergedWarning
from pyrobnn.training import fit_members, run_seeds

_NOISE = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 2, generator=_NOISE), torch.randn(24, 1, generator=_NOISE)


def pool(workers: int = 2) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # workers are forks of a process that has imported all
    return ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))


@pytest.fixture(scope="module")
def workers() -> Iterator[Executor]:
    """Two processes for all tests of this module that do not kill one."""
    with pool() as executor:
        yield executor


def built(norm: bool = False) -> pb.SupervisedModel:
    torch.manual_seed(0)
    layers = [nn.Linear(2, 4), nn.BatchNorm1d(4, affine=False)] if norm else [nn.Linear(2, 4)]
    net = nn.Sequential(*layers, nn.Tanh(), nn.Linear(4, 1))
    return pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=24)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), 8, shuffle=True)


def state(guide: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in guide.state_dict().items()}


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


# ---------------------------------------------------------------------------------------------- what runs on one


def members(executor: Executor | None, count: int = 3, **options: Any) -> tuple[dict[str, Tensor], list[Any]]:
    model = built(norm=True)
    guide = DeltaMixture(model, count, strategy="anchored")
    before = state(model)
    histories = fit_members(model, guide, loader(), executor=executor, epochs=2, lr=0.01, seed=5, **options)
    assert_equal(state(model), before)
    return state(guide), [history.elbo for history in histories]


def test_members_are_those_of_the_serial_run_bit_for_bit(workers: Executor) -> None:
    expected, elbos = members(None)
    for executor in (workers, pb.SerialExecutor()):
        found, others = members(executor)
        assert_equal(found, expected)
        assert others == elbos
    assert len({tuple(elbo) for elbo in elbos}) == 3


def test_a_member_is_the_fit_of_an_ensemble_of_one() -> None:
    """The second member, trained by fit with the second seed, alone."""
    model = built()
    guide = DeltaMixture(model, 2)
    alone = guide.only(model, 1)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        seeds = unit_seeds(2)
    fit_members(model, guide, loader(), epochs=3, seed=5)
    pb.fit(model, alone, loader(), epochs=3, seed=seeds[1], progress=False)
    assert_equal(guide.flat_loc[1], alone.flat_loc[0])


def sampled(executor: Executor | None, kernel: Any, **options: Any) -> Tensor:
    chains = pb.sample(
        built(), loader(), kernel=kernel, num_samples=4, warmup_steps=2, num_chains=3, executor=executor, seed=1,
        progress=False, **options,
    )  # fmt: skip
    return torch.cat(list(chains.blocks))


@pytest.mark.parametrize(
    "kernel", [SGLD(1e-4), HMC(step_size=0.005, num_leapfrog=3, adapt_step_size=False, compile=False)]
)
def test_chains_are_those_of_the_serial_run_bit_for_bit(kernel: Any, workers: Executor) -> None:
    expected = sampled(pb.SerialExecutor(), kernel)
    assert expected.shape == (4, 3, 17)
    assert_equal(sampled(workers, kernel), expected)
    assert not torch.equal(expected[:, 0], expected[:, 1])


def test_threads_give_the_same(workers: Executor) -> None:
    with ThreadPoolExecutor(2) as threads:
        assert_equal(sampled(threads, SGLD(1e-4)), sampled(workers, SGLD(1e-4)))


def test_a_chain_that_diverges_is_named(workers: Executor) -> None:
    model = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=24)
    start = {"net.weight": torch.zeros(2, 1, 2), "net.bias": torch.zeros(2, 1)}
    start["net.weight"][1] += 1e17  # which overflows some steps later
    options: dict[str, Any] = {"kernel": SGLD(3e-2), "num_samples": 9, "num_chains": 2, "init": start, "seed": 0}
    with pytest.warns(SamplingDivergedWarning, match=r"in chain 1 after \d draws"):
        chains = pb.sample(model, loader(), executor=workers, progress=False, **options)
    assert chains.num_samples < 9


def infer(model: Any, data: tuple[Tensor, ...], lr: float = 0.1) -> MAP:
    """A point, drawn near the fitted one, from the generators as they are."""
    guide = MAP(model)
    pb.fit(model, guide, [data], epochs=2, lr=lr, progress=False)
    with torch.no_grad():
        guide.flat_loc.add_(torch.randn_like(guide.flat_loc))
    return guide


def calibrated(executor: Executor | None, infer: Any = infer, **options: Any) -> Tensor:
    return pb.sbc(
        built(), infer, 10, inputs=X, num_samples=1, num_bins=2, seed=1, executor=executor, progress=False, **options
    ).ranks


def test_simulations_are_those_of_the_serial_run_bit_for_bit(workers: Executor) -> None:
    expected = calibrated(None)
    assert_equal(calibrated(workers), expected)
    assert 0 < int(expected.sum()) < expected.numel()


def hints(seed: int) -> int:
    warnings.warn("a hint", UserWarning, stacklevel=1)
    return seed


def test_warnings_of_a_worker_are_repeated_here(workers: Executor) -> None:
    with pytest.warns(UserWarning, match=r"a hint \(of the seed 'seed-7'\)"):
        assert run_seeds(hints, [7], executor=workers) == {7: 7}


def score(seed: int) -> dict[str, Any]:
    return {"seed": seed, "mean": float(torch.randn(100).mean()), "draw": torch.randn(3)}


def test_seeds_are_those_of_the_serial_run_bit_for_bit(workers: Executor) -> None:
    expected = run_seeds(score, [4, 0, 9])
    found = run_seeds(score, [4, 0, 9], executor=workers)
    assert list(found) == [4, 0, 9]
    assert_equal(found, expected)


# ---------------------------------------------------------------------------------------------- death and resuming


def fatal(seed: int, path: str) -> float:
    """Ends its process at seed 3, once."""
    marker = Path(path) / "died"
    if seed == 3 and not marker.exists():
        marker.write_text("")
        os._exit(1)
    with (Path(path) / "calls").open("a") as file:
        file.write(f"{seed}\n")
    return float(torch.randn(()))


def test_the_death_of_a_worker_loses_its_unit_and_a_later_call_goes_on(tmp_path: Path) -> None:
    function = functools.partial(fatal, path=str(tmp_path))
    kept = tmp_path / "results"
    with pool(1) as executor, pytest.raises(pb.WorkerLostError, match=r"'seed-3'.*3 others are finished") as caught:
        run_seeds(function, range(5), executor=executor, directory=kept)
    assert caught.value.lost == ("seed-3", "seed-4")
    with pool(1) as executor:
        found = run_seeds(function, range(5), executor=executor, directory=kept, resume=True)
    assert found == run_seeds(functools.partial(fatal, path=str(tmp_path)), range(5))
    calls = (tmp_path / "calls").read_text().split()
    assert calls[:5] == ["0", "1", "2", "3", "4"]


def fails_on(x: Any, path: str) -> Any:
    if (Path(path) / "broken").exists():
        raise ValueError("y: no such file.")
    return x


def test_an_error_names_its_member_and_the_others_are_kept(tmp_path: Path, workers: Executor) -> None:
    expected, elbos = members(None)
    (tmp_path / "broken").write_text("")
    read = functools.partial(fails_on, path=str(tmp_path))
    with pytest.raises(ValueError, match="y: no such file") as caught:
        members(workers, directory=tmp_path / "members", batch=read)
    assert caught.value.__notes__ == [
        f"executor: this was the member 'member-0'. 0 others are finished and kept in {tmp_path / 'members'}: call "
        "again with a new executor and resume=True for the rest."
    ]
    (tmp_path / "broken").unlink()
    found, others = members(workers, directory=tmp_path / "members", resume=True, batch=read)
    assert_equal(found, expected)
    assert others == elbos


@pytest.mark.parametrize("what", [members, functools.partial(sampled, kernel=SGLD(1e-4)), calibrated])
def test_a_resumed_call_computes_what_is_missing_only(what: Any, tmp_path: Path) -> None:
    serial = pb.SerialExecutor()
    expected = what(serial, directory=tmp_path / "run")
    units = sorted(path for path in (tmp_path / "run").iterdir() if path.is_dir())
    for file in units[1].iterdir():
        file.unlink()
    units[1].rmdir()

    class Counting(pb.SerialExecutor):
        count = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.count += 1
            return super().submit(fn, *args, **kwargs)

    counting = Counting()
    assert_equal(what(counting, directory=tmp_path / "run", resume=True), expected)
    assert counting.count == 1


def test_results_of_another_call_are_refused(tmp_path: Path) -> None:
    run_seeds(score, [1], directory=tmp_path)
    with pytest.raises(ValueError, match=r"directory: .* holds results already; pass resume=True"):
        run_seeds(score, [2], directory=tmp_path)
    with pytest.raises(ValueError, match=r"resume: .* were made with function 'score', but now it is 'infer'"):
        run_seeds(infer, [2], directory=tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds something else"):
        members(None, directory=tmp_path, resume=True)
    assert run_seeds(score, [2], directory=tmp_path, resume=True)[2]["seed"] == 2
    assert json.loads((tmp_path / "state.json").read_text())


# ---------------------------------------------------------------------------------------------- bad input


def test_what_is_no_executor_is_refused() -> None:
    for call in (members, functools.partial(sampled, kernel=SGLD(1e-4)), calibrated):
        with pytest.raises(TypeError, match=r"executor: expected a concurrent.futures.Executor, .* got 3"):
            call(3)


def test_functions_that_cannot_be_sent_are_refused(workers: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsendable(*_: Any) -> Any:
        raise ImportError

    monkeypatch.setattr("importlib.import_module", unsendable)
    with pytest.raises(TypeError, match=r"executor: .* cannot be sent .* top level of a module"):
        calibrated(workers, infer=lambda model, data: infer(model, data))


def test_shared_parameters_are_refused() -> None:
    model = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(), dist.Normal(0.0, 1.0), num_data=24)
    with pytest.raises(ValueError, match=r"model: its parameter 'likelihood.noise.log_scale' .* no prior"):
        fit_members(model, DeltaMixture(model, 2), loader())


def test_options_of_the_call_are_not_passed_on() -> None:
    model = built()
    with pytest.raises(TypeError, match="checkpoint: it cannot be passed on"):
        fit_members(model, DeltaMixture(model, 2), loader(), checkpoint="here")
    with pytest.raises(TypeError, match="guide: expected the members of a DeltaMixture, got a MAP"):
        fit_members(model, MAP(model), loader())  # type: ignore[arg-type]


def test_resume_needs_a_directory() -> None:
    with pytest.raises(ValueError, match="resume: nothing to resume from"):
        run_seeds(score, [1], resume=True)
    with pytest.raises(ValueError, match="seeds: one is there twice"):
        run_seeds(score, [1, 1])


# ---------------------------------------------------------------------------------------------- other engines


def test_dask_gives_the_same() -> None:
    distributed = pytest.importorskip("distributed", reason="needs dask's distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        assert_equal(run_seeds(score, [1, 2], executor=client.get_executor()), run_seeds(score, [1, 2]))


class RayExecutor(Executor):
    """That of docs/scaling_out.md."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        import ray

        return ray.remote(function).remote(*args, **kwargs).future()


@pytest.mark.filterwarnings("ignore")  # of ray's
def test_ray_gives_the_same() -> None:
    ray = pytest.importorskip("ray", reason="needs ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert_equal(run_seeds(score, [1, 2], executor=RayExecutor()), run_seeds(score, [1, 2]))
    finally:
        ray.shutdown()
