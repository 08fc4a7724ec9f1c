"""The command line: ``pyrobnn demo``, ``report``, ``describe``, ``check`` and ``--version``.

A mistake in the arguments gives one line on the standard error and exit code 2. ``check`` ends with 1 if a check
failed, so that a script can stop there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import matplotlib
import torch

from pyrobnn import demo
from pyrobnn._version import __version__
from pyrobnn.assessment import report
from pyrobnn.checkpoint import load, specification
from pyrobnn.core import random_state
from pyrobnn.diagnostics import check
from pyrobnn.reporting.description import describe
from pyrobnn.reporting.saved_description import describe_specification

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Those of the process if None.

    Returns:
        The exit code.

    Raises:
        SystemExit: With code 2 if the arguments are wrong, with 0 after ``--help`` and ``--version``.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return _COMMANDS[options.command](options)
    except OSError as error:
        where = "--output: " if "output" in options else ""
        named = f"{error.filename or getattr(options, 'output', options.command)}: {error.strerror or error}"
        print(f"pyrobnn {options.command}: {where}{named}", file=sys.stderr)
        return 2
    except _UsageError as error:
        print(f"pyrobnn {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"pyrobnn {options.command}: interrupted", file=sys.stderr)
        return 130


def _demo(options: argparse.Namespace) -> int:
    matplotlib.use("agg")  # figures go to files, whatever screen there is
    torch.set_num_threads(1)  # the network is so small that threads would only wait for each other
    metrics = demo.run(options.output, options.epochs, options.seed, progress=sys.stderr.isatty())
    if options.json:
        print(json.dumps(metrics, indent=2))
        return 0
    print(
        f"Digits 0-7 are known ({metrics['num_train']} to learn from, {metrics['num_test']} to test on), 8 and 9 are "
        f"unknown ({metrics['num_unknown']}); {metrics['epochs']} epochs, seed {metrics['seed']}.\n"
    )
    print(demo.format_table(metrics["methods"]))
    print("\nAUROC: unknown against known digits, by mutual information (MI) or entropy (H). Step: time of a training")
    print("step, as a multiple of the plain network's. Written:")
    for name in demo.FILES:
        print(f"  {options.output / name}")
    return 0


class _UsageError(Exception):
    """A mistake in what an argument names; the message is one line."""


def _report(options: argparse.Namespace) -> int:
    matplotlib.use("agg")
    if options.output.is_dir():  # which would show only when all is computed
        raise _UsageError(f"--output: {options.output} is a directory; expected a file")
    data = _data(options, "test", "'ood', 'calibration', 'train' and other arguments of pyrobnn.report")
    model, guide = _loaded(options)
    given = {"num_samples": options.samples, "seed": options.seed, "command": shlex.join(["pyrobnn", *sys.argv[1:]])}
    try:
        found = report(model, guide, **{**given, "title": options.title, **data})
    except (ValueError, TypeError) as error:
        raise _UsageError(str(error)) from error
    path = found.write(options.output)
    print(json.dumps(found.values, indent=2) if options.json else f"{found}\nWritten: {path}")
    return 0


def _describe(options: argparse.Namespace) -> int:
    if options.net is not None:
        found = describe(*_loaded(options))
    else:
        try:
            found = describe_specification(specification(options.checkpoint))
        except (OSError, ValueError) as error:
            raise _UsageError(f"CHECKPOINT: {options.checkpoint} cannot be read: {error}") from error
    print(json.dumps({"rows": found.rows, "notes": found.notes}, indent=2) if options.json else str(found))
    return 0


def _check(options: argparse.Namespace) -> int:
    data = _data(options, "train", "'test', on which calibration is then judged,")
    model, guide = _loaded(options)
    try:
        with random_state.local(options.seed):
            found = check(model, guide, data["train"], held_out=data.get("test"), num_samples=options.samples)
    except (ValueError, TypeError) as error:
        raise _UsageError(str(error)) from error
    rows = [{"check": c.name, "result": c.status, "value": c.value, "reason": c.reason} for c in found.checks]
    print(json.dumps(rows, indent=2) if options.json else str(found))
    return int(any(row["result"] == "fail" for row in rows))


def _data(options: argparse.Namespace, needed: str, others: str) -> Mapping[str, Any]:
    """The loaders that the function of ``--data`` returns."""
    data = _called("--data", options.data)
    if not isinstance(data, Mapping) or needed not in data:
        what = f"a mapping without it, of {', '.join(map(str, data))}" if isinstance(data, Mapping) else repr(data)
        raise _UsageError(
            f"--data: {options.data} must return a mapping of loaders with {needed!r} among them ({others} may be "
            f"there, too), got {what}"
        )
    return data


def _loaded(options: argparse.Namespace) -> tuple[Any, Any]:
    """Model and guide of the checkpoint."""
    net = _called("--net", options.net)
    if not isinstance(net, torch.nn.Module):
        raise _UsageError(f"--net: {options.net} must return the plain network, a torch module, got {net!r}")
    try:
        return load(options.checkpoint, net=net)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _UsageError(f"CHECKPOINT: {options.checkpoint} cannot be loaded: {error}") from error


def _called(argument: str, name: str) -> Any:
    """What the function of a dotted name returns."""
    sys.path.insert(0, "")  # modules of the folder that the command is called in
    module, _, function = name.partition(":")
    if not module or not function:
        raise _UsageError(f"{argument}: expected a function as package.module:function, got {name!r}")
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise _UsageError(f"{argument}: {name}: {error}") from error
    if not callable(found):
        raise _UsageError(f"{argument}: {name} is a {type(found).__name__}, no function")
    return found()


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "report": _report,
    "describe": _describe,
    "check": _check,
}


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(prog="pyrobnn", description="Bayesian neural networks on Pyro.")
    parser.add_argument("--version", action="version", version=f"pyrobnn {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands")
    text = "Fits posteriors of a small network to real handwritten digits (0-7) and evaluates them on 8 and 9."
    command = commands.add_parser(
        "demo",
        help="train on real digits, compare posteriors, write a report",
        description=text,
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        help=f"folder for {', '.join(demo.FILES)} (default: %(default)s)",
    )
    command.add_argument(
        "--epochs", type=_epochs, default=50, help="passes over the training data (default: %(default)s)"
    )
    command.add_argument(
        "--seed", type=_seed, default=0, help="fixes everything but the timings (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print the metrics as JSON, and nothing else")
    _add_report(commands)
    _add_describe(commands)
    _add_check(commands)
    return parser


def _add_report(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="assess a checkpoint on data of your own, write a page",
        description="Assesses a model and its posterior, saved by pyrobnn.save, on held-out data.",
    )
    _add_checkpoint(command, needs_net=True)
    command.add_argument(
        "--data",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function that returns a mapping of loaders: 'test', and if wanted 'ood', 'calibration', 'train', as for "
        "pyrobnn.report",
    )
    command.add_argument(
        "--output", type=Path, default=Path("report.html"), help="the page to write (default: %(default)s)"
    )
    command.add_argument("--samples", type=_epochs, default=100, help="posterior draws (default: %(default)s)")
    command.add_argument("--seed", type=_seed, default=0, help="fixes draws and resamples (default: %(default)s)")
    command.add_argument("--title", default="Model report", help="heading of the page (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="print all numbers as JSON, and nothing else")


def _add_describe(commands: Any) -> None:
    command = commands.add_parser(
        "describe",
        help="list the parameters of a checkpoint with their priors and posteriors",
        description="Lists what a checkpoint holds; with --net also families of factors and how the KL is computed.",
    )
    _add_checkpoint(command, needs_net=False)
    command.add_argument("--json", action="store_true", help="print the table as JSON, and nothing else")


def _add_check(commands: Any) -> None:
    command = commands.add_parser(
        "check",
        help="ask whether the posterior of a checkpoint can be trusted",
        description="Runs the checks of pyrobnn.check. Exit code 1 if one of them failed; warnings leave it at 0.",
    )
    _add_checkpoint(command, needs_net=True)
    command.add_argument(
        "--data",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function that returns a mapping of loaders: 'train', and if wanted 'test'",
    )
    command.add_argument("--samples", type=_epochs, default=200, help="posterior draws (default: %(default)s)")
    command.add_argument("--seed", type=_seed, default=0, help="fixes the draws (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="print the checks as JSON, and nothing else")


def _add_checkpoint(command: argparse.ArgumentParser, needs_net: bool) -> None:
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that pyrobnn.save wrote")
    command.add_argument(
        "--net", required=needs_net, metavar="MODULE:FUNCTION", help="function that returns the plain network"
    )


def _epochs(text: str) -> int:
    if (epochs := _whole_number(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return epochs


def _seed(text: str) -> int:
    if not 0 <= (seed := _whole_number(text)) < 2**32:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2**32 - 1, got {text}")
    return seed


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
