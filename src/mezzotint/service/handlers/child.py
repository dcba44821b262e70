"""Handler child: the process in which one archive's Python code runs.

Started by :class:`~mezzotint.service.handlers.handlers.HandlerPool` as ``python -I -m
mezzotint.service.handlers.child FD``, with an empty environment. It bounds itself
before it looks at the code, finds the entry as TorchServe does, and then answers
batches over the socket until that closes. What the code raises is told by kind and
place; its message goes to the client only where the code meant it for them.

Source: TorchServe 0.12, ts/model_loader.py and ts/service.py (WIRE, section T7).
"""

import contextlib
import ctypes
import importlib
import inspect
import json
import os
import resource
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mezzotint.plain import is_dict
from mezzotint.service.handlers import shim as handler_shim
from mezzotint.service.workers.transport import MAX_MESSAGE_BYTES, pack, unpack

__all__ = ["find_entry", "main"]

_BUILT_IN = frozenset(
    {
        "image_classifier",
        "image_segmenter",
        "object_detector",
        "text_classifier",
        "text_handler",
        "vision_handler",
        "densenet_handler",
        "dali_image_classifier",
    }
)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
_SIGKILL = 9

Entry = Callable[[Any, Any], Any]


class Unloadable(Exception):
    """An archive whose handler cannot be found; the message is for people."""


def bound(memory_bytes: int, file_bytes: int) -> None:
    """Give up what this process does not need: memory, files, rights, the network."""
    for what, most in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 1024),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what forks away stays below us
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if libc.unshare(_CLONE_NEWNET):  # without the right to: in a name space of our own
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def find_entry(model_dir: Path, handler: str) -> Any:
    """Import an archive's handler and find what to call in it.

    Args:
        model_dir: The unpacked archive.
        handler: ``file.py``, ``file`` or ``file:function``, of the manifest.

    Returns:
        A function ``(data, context)``, or the one class of the module.

    Raises:
        Unloadable: If there is none.
    """
    file, _, function = handler.partition(":")
    name = file.removesuffix(".py").replace("/", ".")
    place = model_dir / f"{name.replace('.', '/')}.py"
    if name == "base_handler":
        return handler_shim.BaseHandler
    if not place.is_file():
        if name in _BUILT_IN:
            raise Unloadable(f"handler {handler!r} is built into TorchServe and not offered here")
        raise Unloadable(f"handler {handler!r} is not among the archive's files")
    sys.path.insert(0, str(model_dir))
    module = importlib.import_module(name)
    if function:
        entry = getattr(module, function, None)
        if not callable(entry):
            raise Unloadable(f"handler {handler!r}: there is no function {function!r}")
        return entry
    if inspect.isfunction(getattr(module, "handle", None)):
        return module.handle
    classes = handler_shim.list_classes_from_module(module)
    if len(classes) != 1:
        raise Unloadable(
            f"handler {handler!r} must have a function handle(data, context) or one class, "
            f"found {len(classes)} classes"
        )
    return classes[0]


def load(hello: Mapping[str, Any]) -> tuple[Entry, handler_shim.Context]:
    """Make the handler ready to answer.

    Raises:
        Unloadable: If there is no handler.
        Exception: Whatever its code raises.
    """
    model_dir = Path(hello["model_dir"])
    model = hello["manifest"]["model"]
    context = handler_shim.Context(
        model_name=model["modelName"],
        model_dir=str(model_dir),
        manifest=hello["manifest"],
        gpu_id=hello["gpu_id"],
        model_yaml_config=_yaml(model_dir, model),
    )
    found = find_entry(model_dir, model["handler"])
    if not inspect.isclass(found):
        with contextlib.suppress(NotImplementedError):
            found(None, context)
        return found, context
    service = found()
    initialize = getattr(service, "initialize", None)
    if callable(initialize):
        initialize(context)
    handle = getattr(service, "handle", None)
    if not callable(handle):
        raise Unloadable(f"class {found.__name__} has no method handle(data, context)")
    return handle, context


