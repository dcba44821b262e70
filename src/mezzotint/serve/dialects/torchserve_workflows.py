"""TorchServe's workflows: there are none, said in its own sentences."""

from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest
from mezzotint.serve.errors import NotFound
from mezzotint.serve.front import Front
from mezzotint.serve.wire import Endpoint, json_response

__all__ = ["ENDPOINTS", "WorkflowNotFound"]

_PATH = "/workflows/{workflow_name}"


class WorkflowNotFound(NotFound):
    """A workflow: a model is all that can be registered."""


async def list_workflows(front: Front, http: Request) -> Response:
    """List the workflows: none."""
    return json_response({"workflows": []}, indent=True)


async def register(front: Front, http: Request) -> Response:
    """Find no workflow to register."""
    url = http.query_params.get("url")
    if url is None:
        raise InvalidRequest("Parameter url is required.", field="url")
    raise WorkflowNotFound(f"Workflow not found in workflow store: {url[:200]}")


async def find(front: Front, http: Request) -> Response:
    """Find no workflow of a name."""
    raise WorkflowNotFound(f"Workflow not found: {http.path_params['workflow_name'][:200]}")


def _endpoint(
    method: str,
    path: str,
    handler: Any,
    listener: Literal["generation", "management"] = "management",
) -> Endpoint:
    return Endpoint(
        method=method,
        path=path,
        handler=handler,
        summary="TorchServe: workflows, of which there are none",
        listener=listener,
        scope="manage" if listener == "management" else "generate",
    )


ENDPOINTS: tuple[Endpoint, ...] = (
    _endpoint("GET", "/workflows", list_workflows),
    _endpoint("POST", "/workflows", register),
    _endpoint("GET", _PATH, find),
    _endpoint("DELETE", _PATH, find),
    _endpoint("POST", "/wfpredict/{workflow_name}", find, "generation"),
)
