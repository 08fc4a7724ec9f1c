"""From a program to torch's graph of it, with sizes of batches left open."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from pyrobnn.core.attention import attention_as_trained, attention_under_vmap
from pyrobnn.core.first_line import first_line
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.pyro_compat import transforms_left
from pyrobnn.core.trees import leaves, map_leaves
from pyrobnn.exporting.errors import ExportError, Watch, operator_in
from pyrobnn.exporting.program import Program

__all__ = ["input_names", "running", "traced"]


def traced(program: Program, x: Any, dynamic_dims: Sequence[int]) -> ExportedProgram:
    """The graph of a program.

    Args:
        program: The program.
        x: Example inputs of two rows at least.
        dynamic_dims: Dimensions of inputs whose size is left open.

    Raises:
        ExportError: If torch cannot trace it; the message names the module, and the operator if torch does.
    """
    watch = Watch(program.network)
    try:
        with running(), watch.on():
            module = _differentiated(program, x) if program.has_derivatives else program
            sizes = _sizes(x, dynamic_dims)
            with _quiet():
                found = torch.export.export(module, (x,), dynamic_shapes=(sizes,), strict=False)
            return _deduplicated(_without_assertions(found).run_decompositions({}))
    except ExportError:
        raise
    except Exception as error:  # torch raises all kinds
        operator = operator_in(error)
        named = "" if operator is None else f" at the operator {operator}"
        raise ExportError(
            f"model: torch cannot export {watch.place}{named} ({type(error).__name__}: {first_line(error)}). "
            "A program has no decisions that depend on values of tensors, and takes only the operators of its format; "
            f"{program.advice}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Where torch cannot trace, it prints the whole graph and logs hints for its own users; the error is enough."""
    loggers = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _without_assertions(graph: ExportedProgram) -> ExportedProgram:
    """Without assertions about dtypes, which vmap has no rule for."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)
    graph.graph_module.recompile()
    return graph


def _deduplicated(graph: ExportedProgram) -> ExportedProgram:
    """What is the same for several draws is computed once; operators of decomposed graphs change nothing in place."""
    returned = {node for node in graph.graph.nodes if any(user.op == "output" for user in node.users)}
    known: dict[tuple[Any, str], Any] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        first = known.setdefault((node.target, repr((node.args, sorted(node.kwargs.items())))), node)
        if first is not node and node not in returned:
            node.replace_all_uses_with(first)
            graph.graph.erase_node(node)
    graph.graph_module.recompile()
    return graph


@contextmanager
def running() -> Iterator[None]:
    """How programs run while they are traced: without gradients and checks, with attention that vmap knows."""
    with ExitStack() as stack:
        stack.enter_context(transforms_left())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "The tensor attribute")  # distributions that priors of the copy keep
        stack.enter_context(torch.no_grad())
        stack.enter_context(validation_enabled(False))
        stack.enter_context(attention_as_trained())
        stack.enter_context(attention_under_vmap(torch.device("cpu")))
        yield


def input_names(x: Any) -> tuple[str, ...]:
    """Names of the tensors among the inputs: their keys, or ``x``, or ``x_0``, ``x_1`` and so on."""
    if isinstance(x, Tensor):
        return ("x",)
    if isinstance(x, dict) and all(isinstance(value, Tensor) for value in x.values()):
        return tuple(map(str, x))
    return tuple(f"x_{index}" for index, leaf in enumerate(leaves(x)) if isinstance(leaf, Tensor))


def _sizes(x: Any, dims: Sequence[int]) -> Any:
    """For each tensor of the inputs, which sizes are open: equal ones of one dimension are one."""
    known: dict[tuple[int, int], Any] = {}

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return {
            dim: known.setdefault((dim, leaf.shape[dim]), Dim("batch" if not dim else f"size_{dim}_{len(known)}"))
            for dim in dims
            if dim < leaf.dim()
        }

    return map_leaves(of, x)


class _Graph(nn.Module):
    """A graph of operators that takes the program's tensors as arguments."""

    def __init__(self, program: nn.Module, graph: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.graph, self.names = graph, names
        for index, value in enumerate(_tensors(program).values()):
            self.register_buffer(f"value_{index}", value)

    def forward(self, x: Any) -> Any:
        return self.graph([self.get_buffer(f"value_{index}") for index in range(len(self.names))], x)


def _differentiated(program: nn.Module, x: Any) -> nn.Module:
    """The program with its derivatives written out, which torch.export has no operators for."""
    tensors = _tensors(program)
    names = list(tensors)

    def run(values: list[Tensor], x: Any) -> Any:
        return torch.func.functional_call(program, dict(zip(names, values, strict=True)), (x,))

    return _Graph(program, make_fx(run, tracing_mode="symbolic")(list(tensors.values()), x), names)


def _tensors(program: nn.Module) -> dict[str, Tensor]:
    found = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    return {name: value.detach() for name, value in found.items()}
