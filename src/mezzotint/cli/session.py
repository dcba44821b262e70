"""Session: opens the service that does the work, for the length of one verb.

The verbs speak to the service port only, so that they are tested against the
fake. Settings come from the root command's flags, the verb's own, the
environment and the file.
"""

import contextlib
import os
import signal
import sys
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar, cast

import typer

from mezzotint.cli.flags import WrongFlag
from mezzotint.observe import log, stages
from mezzotint.service.base import Service
from mezzotint.settings import Loaded, Settings, load

__all__ = ["load_settings", "new_id", "open_service", "run"]

T = TypeVar("T")
GRACE_S = 2.0


def load_settings(context: typer.Context, **flags: Any) -> Loaded:
    """Read the settings for a verb.

    Args:
        context: The verb's context; its root holds ``--config``, ``--home``, ``--set`` and
            ``--log-level``.
        flags: Settings by path with ``__`` for dots, e.g. ``serve__port=9000``;
            None is "not given". ``config`` beats the root's.
    """
    root: Mapping[str, Any] = context.find_root().params
    file = flags.pop("config", None) or root.get("config")
    given = {name.replace("__", "."): value for name, value in flags.items()}
    home = root.get("home")
    given |= {"home": str(home) if home else None, "log.level": root.get("log_level")}
    loaded = load(file=file, flags=given, texts=_assignments(root.get("settings") or ()))
    log.configure(loaded.settings.log)
    return loaded


def _assignments(items: Sequence[str]) -> dict[str, str]:
    """Read ``--set NAME=VALUE``; the last of a name wins."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise WrongFlag("--set", f"must look like NAME=VALUE, got {item!r}")
        found[name.strip()] = value
    return found


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb's body; Ctrl-C cancels it at the next step.

    Who presses Ctrl-C while a model loads does not wait for it: after
    :data:`GRACE_S` the process ends where it is, and a second Ctrl-C ends it at
    once. Files are whole or absent either way.

    Raises:
        KeyboardInterrupt: If it was interrupted.
    """
    import asyncio  # for verbs that wait for something: reading a recipe does not

    async def interruptible() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        with _interrupts(lambda: loop.call_soon_threadsafe(task.cancel)):
            return await task

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def _interrupts(cancel: Callable[[], object]) -> Generator[None]:
    """Let Ctrl-C call ``cancel`` while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    grace = threading.Timer(GRACE_S, _leave_now)
    grace.daemon = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if grace.is_alive():
            _leave_now()
        grace.start()
        cancel()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        grace.cancel()


def _leave_now() -> None:
    """End the process without waiting for what a library is doing."""
    if sys.stderr.isatty():  # a live display hid the cursor and stands in the middle of a line
        print("\033[?25h", file=sys.stderr)
    print("mezzotint: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


def new_id() -> str:
    """Return an id for a request."""
    return uuid.uuid4().hex


@contextlib.asynccontextmanager
async def open_service(settings: Settings) -> AsyncGenerator[Service]:
    """Start the service in this process and close it at the end."""
    service = make_service(settings)
    try:
        yield service
    finally:
        await service.close()


def make_service(settings: Settings) -> Service:
    """Build the service of this process; what is known already is answered without its engine."""
    from mezzotint.service.quick import QuickService

    config = settings.service_config()

    def make() -> Service:
        # What the libraries warn about is ours to say. They read this when they are imported,
        # which a model that is converted already never makes them: importing them to tell them
        # would be half of a cold start.
        for library in ("DIFFUSERS", "TRANSFORMERS"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")
        with stages.stage("starting", "the engine"):
            from mezzotint.service.local import LocalService

            return LocalService(config, interruptible=True)

    return cast("Service", QuickService(config, make, os.environ))
