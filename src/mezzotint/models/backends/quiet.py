"""Quiet: OpenVINO without the reports that it sends home, tracing without talk.

The package ``openvino-telemetry``, which comes with OpenVINO, tells its makers of every
import and every conversion unless it was told not to. A program that draws offline and
logs no prompt sends nothing of its own accord; OpenVINO does without the package where it
cannot be imported.
"""

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Generator
from typing import Any

__all__ = ["conversion_failures", "import_openvino", "quiet_tracing"]

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Import OpenVINO so that nothing is sent; a package that is imported already stays.

    Raises:
        ImportError: If OpenVINO is not installed.
    """
    if _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # Python's word for "not there"
    return importlib.import_module("openvino")


@contextlib.contextmanager
def quiet_tracing() -> Generator[None]:
    """Trace a network without what is said meanwhile; one thread at a time.

    The tracer warns of every shape that it reads. It asks a module for all that it has, and some of
    what networks of transformers have answers with a line in the log.
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def conversion_failures() -> tuple[type[Exception], ...]:
    """Return what OpenVINO raises where a network is beyond it; none is a RuntimeError."""
    frontend = importlib.import_module("openvino.frontend")
    return (frontend.GeneralFailure, frontend.NotImplementedFailure, frontend.OpConversionFailure)
