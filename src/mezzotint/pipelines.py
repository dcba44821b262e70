"""Pipelines: a model called as diffusers' pipelines are called.

``mz.pipeline("plate")("a red apple", num_inference_steps=20).images`` are PIL pictures.
What is behind the call is a request like any other, with its planning and refusals.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from mezzotint.api import Engine, shared_engine
from mezzotint.calls import read_call
from mezzotint.errors import InvalidRequest
from mezzotint.models.base import Model
from mezzotint.notebook import is_notebook, pictures_html
from mezzotint.observe.progress import notebook_bar
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import RequestHandle
from mezzotint.settings import load
from mezzotint.types import MAX_SEED, GenerationResult

__all__ = ["Pipeline", "PipelineOutput", "pipeline"]

_NAMES = {"num_images_per_prompt": "num_images", "mask_image": "mask"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOutput:
    """What a call of a pipeline comes to.

    Args:
        images: The pictures, prompt after prompt: PIL pictures, or uint8 arrays of shape
            (H, W, 3) where the call asked for ``output_type="np"``.
        results: The result of each request behind the call, with files, seeds and recipes.
    """

    images: list[Any]
    results: tuple[GenerationResult, ...] = field(default=(), repr=False)

    def _repr_html_(self) -> str | None:
        """Return the pictures for a notebook to show; None without any."""
        shown = [image for result in self.results for image in result.images]
        if not shown:
            return None
        return pictures_html([i.to_html() for i in shown], max(i.width for i in shown))


class Pipeline:
    """A model that is called.

    Args:
        model: Name in the store, path, or a loaded model.
        options: Of an engine of its own (:class:`~mezzotint.api.Engine`), e.g. ``device``.
            Without any, and with a named model, the process's shared engine draws.

    Raises:
        UnknownName: If an option does not exist, or the model with an engine of its own.
    """

    def __init__(self, model: str | Path | Model = "plate", **options: Any) -> None:
        self._own: Engine | None = None
        if options or isinstance(model, Model):
            config = load().settings.service_config()
            self._own = Engine(models=[model], config=config, **options)
        self.model = model.spec.name if isinstance(model, Model) else str(model)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        generator: Any = None,
        seed: int | None = None,
        output_type: Literal["pil", "np"] = "pil",
        **fields: Any,
    ) -> PipelineOutput:
        """Draw pictures and wait for them.

        Args:
            prompt: What to draw; of several prompts each has its pictures in turn.
            generator: A ``torch.Generator``, whose initial seed counts and whose state stays
                as it is, or a list with one for each picture.
            seed: Of the first picture, in place of a generator; picture k has ``seed + k``.
            output_type: ``pil`` or ``np``.
            fields: Any field of :class:`~mezzotint.request.GenerationRequest`, among them
                ``negative_prompt``, ``num_inference_steps``, ``guidance_scale``, ``width``,
                ``height``, ``image``, ``strength``; ``num_images_per_prompt`` and
                ``mask_image`` are ``num_images`` and ``mask``.

        Raises:
            InvalidRequest: If the call cannot be honoured as it is written.
            MezzotintError: If the work failed.
        """
        if output_type not in ("pil", "np"):
            raise InvalidRequest(
                f"output_type must be pil or np, got {output_type!r}",
                field="output_type",
                value=str(output_type)[:80],
                allowed="pil, np",
            )
        requests = self._requests(prompt, _seeds(generator, seed), _renamed(fields))
        engine = self._own or shared_engine()
        results = tuple(_run(engine, requests))
        images = [image for result in results for image in result.images]
        shown = [i.pixels if output_type == "np" else _pil(i.data) for i in images]
        return PipelineOutput(images=shown, results=results)

    def close(self) -> None:
        """Free the engine that is the pipeline's own; the shared one stays."""
        if self._own is not None:
            self._own.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _requests(
        self, prompt: str | Sequence[str] | None, seeds: Sequence[int], fields: Mapping[str, Any]
    ) -> list[GenerationRequest]:
        """Return one request for each prompt, or for each picture where seeds are listed."""
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise InvalidRequest("prompt must hold a text, got an empty list", field="prompt")
        given = {"model": self.model, **fields}
        first = read_call(prompts[0], given if not seeds else {**given, "seed": seeds[0]})
        count = first.num_images
        if len(seeds) < 2:
            return [
                replace(first, prompt=text or "", seed=_moved(first.seed, k * count))
                for k, text in enumerate(prompts)
            ]
        if len(seeds) != len(prompts) * count:
            raise InvalidRequest(
                f"generator must list one for each picture: {len(prompts) * count} pictures are "
                f"asked for, got {len(seeds)} generators",
                field="generator",
                allowed=str(len(prompts) * count),
            )
        each = [text or "" for text in prompts for _ in range(count)]
        return [
            replace(first, prompt=text, num_images=1, seed=own)
            for text, own in zip(each, seeds, strict=True)
        ]


def pipeline(model: str | Path | Model = "plate", **options: Any) -> Pipeline:
    """Return a model to be called as diffusers' pipelines are.

    Args:
        model: Name in the store, path, or a loaded model.
        options: Of an engine of its own, e.g. ``device="cpu"``.

    Example::

        pipe = mz.pipeline("plate")
        pipe("a red apple", num_inference_steps=20, seed=7).images[0].save("apple.png")
    """
    return Pipeline(model, **options)


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields by our names.

    Raises:
        InvalidRequest: If two names of one field are given.
    """
    renamed: dict[str, Any] = {}
    for name, value in fields.items():
        own = _NAMES.get(name, name)
        if own in renamed:
            raise InvalidRequest(f"{name} and {own} say the same, give one", field=name)
        renamed[own] = value
    return {name: value for name, value in renamed.items() if value is not None}


def _moved(seed: int | None, by: int) -> int | None:
    """Return the seed of the picture that many places further on."""
    return None if seed is None else (seed + by) % (MAX_SEED + 1)


def _seeds(generator: Any, seed: int | None) -> list[int]:
    """Return the seeds that a call names: none, one, or one for each picture.

    Raises:
        InvalidRequest: If a generator is none, or both are given.
    """
    if generator is None:
        return [] if seed is None else [seed]
    if seed is not None:
        raise InvalidRequest("generator and seed say the same, give one", field="generator")
    is_each = isinstance(generator, list | tuple)
    given = cast("Sequence[Any]", generator) if is_each else (generator,)
    for one in given:
        if not hasattr(one, "initial_seed"):
            raise InvalidRequest(
                f"generator must be a torch.Generator or a list of them, got {type(one).__name__}",
                field="generator",
                allowed="torch.Generator",
            )
    return [int(one.initial_seed()) % (MAX_SEED + 1) for one in given]


def _run(engine: Engine, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
    """Run requests side by side; none goes on where one fails or the caller is stopped."""
    handles: list[RequestHandle] = []
    try:
        for request in requests:
            handles.append(engine.submit(request))
        if is_notebook():
            for request, handle in zip(requests, handles, strict=True):
                with notebook_bar(request.num_pictures) as show:
                    for event in handle.events():
                        show(event)
        return [handle.result() for handle in handles]
    except BaseException:  # KeyboardInterrupt too: what was handed in would go on
        for handle in handles:
            handle.cancel()
        raise


def _pil(data: bytes) -> Any:
    from PIL import Image

    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture
