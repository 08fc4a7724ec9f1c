"""Export: the posterior predictive as one program, which runs where this library is not installed."""

from pyrobnn.exporting.errors import ExportError
from pyrobnn.exporting.export import export
from pyrobnn.exporting.result import Exported

__all__ = ["ExportError", "Exported", "export"]
