"""TorchServe: handlers that run Mezzotint's engine inside a real TorchServe.

For those who keep their TorchServe: a handler file of three lines, ::

    from mezzotint.torchserve import DiffusersHandler

    class Handler(DiffusersHandler): ...

or, without any file, the handler ``mezzotint.torchserve:handle``. A list of requests
comes in and a list of pictures goes out; each request has its own seed and
parameters, all of them share the engine's batches, and one that is wrong fails
alone. ``model-config.yaml`` may hold ::

    handler:
      output: image        # or array: nested lists of integers, as JSON
      format: png
      home: /var/lib/mezzotint   # caches; the user's own folder if left out

Source: TorchServe 0.12, ts/model_loader.py and ts/context.py (WIRE, section T7).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from mezzotint.errors import InvalidRequest, MezzotintError, ModelError, NotReady
from mezzotint.images.codec import encode
from mezzotint.images.sheets import make_sheet
from mezzotint.models.formats.identify import identify
from mezzotint.plain import Checked, is_dict, is_list, read
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine, RequestHandle
from mezzotint.types import GenerationResult, ImageInput, OutputFormat

__all__ = ["DiffusersHandler", "GANHandler", "handle"]

_TEXT_NAMES = ("data", "body", "text", "input")
_EXAMPLES_OWN = ("input_gender", "input_category", "input_pose")
_CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_WHOLE = ("pipeline", "gan", "derived", "run")

Item = GenerationRequest | MezzotintError
Made = GenerationResult | MezzotintError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options(Checked):
    """What ``handler:`` in ``model-config.yaml`` may say."""

    home: str = ""
    output: Literal["image", "array"] = "image"
    format: OutputFormat = "png"


class DiffusersHandler:
    """Text to picture, for every layout of diffusion model that Mezzotint reads."""

    def __init__(self) -> None:
        self.initialized = False
        self.engine: Engine | None = None
        self.model = ""
        self.options = _Options()

    def initialize(self, ctx: Any) -> None:
        """Load the model beside the archive's manifest.

        Args:
            ctx: TorchServe's context.

        Raises:
            ModelError: If there is no model among the files.
        """
        properties = ctx.system_properties
        config: Mapping[str, Any] = getattr(ctx, "model_yaml_config", None) or {}
        self.options = read(_Options, config.get("handler") or {}, "handler")
        gpu = properties.get("gpu_id")
        self.model = str(find_model(Path(str(properties["model_dir"])).absolute()))
        self.engine = Engine(
            [self.model],
            device="cpu" if gpu is None else f"cuda:{gpu}",
            home=self.options.home,
            allow_downloads=False,
        )
        self.initialized = True

    @property
    def is_gan(self) -> bool:
        """Whether the model is a generator without steps."""
        engine = self._engine()
        return engine.service.provider.spec(self.model).family == "gan"

    def _engine(self) -> Engine:
        if self.engine is None:
            raise NotReady("initialize was not called")
        return self.engine

    def preprocess(self, data: Sequence[Mapping[str, Any]]) -> list[Item]:
        """Read the requests, one of each item; what is wrong stays an error in its place."""
        items: list[Item] = []
        for row in data:
            try:
                items.append(self._request(row))
            except MezzotintError as error:
                items.append(error)
        return items

    def inference(self, items: Sequence[Item]) -> list[Made]:
        """Run all requests at once, so that they share the engine's batches."""
        engine = self._engine()
        jobs: list[RequestHandle | MezzotintError] = []
        for item in items:
            try:
                jobs.append(item if isinstance(item, MezzotintError) else engine.submit(item))
            except MezzotintError as error:
                jobs.append(error)
        made: list[Made] = []
        for job in jobs:
            try:
                made.append(job if isinstance(job, MezzotintError) else job.result())
            except MezzotintError as error:
                made.append(error)
        return made

    def postprocess(self, results: Sequence[Made], ctx: Any = None) -> list[Any]:
        """Answer bytes (or arrays) of each result, and an error body of each error."""
        return [self._answer(made, place, ctx) for place, made in enumerate(results)]

    def handle(self, data: Sequence[Mapping[str, Any]] | None, ctx: Any) -> list[Any] | None:
        """Serve one batch; without data, load the model."""
        if not self.initialized:
            self.initialize(ctx)
        if data is None:
            return None
        return self.postprocess(self.inference(self.preprocess(data)), ctx)

    def _request(self, row: Mapping[str, Any]) -> GenerationRequest:
        """Read one item as TorchServe delivers it."""
        body = unwrap(row)
        if "number_of_images" in body:
            body["num_images"] = body.pop("number_of_images")
        output = {"format": self.options.format, **body.pop("output", {})}
        body |= {"model": self.model, "output": output}
        return read(GenerationRequest, body)

    def _answer(self, made: Made, place: int, ctx: Any) -> Any:
        if isinstance(made, MezzotintError):
            wrong = isinstance(made, InvalidRequest)
            code, kind = (400, "BadRequestException") if wrong else (500, "InternalServerException")
            _tell(ctx, place, "application/json", code)
            return json.dumps({"code": code, "type": kind, "message": str(made)})
        if self.options.output == "array":
            _tell(ctx, place, "application/json")
            arrays = [image.pixels.tolist() for image in made.images]
            return json.dumps(arrays[0] if len(arrays) == 1 else arrays)
        return self._bytes(made, place, ctx)

    def _bytes(self, made: GenerationResult, place: int, ctx: Any) -> bytes:
        """Answer one picture as it is, several as one sheet."""
        first = made.images[0]
        _tell(ctx, place, _CONTENT_TYPES[first.format])
        if len(made.images) == 1:
            return first.data
        return _sheet(made, cast("OutputFormat", first.format))  # a moving file is alone


