"""Model provider: models by name, on a backend, with their arithmetic named.

On a CPU, OpenVINO answers for every network that it can take over; torch answers
for the rest. Which of them it is changes bits, so it is part of the environment
that goes into every plan and recipe.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from mezzotint.errors import InvalidRequest, MezzotintError
from mezzotint.models.adapters.controlnet import ControlNet
from mezzotint.models.backends.eight_bits import check_quantize
from mezzotint.models.backends.mapped import return_memory
from mezzotint.models.backends.on_disk import disk_of
from mezzotint.models.backends.placement import check_offload, offload_network, place
from mezzotint.models.backends.processor import low_precision
from mezzotint.models.backends.turbo import turbo_view
from mezzotint.models.base import Model
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.families.upscalers import Upscaler, load_upscaler, upscaler_digest
from mezzotint.models.networks import Placement, TorchNetwork
from mezzotint.models.spec import ModelSpec
from mezzotint.models.store.entries import name_in_memory
from mezzotint.models.store.loading import choose_device
from mezzotint.models.store.store import ModelStore
from mezzotint.planning.plan import Adapters, Plan
from mezzotint.planning.tiers import has_low_precision, has_step_cache
from mezzotint.service.provision.adapter_files import KINDS
from mezzotint.service.provision.adapters import AdapterProvider
from mezzotint.service.provision.environment import Processor, describe
from mezzotint.service.provision.fitting import check_fits
from mezzotint.service.provision.memory_limit import memory_limit
from mezzotint.vocabulary import EIGHT_BITS

__all__ = ["Backend", "ModelProvider", "describe_environment"]

NO_ADAPTERS = Adapters()
Backend = Literal["auto", "torch", "openvino"]


class ModelProvider:
    """Models for the engine and their specs for the planner.

    Args:
        config: Where models are and who computes them.
        extra: Models that are in memory already; their names hide the store's.
        learns: Whether fast copies are told to learn while nobody waits.
    """

    def __init__(
        self, config: ModelsConfig, *, extra: Sequence[Model] = (), learns: bool = False
    ) -> None:
        self.store = ModelStore(config)
        self.device = choose_device(config.placement.device)
        check_offload(config.placement, self.device)
        check_quantize(config.placement, self.device)
        self.backend: Literal["torch", "openvino"] = _choose_backend(config.backend, self.device)
        self._placement = config.placement
        self._learns = learns
        self._cache = config.home_path / "cache" / "openvino"
        self._cache_bytes = config.max_bytes
        self._largest_bytes = 0  # of exports that a model placed here may keep
        self._extra = {m.spec.name: place(m, config.placement) for m in extra}
        self.adapters = AdapterProvider(
            config.home_path,
            allow_paths=config.allow_paths,
            residency=self.store.residency,
            place_control=self._place_control,
        )
        self._placed: weakref.WeakSet[Model] = weakref.WeakSet()
        self._fast: weakref.WeakKeyDictionary[Model, Model] = weakref.WeakKeyDictionary()
        self._making: weakref.WeakKeyDictionary[Model, threading.Lock] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(
        self, name: str, adapters: Adapters = NO_ADAPTERS, *, turbo: bool = False
    ) -> Generator[Model]:
        """Give a model on its backend, pinned in memory for the length of the block.

        Args:
            name: Its name.
            adapters: Adapters to apply; the model keeps full precision then.
            turbo: Whether the fast copy is wanted.
        """
        with contextlib.ExitStack() as pin:
            own = self._extra.get(name)
            model = self._on_backend(
                own if own is not None else pin.enter_context(self.store.use(name))
            )
            if adapters:
                view = self.adapters.use(model, adapters, placement_of(model), is_ours=own is None)
                yield pin.enter_context(view)
            else:
                yield self._faster(model) if turbo else model

    @contextlib.contextmanager
    def use_upscaler(self, name: str) -> Generator[Upscaler]:
        """Give an upscaler, in memory for the length of the block.

        Raises:
            UnknownName: If there is none of that name.
            NotReady: If its weights are not installed.
            WeightsError: If they are broken.
        """
        with self.store.residency.use(
            (f"(upscaler {name})", None),
            lambda: load_upscaler(name),
            source=upscaler_digest(name),
        ) as upscaler:
            yield upscaler

    def check_adapters(self, plan: Plan) -> None:
        """Refuse adapters that do not fit a plan's model or the members of its ensemble.

        Raises:
            InvalidRequest: If one does not fit; names it.
        """
        if plan.techniques.adapters:
            members = plan.techniques.ensemble
            for name in [m.part.model for m in members] or [plan.model]:
                with self.use(name) as model:
                    self.adapters.check(plan, model)

    def precision(self, name: str) -> str:
        """Return the low precision that ``turbo`` has for a model, "" for none."""
        if not has_low_precision(self.spec(name)):
            return ""
        if self.backend == "openvino":
            return low_precision()
        if (kind := self._quantize(name)) != "none":
            return EIGHT_BITS[kind]
        return "bfloat16" if self.device.startswith("cuda") else ""

    def _quantize(self, name: str) -> str:
        """Return what linear layers of a model are asked to compute in, "none" for nothing."""
        usual = self._placement.quantize
        if name in self._extra:
            return usual
        return str(self.store.entry(name).card.placement.get("quantize", usual))

    def _faster(self, model: Model) -> Model:
        """Return the turbo copy of a model, made once, and again when it has learnt something."""
        with self._lock:
            turn = self._making.setdefault(model, threading.Lock())
        with turn:
            if model not in self._fast:
                view = self._fast[model] = turbo_view(
                    model,
                    cache=self._cache,
                    step_cache=has_step_cache(model.spec),
                    precision=self.precision(model.spec.name),
                    quantize=self._quantize(model.spec.name),
                    learns=self._learns,
                )
                if view.study is not None:
                    view.study = self._dropping(weakref.ref(model), view.study)
            return self._fast[model]

    def _dropping(
        self, known: "weakref.ref[Model]", study: Callable[[], None]
    ) -> Callable[[], None]:
        """Return a lesson after which a model's fast copy is made anew."""

        def learn() -> None:
            study()
            model = known()
            if model is not None:
                with self._lock:
                    self._fast.pop(model, None)

        return learn

    def adapter_digest(self, kind: str, name: str) -> str:
        """Return the content digest of an adapter or of another model.

        Args:
            kind: ``"model"``, ``"upscaler"``, or a kind of
                :data:`mezzotint.service.provision.adapters.KINDS`.
            name: Its name, or a path where paths are allowed.

        Raises:
            UnknownName: If there is none of that name.
            InvalidRequest: If there are no adapters of that kind here.
        """
        if kind == "model":
            return self.spec(name).digest
        if kind == "upscaler":
            return upscaler_digest(name)
        if kind not in KINDS:
            raise InvalidRequest(f"{kind} {name!r} cannot be used here", field=kind)
        return self.adapters.digest(kind, name)

    def spec(self, name: str) -> ModelSpec:
        """Return a model's spec; weights are not read for it."""
        return self._extra[name].spec if name in self._extra else self.store.spec(name)

    def is_code(self, name: str) -> bool:
        """Tell whether a model is an archive of handler code, which has no spec."""
        return name not in self._extra and self.store.entry(name).layout == "handler"

    def is_loaded(self, name: str) -> bool:
        """Tell whether a model is in memory."""
        return name in self._extra or self.store.is_loaded(name)

    def unload(self, name: str) -> None:
        """Let a model go from memory; who uses it keeps it until they are done.

        Raises:
            InvalidRequest: If it was handed over as an object, and was never loaded here.
            MezzotintError: If there is none of that name.
        """
        if name in self._extra:
            raise InvalidRequest(
                f"model {name} was handed over as an object and stays as long as its service",
                field="model",
            )
        self.store.residency.drop(name_in_memory(self.store.entry(name)))
        return_memory()

    def names(self) -> tuple[str, ...]:
        """Return every name, sorted."""
        return tuple(sorted({*self._extra, *self.store.names()}))

    def describe(self) -> tuple[Mapping[str, Any], ...]:
        """Return every model as plain data; one that is broken says why."""
        found: list[Mapping[str, Any]] = []
        for entry in self.store.entries():
            try:
                found.append(self.store.describe(entry.full_name))
            except MezzotintError as error:
                found.append(_broken(entry.name, entry.version, str(entry.path), error))
        return tuple(found)

    def _on_backend(self, model: Model) -> Model:
        """Put a model on the backend once.

        Raises:
            WeightsError: If its weights are more than there is memory for.
        """
        with self._lock:
            if model not in self._placed:
                self._check_fits(model)
                self._placed.add(model)
                for network in model.networks.values():
                    if (disk := disk_of(network)) is not None:
                        disk.folder = self._cache.parent / "weights"
                if self.backend == "openvino":
                    from mezzotint.models.backends.openvino_backend import use_openvino

                    room = use_openvino(model, cache=self._cache, cache_bytes=self._cache_bytes)
                    self._largest_bytes = max(self._largest_bytes, room)
        return model

    def _check_fits(self, model: Model) -> None:
        """Refuse a model that cannot fit, before anything of it is read."""
        room, can_offload = memory_limit(), False
        if self.device.startswith("cuda") and not _is_offloaded(model):
            room = _memory_of(self.device)
            can_offload = True
        networks = model.networks.values()
        check_fits(
            model.spec.name, networks, room, can_offload=can_offload,
            can_map=any(getattr(n, "mapped", None) is not None for n in networks),
        )  # fmt: skip

    def _place_control(self, control: ControlNet) -> ControlNet:
        """Put a ControlNet on the backend."""
        network = control.network
        if isinstance(network, TorchNetwork):
            offload_network(network, self._placement)
        if self.backend != "openvino" or not isinstance(network, TorchNetwork):
            return control
        if network.device.type != "cpu" or network.dtype != torch.float32:
            return control
        from mezzotint.models.backends.openvino_backend import OpenVINONetwork, room_for

        room = room_for([network], self._cache_bytes, beside=self._largest_bytes)
        placed = OpenVINONetwork(network, role="controlnet", cache=self._cache, cache_bytes=room)
        return replace(control, network=placed)


