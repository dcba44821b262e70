"""Quiet loading: networks built by diffusers and transformers, one at a time.

While one of them builds a network without memory for its weights, it exchanges how modules
register weights for the whole process: a network that another thread builds meanwhile would
have none either ("Cannot copy out of meta tensor"). So whoever builds takes the one lock.

Without bars, without warnings of what the libraries themselves use of what they deprecate, and
without questions: where a model has code of its own, transformers asks
at the terminal whether it should run, unless it is told to wait no second for an answer.
What diffusers loads through transformers cannot be told otherwise.
"""

import contextlib
import threading
import warnings
from collections.abc import Generator

__all__ = ["quiet_loading", "sole_building"]

_LOADING = threading.RLock()  # from_pretrained sets the default type of the whole process


@contextlib.contextmanager
def sole_building() -> Generator[None]:
    """Build a network while no other thread builds one."""
    with _LOADING:
        yield


@contextlib.contextmanager
def quiet_loading() -> Generator[None]:
    """Load one network at a time, without the libraries' progress bars and questions."""
    from diffusers.utils import logging as diffusers_logging
    from transformers import dynamic_module_utils
    from transformers.utils import logging as transformers_logging

    with _LOADING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is deprecated", category=FutureWarning)
        loggers = (diffusers_logging, transformers_logging)
        shown = [logger.is_progress_bar_enabled() for logger in loggers]
        for logger in loggers:
            logger.disable_progress_bar()
        wait_s = dynamic_module_utils.TIME_OUT_REMOTE_CODE
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
        try:
            yield
        finally:
            dynamic_module_utils.TIME_OUT_REMOTE_CODE = wait_s
            for logger, was_shown in zip(loggers, shown, strict=True):
                if was_shown:
                    logger.enable_progress_bar()
