"""The short way: ``mz.generate("a red apple")``.

One engine per process, built when it is first needed from the same settings as
the command line (file and environment), and closed when the process ends. For
other settings, or many requests at once, make an :class:`Engine`.
"""

import atexit
import dataclasses
import io
import threading
from pathlib import Path
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.plain import read
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine
from mezzotint.settings import load
from mezzotint.types import GenerationResult, ImageInput

__all__ = ["Engine", "generate"]

_PICTURES = ("image", "mask")
_lock = threading.Lock()
_engines: list[Engine] = []  # at most one


def generate(prompt: str | GenerationRequest | None = None, /, **fields: Any) -> GenerationResult:
    """Make pictures and wait for them; safe from any thread.

    Args:
        prompt: What to draw, or a whole request.
        fields: Any field of :class:`GenerationRequest`; parts may be plain
            dictionaries. ``guidance_scale`` may be a function of progress, 0 at the first
            step and 1 at the last. ``image`` and ``mask`` also take a path, encoded bytes
            or a PIL picture. With a whole request they replace its fields.

    Raises:
        InvalidRequest: If the request cannot be honoured as it is written.
        MezzotintError: If the work failed.

    Example::

        result = mz.generate("a red apple", seed=7)
        result.images[0].save("apple.png")
    """
    for name in _PICTURES:
        if fields.get(name) is not None:
            fields[name] = _picture(fields[name], name)
    if isinstance(prompt, GenerationRequest):
        request = dataclasses.replace(prompt, **fields) if fields else prompt
    else:
        if prompt is not None:
            if "prompt" in fields:
                raise InvalidRequest("prompt was given twice", field="prompt")
            fields["prompt"] = prompt
        request = read(GenerationRequest, fields)
    return shared_engine().generate(request)


def shared_engine() -> Engine:
    """Return the process's own engine, building it the first time."""
    with _lock:
        if not _engines:
            engine = Engine(config=load().settings.service_config())
            _engines.append(engine)
            atexit.register(engine.close)
        return _engines[0]


def _picture(value: Any, field: str) -> Any:
    """Turn what people hold in their hands into an encoded picture."""
    if isinstance(value, Path):
        return ImageInput.from_file(value, field=field)
    if isinstance(value, str):
        is_path = len(value) < 4096 and Path(value).is_file()
        return ImageInput.from_file(value, field=field) if is_path else value
    if hasattr(value, "save") and hasattr(value, "mode"):
        stream = io.BytesIO()
        value.save(stream, "PNG")
        return ImageInput(stream.getvalue())
    return value
