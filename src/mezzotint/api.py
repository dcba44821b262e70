"""The short way: ``mz.generate("a red apple")``.

One engine per process, built when it is first needed from the same settings as
the command line (file and environment), and closed when the process ends. For
other settings, or many requests at once, make an :class:`Engine`.
"""

import atexit
import threading
from typing import Any

from mezzotint.calls import read_call, with_fields
from mezzotint.notebook import is_notebook
from mezzotint.observe.progress import notebook_bar
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine
from mezzotint.settings import load
from mezzotint.types import GenerationResult

__all__ = ["Engine", "generate"]

_lock = threading.Lock()
_engines: list[Engine] = []  # at most one


@with_fields
def generate(prompt: str | GenerationRequest | None = None, /, **fields: Any) -> GenerationResult:
    """Make pictures and wait for them; safe from any thread.

    Args:
        prompt: What to draw, or a whole request.
        fields: Any field of :class:`GenerationRequest`; parts may be plain
            dictionaries. ``guidance_scale`` may be a function of progress, 0 at the first
            step and 1 at the last. ``image``, ``mask`` and each of ``image_references`` also
            take a path, encoded bytes or a PIL picture. With a whole request they replace
            its fields.

    Raises:
        InvalidRequest: If the request cannot be honoured as it is written.
        MezzotintError: If the work failed.

    Example::

        result = mz.generate("a red apple", seed=7)
        result.images[0].save("apple.png")
    """
    request = read_call(prompt, fields)
    engine = shared_engine()
    return _shown(engine, request) if is_notebook() else engine.generate(request)


def _shown(engine: Engine, request: GenerationRequest) -> GenerationResult:
    """Run a request with a bar; stopping the notebook's cell cancels it."""
    handle = engine.submit(request)
    try:
        with notebook_bar(request.num_pictures) as show:
            for event in handle.events():
                show(event)
    except KeyboardInterrupt:
        handle.cancel()
        raise
    return handle.result()


def shared_engine() -> Engine:
    """Return the process's own engine, building it the first time."""
    with _lock:
        if not _engines:
            engine = Engine(config=load().settings.service_config())
            _engines.append(engine)
            atexit.register(engine.close)
        return _engines[0]
