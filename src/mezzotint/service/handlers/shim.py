"""Handler shim: as much of the package ``ts`` as the handlers of TorchServe import.

TorchServe itself is not installed where its handlers run here. ``install`` puts
modules of its names in place: the base handler, the context, timers, the exception
that sets a status. What they do follows their documentation; where TorchServe would
unpickle weights with code in them, only tensors are read.

Source: TorchServe 0.12, ts/torch_handler/base_handler.py, ts/context.py,
ts/handler_utils, ts/utils/util.py (WIRE, section T7).
"""

import importlib
import inspect
import sys
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

__all__ = ["BaseHandler", "Context", "PredictionException", "install", "list_classes_from_module"]


class PredictionException(Exception):
    """Ends a request with a status and a message of the handler's own."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code


class Metrics:
    """Takes what handlers measure; the server measures for itself."""

    def __init__(self) -> None:
        self.store: list[tuple[str, Any]] = []
        self.cache: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("add_"):
            raise AttributeError(name)
        return self._take

    def _take(self, name: str = "", value: Any = 0, *_: Any, **__: Any) -> None:
        self.store = [*self.store[-99:], (str(name), value)]


class Context:
    """What a handler is told about its model and its requests.

    Args:
        model_name: Name of the model.
        model_dir: The unpacked archive.
        manifest: The archive's manifest.
        gpu_id: Number of the GPU, None on a CPU.
        model_yaml_config: What ``model-config.yaml`` says.
    """

    def __init__(
        self,
        *,
        model_name: str,
        model_dir: str,
        manifest: Mapping[str, Any],
        gpu_id: int | None = None,
        model_yaml_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = dict(manifest)
        self.model_yaml_config = dict(model_yaml_config or {})
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu_id,
            "batch_size": 1,
            "server_name": "MMS",
            "server_version": "0.12.0",
            "limit_max_image_pixels": True,
        }
        self.metrics = Metrics()
        self.request_ids: dict[int, str] = {}
        self.stopping_criteria: Any = None
        self.explain = False
        self._headers: list[dict[str, str]] = []
        self._statuses: list[int] = []
        self._request_headers: list[dict[str, str]] = []

    def begin(self, count: int) -> None:
        """Forget the last batch; ``count`` requests come now."""
        self.system_properties["batch_size"] = count
        self.request_ids = {k: str(uuid.uuid4()) for k in range(count)}
        self._headers = [{} for _ in range(count)]
        self._request_headers = [{} for _ in range(count)]
        self._statuses = [200] * count

    def get_request_id(self, idx: int = 0) -> str | None:
        """Return the id of a request."""
        return self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> str | None:
        """Return a header of a request, None if it has none of that name."""
        return self._request_headers[idx].get(key)

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        """Return the headers of a request."""
        return self._request_headers[idx]

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the media type of an answer."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """Return the media type of an answer."""
        return self.content_type(idx) or None

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of an answer."""
        self._headers[idx][key.lower()] = str(value)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """Return the headers of an answer."""
        return self._headers[idx]

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of an answer."""
        self._statuses[idx] = int(code)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status of all answers."""
        self._statuses = [int(code)] * len(self._statuses)

    def get_response_status(self, idx: int) -> tuple[int, str]:
        """Return status and phrase of an answer."""
        return self._statuses[idx], ""

    def content_type(self, idx: int) -> str:
        """Return the media type of an answer, "" if the handler set none."""
        return self._headers[idx].get("content-type", "")

    def status(self, idx: int) -> int:
        """Return the status of an answer."""
        return self._statuses[idx]


def list_classes_from_module(module: Any, parent_class: type | None = None) -> list[type]:
    """Return the classes that a module itself defines, below ``parent_class`` if given."""
    return [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
        and (parent_class is None or issubclass(member, parent_class))
    ]


