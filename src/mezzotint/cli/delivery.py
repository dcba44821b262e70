"""Delivery: a request runs in this process, and its pictures reach the person."""

import contextlib
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint.cli.outputs import Destination
from mezzotint.cli.session import new_id, open_service
from mezzotint.request import GenerationRequest
from mezzotint.service.endings import follow
from mezzotint.settings import Settings
from mezzotint.types import Event, GenerationResult, ImageFinished, ImageOutput

__all__ = ["Delivery", "deliver"]


@dataclass(kw_only=True)
class Delivery:
    """How a request's pictures reach the person, and where they went.

    Args:
        destination: Where files go.
        as_json: Print one JSON object in place of paths.
        quiet: Show no progress.
        use_cache: Whether known pictures may come from the cache.
        pictures_as: How this terminal shows pictures, None not to show any.
        server: Address of a server that draws in the place of this process, "" for none.
        server_key: API key of that server, where it needs one.
        paths: Where each image went, filled while the request runs.
    """

    destination: Destination
    as_json: bool = False
    quiet: bool = False
    use_cache: bool = True
    pictures_as: str | None = None
    server: str = ""
    server_key: str | None = None
    paths: dict[int, Path | None] = dataclasses.field(default_factory=dict[int, Path | None])

    def take(self, image: ImageOutput, request: GenerationRequest) -> None:
        """Write one picture and print its path, once."""
        if image.index in self.paths:
            return
        path = self.paths[image.index] = self.destination.write(image, request)
        if path is not None and not self.as_json:
            print(path, flush=True)
        if self.pictures_as:
            from mezzotint.cli.progress import show_picture

            show_picture(image.data, self.pictures_as)


async def deliver(
    settings: Settings,
    request: GenerationRequest,
    delivery: Delivery,
    *,
    service: Any = None,
) -> GenerationResult:
    """Run a request, showing progress, writing each picture when it is done.

    Args:
        settings: For the service of this process.
        request: What to draw.
        delivery: How pictures reach the person, and who draws.
        service: An open service to ask; it stays open.

    Raises:
        MezzotintError: However the request ended, if not well.
    """
    from mezzotint.cli.progress import reporting

    images = request.num_pictures
    quiet = delivery.quiet or (delivery.as_json and not sys.stderr.isatty())
    shows = delivery.pictures_as is not None and sys.stderr.isatty()
    with reporting(images, quiet=quiet) as report:
        async with contextlib.AsyncExitStack() as stack:
            if service is None and delivery.server:
                from mezzotint.cli.local.servers import ServedElsewhere

                service = ServedElsewhere(delivery.server, delivery.server_key)
                stack.push_async_callback(service.close)
            elif service is None:
                service = await stack.enter_async_context(open_service(settings))
            events = service.stream(
                request,
                request_id=new_id(),
                use_cache=delivery.use_cache,
                preview_every=1 if shows else 0,
            )

            def observe(event: Event) -> None:
                report(event)
                if isinstance(event, ImageFinished):
                    with report.aside() if shows else contextlib.nullcontext():
                        delivery.take(event.image, request)

            result = await follow(events, observe)
    for image in result.images:
        delivery.take(image, request)
    return result
