"""TorchServe handlers at the door: rows for the code of an archive, and its answers.

Where the operator has allowed an archive's code, the parameters of a request reach it
as TorchServe delivers them: a body under ``body`` (parsed if it is JSON), the parts of
a form under their own names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import ModelError, WorkFailed
from mezzotint.serve.errors import DoorError, Unsupported
from mezzotint.serve.front import Front
from mezzotint.serve.wire import media_type, parse_json, read_form, visit
from mezzotint.service.base import HandlerAnswer

__all__ = ["OutOfResources", "WorkerDied", "answer", "is_handler", "run", "unsupported"]


class WorkerDied(DoorError):
    """The handler's process ended in the middle of the work."""


class OutOfResources(DoorError):
    """The handler took more memory than it may."""


def is_handler(model: Mapping[str, Any]) -> bool:
    """Tell whether a model is an archive of handler code."""
    return model["family"] == "handler"


def unsupported(protocol: str) -> Unsupported:
    """Return the refusal of a protocol that handler code does not speak here."""
    return Unsupported(f"handler code is called at /predictions/{{model}} here, not by {protocol}")


async def _row(http: Request) -> dict[str, Any]:
    """Read a request as the handler is given it."""
    kind = media_type(http)
    row: dict[str, Any] = dict(http.query_params)
    row.pop("model_name", None)
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with read_form(http) as form:
            for name, value in form.multi_items():
                row[name] = await value.read() if isinstance(value, UploadFile) else value
        return row
    body = await http.body()
    if body:
        is_json = kind == "application/json" or kind.endswith("+json")
        row["body"] = parse_json(body) if is_json else body
    return row


async def run(
    front: Front, http: Request, model: str, rows: Sequence[Mapping[str, Any]] | None = None
) -> list[HandlerAnswer]:
    """Give a request (or the rows in its place) to the handler.

    Raises:
        ClientGone: If the connection was closed meanwhile; the process is killed.
        MezzotintError: However the call ended, if not well.
    """
    front.check_open()
    visit(http).model = model
    given = [await _row(http)] if rows is None else list(rows)
    try:
        async with front.counted(visit(http).caller):
            answers = await front.watched(http, front.service.handle(model, given))
    except ModelError as error:
        raise WorkFailed(str(error)) from None
    for one in answers:
        if one.error == "died":
            raise WorkerDied("Worker died.")
        if one.error == "memory":
            raise OutOfResources("Out of resources")
        if one.error:
            raise WorkFailed(one.message.removeprefix("Prediction failed: "))
    visit(http).ran_code = True
    return list(answers)


def answer(made: HandlerAnswer) -> Response:
    """Pass an answer on; what a handler says is never run by a browser."""
    headers = {"Content-Security-Policy": "sandbox"}
    return Response(made.data, made.status, headers=headers, media_type=made.content_type)