def placement_of(model: Model) -> Placement:
    """Return where and in which type a model's denoiser computes."""
    network: Any = model.networks.get("denoiser")
    while network is not None and not isinstance(network, TorchNetwork):
        network = getattr(network, "source", None)
    return Placement() if network is None else Placement(str(network.device), network.dtype)


def _is_offloaded(model: Model) -> bool:
    """Tell whether networks take turns on the device."""
    return any(getattr(n, "offload", None) is not None for n in model.networks.values())


def _broken(name: str, version: str, path: str, error: Exception) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "default": True,
        "ready": False,
        "path": path,
        "digest": "",
        "family": "",
        "licence": "unknown",
        "takes_prompt": False,
        "size_multiple": 1,
        "min_size_px": 1,
        "max_size_px": 1,
        "defaults": {},
        "limits": [str(error)],
    }


def _choose_backend(wanted: Backend, device: str) -> Literal["torch", "openvino"]:
    """Return who computes; OpenVINO serves the CPU alone."""
    if wanted == "openvino" and device != "cpu":
        raise InvalidRequest(
            f"backend must be auto or torch on {device}, got openvino; it serves the cpu",
            field="backend",
            value=wanted,
            allowed="auto, torch",
        )
    if wanted == "auto":
        return "openvino" if device == "cpu" else "torch"
    return wanted


def describe_environment(provider: ModelProvider, placement: PlacementConfig) -> dict[str, Any]:
    """Return what arithmetic depends on in this process.

    See :func:`mezzotint.service.provision.environment.describe`.
    """
    if provider.device != "cpu":
        return describe(_accelerator(provider.device), provider.backend, placement, None)
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return describe("cpu", provider.backend, placement, Processor(capability, threads))


def _accelerator(device: str) -> str:
    if device.startswith("cuda"):
        return f"{device.partition(':')[0]} {torch.cuda.get_device_name(device)}"
    return device


def memory_budget(config_bytes: int, device: str) -> int:
    """Return the bytes that tensors of requests may take: as configured, or half of all.

    All is the memory of a GPU, or what the machine has and this process may have of it.
    """
    if config_bytes:
        return config_bytes
    if device.startswith("cuda"):
        return _memory_of(device) // 2
    return memory_limit() // 2


def _memory_of(device: str) -> int:
    """Return the bytes of a GPU's memory."""
    cuda = cast("Any", torch.cuda)  # what it tells of a device has no types
    return int(cuda.get_device_properties(device).total_memory)


def cache_folder(home: Path, name: str) -> Path:
    """Return a folder for caches below the home folder; it need not exist."""
    return home / "cache" / name
