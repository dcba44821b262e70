"""Remote calls: the methods of the service port that are one question and one answer.

Arguments and answers are plain data here; who carries them is the subclass's business.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from mezzotint.plain import write
from mezzotint.request import GenerationRequest, Output
from mezzotint.service.base import HandlerAnswer
from mezzotint.service.endings import follow
from mezzotint.types import Event, GenerationResult, ImageOutput

__all__ = ["RemoteCalls"]


class RemoteCalls(ABC):
    """The plain calls of a service in another process, and what follows from ``stream``."""

    @abstractmethod
    def stream(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
        preview_every: int = 0,
        quiet: bool = False,
    ) -> AsyncIterator[Event]:
        """Run one request and yield its events; the death of a worker goes unnoticed."""

    async def generate(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
    ) -> GenerationResult:
        """Run one request to its end.

        Raises:
            MezzotintError: The one way in which the request ended, if not well.
        """
        events = self.stream(
            request, request_id=request_id, client=client, use_cache=use_cache, quiet=True
        )
        return await follow(events)

    @abstractmethod
    async def _ask(self, method: str, **arguments: Any) -> Any:
        """Call a method there, and return its answer as plain data."""

    @abstractmethod
    async def change(self, method: str, **arguments: Any) -> Any:
        """Call a method that changes the list of models; processes to come hear of it too."""

    async def plan(self, request: GenerationRequest, *, client: str = "") -> Mapping[str, Any]:
        """Resolve a request without running it."""
        return await self._ask("plan", request=request.canonical(), client=client)

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models."""
        return tuple(await self._ask("models"))

    async def capabilities(self) -> Mapping[str, Any]:
        """List every name a request may use."""
        return await self._ask("capabilities")

    async def register(
        self, source: str, *, name: str | None = None, version: str | None = None
    ) -> Mapping[str, Any]:
        """Add a model."""
        return await self.change("register", source=source, name=name, version=version)

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Remove one version of a model."""
        await self.change("unregister", name=name, version=version)

    async def set_default(self, name: str, version: str) -> None:
        """Make the bare name mean this version."""
        await self.change("set_default", name=name, version=version)

    async def load(self, name: str) -> Mapping[str, Any]:
        """Bring a model into memory."""
        return await self._ask("load", name=name)

    async def unload(self, name: str) -> Mapping[str, Any]:
        """Let a model's weights go from memory."""
        return await self._ask("unload", name=name)

    async def inspect(self, data: bytes, *, client: str = "") -> Mapping[str, Any]:
        """Read the recipe inside a picture."""
        return await self._ask("inspect", data=data, client=client)

    async def preprocess(self, data: bytes, how: str, *, client: str = "") -> bytes:
        """Prepare a control picture."""
        return await self._ask("preprocess", data=data, how=how, client=client)

    async def upscale(
        self, data: bytes, *, factor: float, model: str | None = None, output: Output,
        client: str = "", cover: tuple[int, int] | None = None, crop: bool = False,
    ) -> ImageOutput:  # fmt: skip
        """Enlarge a picture."""
        how = {"factor": factor, "model": model, "client": client, "cover": cover, "crop": crop}
        answer = await self._ask("upscale", data=data, output=write(output), **how)
        return msgspec.convert(answer, ImageOutput)

    async def grid(
        self, images: Sequence[bytes], *, columns: int, padding_px: int = 2, output: Output,
        raw: bool = False,
    ) -> bytes:  # fmt: skip
        """Lay pictures out in a grid."""
        how = {"columns": columns, "padding_px": padding_px, "raw": raw}
        return await self._ask("grid", images=list(images), output=write(output), **how)

    async def handle(
        self, model: str, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[HandlerAnswer, ...]:
        """Give requests to the handler code of an archive."""
        answers = await self._ask("handle", model=model, rows=[dict(row) for row in rows])
        return tuple(HandlerAnswer(**answer) for answer in answers)
