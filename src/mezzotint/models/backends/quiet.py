"""Quiet: OpenVINO without the reports that it sends home.

The package ``openvino-telemetry``, which comes with OpenVINO, tells its makers of every
import and every conversion unless it was told not to. A program that draws offline and
logs no prompt sends nothing of its own accord; OpenVINO does without the package where it
cannot be imported.
"""

import importlib
import sys
from typing import Any

__all__ = ["conversion_failures", "import_openvino"]

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Import OpenVINO so that nothing is sent; a package that is imported already stays.

    Raises:
        ImportError: If OpenVINO is not installed.
    """
    if _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # Python's word for "not there"
    return importlib.import_module("openvino")


def conversion_failures() -> tuple[type[Exception], ...]:
    """Return what OpenVINO raises where a network is beyond it; none is a RuntimeError."""
    frontend = importlib.import_module("openvino.frontend")
    return (frontend.GeneralFailure, frontend.NotImplementedFailure, frontend.OpConversionFailure)
