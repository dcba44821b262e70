"""Quiet loading: networks built by diffusers and transformers, one at a time, without bars."""

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["quiet_loading"]

_LOADING = threading.Lock()  # from_pretrained sets the default type of the whole process


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Load one network at a time, without the libraries' progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with _LOADING:
        loggers = (diffusers_logging, transformers_logging)
        shown = [logger.is_progress_bar_enabled() for logger in loggers]
        for logger in loggers:
            logger.disable_progress_bar()
        try:
            yield
        finally:
            for logger, was_shown in zip(loggers, shown, strict=True):
                if was_shown:
                    logger.enable_progress_bar()
