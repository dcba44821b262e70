"""MCP tools: generate, plan, verify and models, in the words of the official SDK.

The tools speak to a small port (:class:`Backend`), so that the HTTP door and the program
on standard input and output offer the same. The SDK is an extra and is imported by who
makes a server, not before.
"""

import base64
import importlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

from mezzotint.errors import InvalidRequest, MezzotintError, NotReady, UnknownName, WorkFailed
from mezzotint.request import GenerationRequest
from mezzotint.serve.errors import describe
from mezzotint.serve.schema import request_schema
from mezzotint.serve.wire import CONTENT_TYPES
from mezzotint.service.endings import result_of
from mezzotint.service.verification import compare_files, recipe_request
from mezzotint.types import Event, GenerationResult, ImageInput, Stepped

__all__ = ["Backend", "Tell", "create_server", "draw", "needs_sdk"]

Tell = Callable[[float, float], Awaitable[None]]
"""Hears how many steps are done, and of how many."""

_EMPTY: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_PICTURE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "description": "The picture's file: base64 or a data address."}
    },
    "required": ["image"],
    "additionalProperties": False,
}
_ABOUT = {
    "generate": "Make pictures from a prompt; the same request with the same seed makes the "
    "same bytes. Answers each picture and what was used to make it.",
    "plan": "Resolve a request without making anything: what would be used, what it costs.",
    "verify": "Make a picture that carries its recipe again, and tell whether the file is the "
    "one that its recipe makes, byte for byte.",
    "models": "List the models that there are, with their defaults and limits.",
}


class Backend(Protocol):
    """Who does the work."""

    async def generate(
        self, request: GenerationRequest, *, use_cache: bool = True, tell: Tell | None = None
    ) -> GenerationResult:
        """Make pictures; whoever wishes to hear of it is told of each step."""
        ...

    async def plan(self, request: GenerationRequest) -> Mapping[str, Any]:
        """Resolve a request."""
        ...

    async def recipe(self, data: bytes) -> Mapping[str, Any]:
        """Read what a picture says about itself."""
        ...

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models."""
        ...


def needs_sdk() -> None:
    """Refuse where the SDK is not installed.

    Raises:
        NotReady: If it is not; says how to install it.
    """
    try:
        importlib.import_module("mcp.server.lowlevel")
    except ImportError:
        raise NotReady("MCP needs the extra mcp: pip install 'mezzotint[mcp]'") from None


def create_server(
    backend: Backend, *, version: str = "", limits: Mapping[str, int] | None = None
) -> Any:
    """Build the SDK's server with our tools.

    Args:
        backend: Who does the work.
        version: Mezzotint's.
        limits: Upper ends of fields, for the schemas.

    Raises:
        NotReady: If the SDK is not installed.
    """
    needs_sdk()
    from mcp import types
    from mcp.server.lowlevel import Server

    request = request_schema(limits or {})
    schemas = {"generate": request, "plan": request, "verify": _PICTURE, "models": _EMPTY}
    listed = [
        types.Tool(name=name, description=about, input_schema=_self_contained(schemas[name]))
        for name, about in _ABOUT.items()
    ]

    async def list_tools(context: Any, params: Any) -> Any:
        return types.ListToolsResult(tools=listed)

    async def call_tool(context: Any, params: Any) -> Any:
        wants_progress = "progress_token" in (context.meta or {})
        tell: Tell | None = context.session.report_progress if wants_progress else None
        given = dict(params.arguments or {})
        try:
            pictures, words = await _call(backend, params.name, given, tell)
        except MezzotintError as error:
            return types.CallToolResult(content=[_text(types, _problem(error))], is_error=True)
        content = [
            types.ImageContent(type="image", data=data, mime_type=kind) for kind, data in pictures
        ]
        return types.CallToolResult(
            content=[*content, _text(types, words)], structured_content=words
        )

    return Server("mezzotint", version=version, on_list_tools=list_tools, on_call_tool=call_tool)


async def draw(events: AsyncIterator[Event], pictures: int, tell: Tell | None) -> GenerationResult:
    """Follow a request to its ending.

    Args:
        events: What a service streams; closed in the end.
        pictures: How many pictures it makes.
        tell: Told of the steps of all pictures together; never of fewer than before, though
            a picture that gates refused begins again.

    Raises:
        MezzotintError: For a bad ending, or for none.
    """
    done: dict[int, int] = {}
    try:
        async for event in events:
            if tell is not None and isinstance(event, Stepped):
                before = done.get(event.image, 0)
                done[event.image] = max(before, event.step)
                if event.step > before:
                    await tell(sum(done.values()), event.steps * pictures)
            result = result_of(event)
            if result is not None:
                return result
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
    raise WorkFailed("the request ended without an ending")


def _text(types: Any, words: Mapping[str, Any]) -> Any:
    return types.TextContent(type="text", text=json.dumps(words, ensure_ascii=False))


def _self_contained(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with an object at its root, as MCP asks."""
    return {**schema, "type": "object"}


def _problem(error: MezzotintError) -> dict[str, Any]:
    """Say what was wrong, so that a model can mend its call."""
    problem = describe(error)
    known = {"error": problem.code, "detail": problem.detail, "field": problem.field}
    known |= {"value": problem.value, "allowed": problem.allowed}
    return {key: value for key, value in known.items() if value is not None}


async def _call(
    backend: Backend, name: str, given: dict[str, Any], tell: Tell | None
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Run a tool.

    Returns:
        Content type and base64 of each picture, and what there is to say.

    Raises:
        MezzotintError: If it cannot be done.
    """
    if name == "generate":
        result = await backend.generate(GenerationRequest.from_dict(given), tell=tell)
        pictures = [(CONTENT_TYPES[i.format], _b64(i.data)) for i in result.images]
        return pictures, _said(result)
    if name == "plan":
        return [], dict(await backend.plan(GenerationRequest.from_dict(given)))
    if name == "verify":
        return [], await _verify(backend, given, tell)
    if name == "models":
        keys = ("name", "version", "default", "family", "ready", "takes_prompt", "defaults")
        shown = [{k: m[k] for k in keys if k in m} for m in await backend.models()]
        return [], {"models": shown}
    raise UnknownName("tool", name[:80], tuple(_ABOUT), field="name")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _said(result: GenerationResult) -> dict[str, Any]:
    images = [
        {
            "seed": image.seed,
            "width": image.width,
            "height": image.height,
            "recipe_digest": image.recipe_digest,
            "warnings": list(image.warnings),
        }
        for image in result.images
    ]
    return {"images": images, "cache": result.cache, "warnings": list(result.warnings)}


async def _verify(backend: Backend, given: Mapping[str, Any], tell: Tell | None) -> dict[str, Any]:
    """Make a picture again and hold its file against the one that was given.

    Raises:
        InvalidRequest: If there is no picture, or none with a recipe of ours.
    """
    if not isinstance(given.get("image"), str):
        raise InvalidRequest("image is needed: the picture's file as base64", field="image")
    data = ImageInput.from_base64(given["image"], field="image").data
    request, index = recipe_request(await backend.recipe(data))
    result = await backend.generate(request, use_cache=False, tell=tell)
    found = compare_files(data, request, index, result)
    words = {
        "identical": found.identical,
        "detail": "the file is the one that its recipe makes"
        if found.identical
        else "the file is not the one that its recipe makes here; `mezzotint verify` says how "
        "they differ",
        "prompt": request.prompt,
        "model": request.model,
        "seed": request.seed,
    }
    return words
