"""TorchServe's own services over gRPC: predictions and management, as its HTTP paths.

Answers are the texts that TorchServe's services send: JSON where HTTP has a document, the
sentence alone where HTTP has a status.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from mezzotint.errors import InvalidField, MezzotintError
from mezzotint.plain import field_types
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects.torchserve_handlers import is_handler
from mezzotint.serve.dialects.torchserve_models import find_model
from mezzotint.serve.errors import Malformed
from mezzotint.serve.front import Front
from mezzotint.serve.rpc.exchange import Call, model_path
from mezzotint.serve.rpc.messages import message
from mezzotint.serve.wire import parse_json
from mezzotint.types import ImageInput

__all__ = ["MANAGEMENT", "Inference", "read_input"]


class Inference:
    """TorchServe's inference service.

    Args:
        front: Knows which models are handler code: it gets the bytes of each input.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    @property
    def methods(self) -> Mapping[str, tuple[Any, str, str]]:
        """Method -> what carries it out, its request and its response."""
        request, response = "torchserve.PredictionsRequest", "torchserve.PredictionResponse"
        return {
            "Ping": (self.ping, "torchserve.Empty", "torchserve.TorchServeHealthResponse"),
            "Predictions": (self.predict, request, response),
            "StreamPredictions": (self.predict, request, response),
        }

    async def ping(self, call: Call, request: Any) -> Any:
        """Tell whether every model can be used."""
        answer = await call.ask("GET", "/ping", also=(500,))
        return message("torchserve.TorchServeHealthResponse")(health=answer.body.decode())

    async def predict(self, call: Call, request: Any) -> Any:
        """Make pictures: the bytes of one, or a JSON list of several."""
        path = model_path("/predictions/", request.model_name, request.model_version)
        try:
            version = request.model_version or None
            model = await find_model(self._front, request.model_name, version, recent=True)
            is_code = is_handler(model)
        except MezzotintError:
            is_code = False  # the door says what is wrong with the name
        kind, body = read_input(dict(request.input), is_code=is_code)
        answer = await call.ask("POST", path, headers={"content-type": kind}, body=body)
        return message("torchserve.PredictionResponse")(prediction=answer.body)


def read_input(given: Mapping[str, bytes], *, is_code: bool) -> tuple[str, bytes]:
    """Return the body that the inputs of a prediction are, after its content type.

    Handler code gets the bytes of each input under its name. Else ``data`` or ``body``
    alone is a body of HTTP (JSON, a picture or a text), and several inputs are a form.

    Raises:
        InvalidField: If an input has a name that no form can hold.
    """
    if not is_code and len(given) == 1 and (given.keys() & {"data", "body"}):
        return _body(next(iter(given.values())))
    boundary = secrets.token_hex(16)
    lines: list[bytes] = []
    for name, data in given.items():
        if not 0 < len(name) <= 100 or not name.replace(".", "_").replace("-", "_").isidentifier():
            raise InvalidField(f"input has a name that is none: {name[:40]!r}", field="input")
        file = '; filename="data"' if is_code or _is_picture(name, data) else ""
        lines.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
            + data
            + b"\r\n"
        )
    lines.append(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(lines)


def _body(data: bytes) -> tuple[str, bytes]:
    if data.lstrip()[:1] in (b"{", b"["):
        try:
            parse_json(data)
        except (Malformed, InvalidField):
            return "text/plain", data
        return "application/json", data
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "image/*", data
    return "text/plain", data


def _is_picture(name: str, data: bytes) -> bool:
    takes = str(field_types(GenerationRequest).get(name, ""))
    return ImageInput.__name__ in takes and not data.isascii()


def _arguments(request: Any) -> dict[str, str]:
    """Return the fields of a message that are set, as a query has them."""
    texts: dict[str, str] = {}
    for field, value in request.ListFields():
        texts[field.name] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts


def _named(request: Any) -> str:
    return model_path("/models/", request.model_name, request.model_version)


def _response(text: str) -> Any:
    return message("torchserve.ManagementResponse")(msg=text)


async def describe_model(call: Call, request: Any) -> Any:
    """Describe a model."""
    query = {"customized": "true"} if request.customized else {}
    return _response((await call.ask("GET", _named(request), query=query)).body.decode())


async def list_models(call: Call, request: Any) -> Any:
    """List the models."""
    answer = await call.ask("GET", "/models", query=_arguments(request))
    return _response(answer.body.decode())


async def register_model(call: Call, request: Any) -> Any:
    """Register a model; a truth that is not given is false in a message."""
    query = {"synchronous": "false", **_arguments(request)}
    answer = await call.ask("POST", "/models", query=query)
    return _response(answer.json()["status"])


async def scale_worker(call: Call, request: Any) -> Any:
    """Set the number of workers of a model; as at TorchServe 0 counts as not given."""
    said = _arguments(request)
    query = {
        name: said[name] for name in ("min_worker", "max_worker", "synchronous") if name in said
    }
    if "-" in query.get("min_worker", ""):
        del query["min_worker"]
    answer = await call.ask("PUT", _named(request), query=query)
    return _response(answer.json()["status"])


async def set_default(call: Call, request: Any) -> Any:
    """Make one version the default."""
    if not request.model_version:
        raise InvalidField("Parameter model_version is required.", field="model_version")
    answer = await call.ask("PUT", _named(request) + "/set-default")
    return _response(answer.json()["status"])


async def unregister_model(call: Call, request: Any) -> Any:
    """Remove a model."""
    return _response((await call.ask("DELETE", _named(request))).json()["status"])


MANAGEMENT: Mapping[str, tuple[Any, str, str]] = {
    name: (function, f"torchserve.{name}Request", "torchserve.ManagementResponse")
    for name, function in (
        ("DescribeModel", describe_model),
        ("ListModels", list_models),
        ("RegisterModel", register_model),
        ("ScaleWorker", scale_worker),
        ("SetDefault", set_default),
        ("UnregisterModel", unregister_model),
    )
}
"""Method of TorchServe's management service -> what carries it out, its messages."""
