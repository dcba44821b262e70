"""Model repository: Triton's extension of the open inference protocol, for keys that manage.

Its clients list models, and have them loaded and unloaded.

Source: "Model Repository Extension" of the Triton Inference Server's protocol documents.
"""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidField
from mezzotint.plain import is_mapping
from mezzotint.serve.dialects.torchserve_models import find_model
from mezzotint.serve.front import Front
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.wire import Body, Endpoint, json_response, read_json

__all__ = ["ENDPOINTS"]


async def index(front: Front, http: Request) -> Response:
    """List every version of every model, with ``ready`` only those in memory."""
    body = await read_json(http, optional=True, untyped=True)
    models = await front.service.models()
    return json_response(
        [
            {
                "name": model["name"],
                "version": model["version"],
                "state": "READY" if model["ready"] else "UNAVAILABLE",
                "reason": "" if model["ready"] else "it is loaded when it is first asked for",
            }
            for model in models
            if model["ready"] or body.get("ready") is not True
        ]
    )


async def load(front: Front, http: Request) -> Response:
    """Bring a model into memory; the answer comes when it is ready to draw.

    Raises:
        InvalidField: If another configuration or other files are to come with it.
    """
    given = await _parameters(http)
    if given:
        raise InvalidField(
            "parameters must be empty: a model is loaded as it was added, without "
            f"{sorted(given)[0][:80]}",
            field="parameters",
        )
    await front.service.load(await _named(front, http))
    front.forget_models()
    return json_response({})


async def unload(front: Front, http: Request) -> Response:
    """Let a model's weights go from memory; models have no dependents here.

    Raises:
        InUse: If pictures wait for it or are made with it.
    """
    await _parameters(http)
    await front.service.unload(await _named(front, http))
    front.forget_models()
    return json_response({})


async def _named(front: Front, http: Request) -> str:
    """Return the default version of the model that the path names."""
    model = await find_model(front, http.path_params["model_name"], None)
    return f"{model['name']}@{model['version']}"


async def _parameters(http: Request) -> Mapping[str, Any]:
    parameters = (await read_json(http, optional=True, untyped=True)).get("parameters")
    return parameters if is_mapping(parameters) else {}


_BODY = Body("RepositoryChange", lambda _: ANY_OBJECT, required=False)
_MODEL = "/v2/repository/models/{model_name}"


def _endpoint(path: str, handler: Any, summary: str, answer: Mapping[str, Any]) -> Endpoint:
    return Endpoint(
        method="POST", path=path, handler=handler, summary=f"Triton: {summary}", scope="manage",
        body=_BODY, answers={"application/json": answer},
    )  # fmt: skip


ENDPOINTS: tuple[Endpoint, ...] = (
    _endpoint("/v2/repository/index", index, "list the models", {"type": "array"}),
    _endpoint(f"{_MODEL}/load", load, "bring a model into memory", ANY_OBJECT),
    _endpoint(f"{_MODEL}/unload", unload, "let a model go from memory", ANY_OBJECT),
)