class GANHandler(DiffusersHandler):
    """Pictures out of a generator: a JPEG grid, as the DCGAN example answers."""

    @classmethod
    def sharing(cls, other: DiffusersHandler) -> "GANHandler":
        """Return a handler on the engine of another."""
        handler = cls()
        handler.engine, handler.model = other.engine, other.model
        handler.options, handler.initialized = other.options, True
        return handler

    def _request(self, row: Mapping[str, Any]) -> GenerationRequest:
        body = {k: v for k, v in unwrap(row).items() if k not in _EXAMPLES_OWN}
        if body.get("prompt") in ("", "{}"):
            del body["prompt"]
        return super()._request(body)

    def _bytes(self, made: GenerationResult, place: int, ctx: Any) -> bytes:
        _tell(ctx, place, "image/jpeg")
        return _sheet(made, "jpeg")


_shared: dict[str, DiffusersHandler] = {}


def handle(data: Sequence[Mapping[str, Any]] | None, ctx: Any) -> list[Any] | None:
    """Serve one batch with the handler that fits the model; ``mezzotint.torchserve:handle``."""
    folder = str(ctx.system_properties["model_dir"])
    if folder not in _shared:
        first = DiffusersHandler()
        first.initialize(ctx)
        _shared[folder] = GANHandler.sharing(first) if first.is_gan else first
    return _shared[folder].handle(data, ctx)


def find_model(folder: Path) -> Path:
    """Find the model among the files of an unpacked archive.

    It is the folder itself, the one model in it, or, for an archive whose weights
    have to be converted first, the archive as a whole.

    Raises:
        ModelError: If there is no model, or more than one.
    """
    kind = _kind(folder)
    if kind in _WHOLE:
        return folder
    inside = [p for p in sorted(folder.iterdir()) if _kind(p) in _WHOLE]
    if len(inside) == 1:
        return inside[0]
    if kind == "mar" and not inside:
        return folder
    names = ", ".join(p.name for p in inside) or "none"
    raise ModelError(f"expected one model in {folder.name}, found {names}")


def _kind(path: Path) -> str:
    """Return what lies at a path, "" if it is no model."""
    try:
        return identify(path)
    except (ModelError, InvalidRequest):
        return ""


def unwrap(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of one item: raw text, JSON or form, however nested.

    Raises:
        InvalidRequest: If a text is no text, or a body no object.
    """
    body: Any = dict(row)
    for _ in range(4):
        inner = next((body[n] for n in ("data", "body") if n in body), None)
        inner = _decode(inner)
        if not is_dict(inner):
            break
        body = {k: v for k, v in body.items() if k not in ("data", "body")} | inner
    result: dict[str, Any] = {}
    for name, value in body.items():
        if name in _TEXT_NAMES:
            text = _decode(value)
            if not isinstance(text, str):
                raise InvalidRequest(
                    f"{name} must be a text, got {type(text).__name__}", field=name
                )
            result.setdefault("prompt", text)
        else:
            result[name] = _value(name, value)
    return result


def _decode(value: Any) -> Any:
    """Read bytes as text, and text that is a JSON object or text as that."""
    if is_list(value) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes | bytearray):
        try:
            value = bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest("the body must be text or JSON", field="data") from None
    if isinstance(value, str) and value.lstrip()[:1] in ("{", '"'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _value(name: str, value: Any) -> Any:
    """Read a form field: pictures as pictures, numbers and objects as JSON."""
    if name == "image_references" and isinstance(value, bytes | bytearray):
        return [ImageInput(bytes(value))]
    if name in ("image", "mask") and isinstance(value, bytes | bytearray):
        return ImageInput(bytes(value))
    text = _decode(value)
    is_text = name in ("prompt", "negative_prompt", "seed", "scheduler")
    if isinstance(text, str) and not is_text and re.match(r"^[-\d\[{tf]", text):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _sheet(made: GenerationResult, output_format: OutputFormat) -> bytes:
    """Lay pictures out as torchvision's ``save_image`` does."""
    sheet = make_sheet([image.pixels for image in made.images])
    return encode(sheet, output_format, quality=95)


def _tell(ctx: Any, place: int, content_type: str, code: int = 200) -> None:
    """Set content type and status of one answer, where there is a context."""
    if ctx is None:
        return
    ctx.set_response_content_type(place, content_type)
    if code != 200:
        ctx.set_response_status(code=code, phrase="", idx=place)