def _yaml(model_dir: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """Read ``model-config.yaml``, if there is one."""
    path = model_dir / str(model.get("configFile") or "model-config.yaml")
    if not path.is_file():
        return {}
    import yaml

    found = yaml.safe_load(path.read_text("utf-8"))
    return found if is_dict(found) else {}


def answer(entry: Entry, context: handler_shim.Context, rows: list[dict[str, Any]]) -> Any:
    """Run one batch and say how it went, as plain data."""
    context.begin(len(rows))
    try:
        given: object = entry(rows, context)
        kind = type(given).__name__
        results = cast("Sequence[Any]", given) if isinstance(given, list | tuple) else None
        if results is None or len(results) != len(rows):
            count = kind if results is None else len(results)
            return {
                "kind": "failed",
                "error": "mismatch",
                "message": "number of batch response mismatched, "
                f"expect: {len(rows)}, got: {count}.",
            }
        return {
            "kind": "answers",
            "answers": [_body(result, context, k) for k, result in enumerate(results)],
        }
    except handler_shim.PredictionException as error:
        body = {"data": str(error.message).encode(), "content_type": "text/plain"}
        return {
            "kind": "answers",
            "answers": [{**body, "status": error.error_code} for _ in rows],
        }
    except MemoryError:
        return {"kind": "failed", "error": "memory", "message": "Out of resources"}
    except Exception as error:  # the code of the archive may raise anything
        out_of_memory = "out of memory" in str(error).lower() or "alloc" in str(error).lower()
        kind = "memory" if out_of_memory else "failed"
        return {"kind": "failed", "error": kind, "message": f"Prediction failed: {_where(error)}"}


def _body(result: Any, context: handler_shim.Context, place: int) -> dict[str, Any]:
    """Turn one result into bytes as TorchServe's sender does."""
    media = context.content_type(place)
    if isinstance(result, bytes | bytearray):
        data, usual = bytes(result), "application/octet-stream"
    elif isinstance(result, str):
        data, usual = result.encode("utf-8", "replace"), "text/plain"
    elif type(result).__module__.partition(".")[0] == "torch" and hasattr(result, "tolist"):
        data, usual = json.dumps(result.tolist(), indent=2).encode(), "application/json"
    else:
        data, usual = json.dumps(result, indent=2).encode(), "application/json"
    return {"data": data, "content_type": media or usual, "status": context.status(place)}


def _where(error: BaseException) -> str:
    """Return kind and place of an exception; its message may hold what users sent."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if "mezzotint" not in f.filename] or frames
    place = f" at {Path(inside[-1].filename).name}:{inside[-1].lineno}" if inside else ""
    return f"{type(error).__name__}{place}"


class _Wire:
    """Messages over a blocking socket."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)

    def read(self) -> dict[str, Any] | None:
        """Return the next message, None when the other side is gone."""
        head = self._exactly(8)
        if head is None:
            return None
        (size,) = struct.unpack(">Q", head)
        body = self._exactly(size) if size <= MAX_MESSAGE_BYTES else None
        return unpack(body, dict[str, Any]) if body is not None else None

    def _exactly(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            piece = self._socket.recv(min(size - len(parts), 1 << 20))
            if not piece:
                return None
            parts += piece
        return bytes(parts)

    def write(self, message: Mapping[str, Any]) -> None:
        """Send a message."""
        self._socket.sendall(pack(message))


def main() -> None:
    """Serve the socket named on the command line, then end at once."""
    wire = _Wire(int(sys.argv[1]))
    hello = wire.read()
    if hello is None:
        return
    bound(hello["memory_bytes"], hello["file_bytes"])
    handler_shim.install()
    try:
        entry, context = load(hello)
    except Unloadable as error:
        wire.write({"kind": "failed", "message": str(error)})
        return
    except ModuleNotFoundError as error:
        wire.write({"kind": "failed", "message": f"it needs the module {error.name!r}"})
        return
    except BaseException as error:  # the code of the archive may raise anything, or exit
        wire.write({"kind": "failed", "message": _where(error)})
        return
    wire.write({"kind": "ready"})
    while (message := wire.read()) is not None:
        wire.write(answer(entry, context, message["rows"]))
    os._exit(0)


if __name__ == "__main__":
    main()