class BaseHandler:
    """Preprocess, inference, postprocess: the handler that others are derived from."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: Any = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.manifest: Any = None
        self.map_location: Any = None
        self.explain = False
        self.target = 0
        self.profiler_args: dict[str, Any] = {}

    def initialize(self, context: Context) -> None:
        """Load the weights that the manifest names, eager or TorchScript."""
        import torch

        properties = context.system_properties
        gpu = properties.get("gpu_id")
        self.map_location = "cpu" if gpu is None else "cuda"
        self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        self.manifest = context.manifest
        self.context = context
        model_dir = Path(properties["model_dir"])
        described = self.manifest["model"]
        weights = described.get("serializedFile")
        path = model_dir / weights if weights else None
        if described.get("modelFile"):
            self.model = self._load_pickled_model(model_dir, described["modelFile"], path)
        elif path is not None:
            self.model = self._load_torchscript_model(path)
        if self.model is not None:
            self.model.to(self.device)
            self.model.eval()
        self.initialized = True

    def _load_torchscript_model(self, model_pt_path: Any) -> Any:
        """Load a TorchScript file."""
        import torch

        jit = cast("Any", torch.jit)  # its functions have no types
        return jit.load(str(model_pt_path), map_location=self.device)

    def _load_pickled_model(self, model_dir: Any, model_file: str, model_pt_path: Any) -> Any:
        """Make the one class of ``model_file`` and give it its weights; tensors only."""
        import torch

        module = importlib.import_module(model_file.removesuffix(".py").replace("/", "."))
        classes = list_classes_from_module(module)
        if len(classes) != 1:
            raise ValueError(f"{model_file} must define one class, found {len(classes)}")
        model = classes[0]()
        if model_pt_path:
            state = torch.load(model_pt_path, map_location=self.device, weights_only=True)
            model.load_state_dict(state)
        return model

    def preprocess(self, data: Any) -> Any:
        """Turn the batch into a tensor."""
        import torch

        return torch.as_tensor(data, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the model without gradients."""
        import torch

        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> Any:
        """Turn the result into lists."""
        return data.tolist()

    def handle(self, data: Any, context: Context) -> Any:
        """Serve one batch."""
        self.context = context
        return self.postprocess(self.inference(self.preprocess(data)))

    def _is_explain(self) -> bool:
        """Explanations are not offered."""
        return False

    def _is_describe(self) -> bool:
        """Descriptions are not offered."""
        return False


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stand for the decorator that measures; the server measures for itself."""
    return function


def send_intermediate_predict_response(*_: Any, **__: Any) -> None:
    """Refuse to stream.

    Raises:
        PredictionException: Always, with 501.
    """
    raise PredictionException("streaming answers of handlers are not offered here", 501)


def load_label_mapping(path: str, *_: Any) -> Any:
    """Read a JSON file of labels, None if there is none."""
    import json

    return json.loads(Path(path).read_text("utf-8")) if Path(path).is_file() else None


def map_class_to_label(
    probs: Sequence[Sequence[float]],
    mapping: Mapping[str, Any] | None = None,
    lbl_classes: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, float]]:
    """Name probabilities by their labels."""
    rows = lbl_classes or [range(len(row)) for row in probs]
    names: list[dict[str, float]] = []
    for row, classes in zip(probs, rows, strict=True):
        given = [mapping[str(c)] if mapping is not None else str(c) for c in classes]
        label = [cast("Any", name)[-1] if isinstance(name, list) else name for name in given]
        names.append(dict(zip(label, row, strict=True)))
    return names


class Dimension:
    """A label of a metric."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value


def install() -> None:
    """Put the modules in place; an installed TorchServe is hidden."""
    parts: dict[str, dict[str, Any]] = {
        "ts": {},
        "ts.context": {"Context": Context},
        "ts.service": {"PredictionException": PredictionException},
        "ts.torch_handler": {},
        "ts.torch_handler.base_handler": {"BaseHandler": BaseHandler},
        "ts.handler_utils": {},
        "ts.handler_utils.timer": {"timed": timed},
        "ts.handler_utils.utils": {
            "send_intermediate_predict_response": send_intermediate_predict_response
        },
        "ts.protocol": {},
        "ts.protocol.otf_message_handler": {
            "send_intermediate_predict_response": send_intermediate_predict_response
        },
        "ts.utils": {},
        "ts.utils.util": {
            "PredictionException": PredictionException,
            "list_classes_from_module": list_classes_from_module,
            "load_label_mapping": load_label_mapping,
            "map_class_to_label": map_class_to_label,
        },
        "ts.metrics": {},
        "ts.metrics.dimension": {"Dimension": Dimension},
    }
    for name, members in parts.items():
        module = types.ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        vars(module).update(members)
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
