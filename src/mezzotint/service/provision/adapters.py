"""Adapters: LoRAs, ControlNets, IP-Adapters and textual inversions by name, put on models.

Each kind lies in a folder of its own below the home folder. What is put on a model is a
view that shares the model's weights, kept for the next request with the same adapters as
long as there is room beside the models.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mezzotint.models.adapters.controlnet import (
    ControlNet,
    check_controlnet,
    read_controlnet,
    with_controlnets,
)
from mezzotint.models.adapters.ip_adapter import read_ip_adapter, with_ip_adapters
from mezzotint.models.adapters.ip_adapter_files import (
    check_ip_adapter,
    ip_adapter_digest,
    ip_adapter_view,
)
from mezzotint.models.adapters.lora import read_lora, with_loras
from mezzotint.models.adapters.lora_families import check_lora
from mezzotint.models.adapters.textual_inversion import (
    EmbeddingWeights,
    check_embedding,
    read_embedding,
    with_embeddings,
)
from mezzotint.models.base import Model, Network
from mezzotint.models.digests import DIGESTS
from mezzotint.models.networks import Placement
from mezzotint.models.parts import LORA_HEADER_BYTES, read_header
from mezzotint.models.reading import reading
from mezzotint.models.store.residency import Residency
from mezzotint.planning.plan import Adapters, Plan
from mezzotint.service.provision.adapter_files import KINDS, AdapterFiles

__all__ = ["AdapterProvider"]

_MAX_VIEWS = 8
"""Models with adapters kept at once; each holds the adapters' own weights only."""

_NAME = "(adapters)"  # of all of them among what is in memory


@dataclass(frozen=True, slots=True)
class _View:
    """A model with adapters, and the networks that are theirs."""

    model: Model
    own: tuple[Network, ...]

    def parts(self) -> Mapping[int, int]:
        """Return the bytes of each network that the model has not; a ControlNet may be shared."""
        return {id(network): int(getattr(network, "num_bytes", 0)) for network in self.own}

    @property
    def num_bytes(self) -> int:
        """Bytes of what the adapters add."""
        return sum(self.parts().values())


class AdapterProvider:
    """The adapters of one installation; safe to use from any thread.

    Args:
        home: Folder of the installation.
        allow_paths: Whether a name may be a path.
        residency: What is in memory, and the bound on it; None bounds nothing.
        place_control: Puts a ControlNet on the backend of the models; torch runs it if None.
    """

    def __init__(
        self,
        home: Path,
        *,
        allow_paths: bool,
        residency: Residency | None = None,
        place_control: Callable[[ControlNet], ControlNet] | None = None,
    ) -> None:
        self._files = AdapterFiles(home, allow_paths=allow_paths)
        self._residency = residency or Residency(0)
        self._place_control = place_control
        # Those that a view has: views with the same ControlNet share it.
        self._controls: weakref.WeakValueDictionary[tuple[str, Placement], Any] = (
            weakref.WeakValueDictionary()
        )
        self._lock = threading.Lock()

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of one kind, those that ship too, sorted."""
        return self._files.usable(kind)

    def path(self, kind: str, name: str) -> Path:
        """Return where an adapter lies, by name or, where allowed, by path.

        Raises:
            UnknownName: If there is none.
        """
        return self._files.path(kind, name)

    def digest(self, kind: str, name: str) -> str:
        """Return the digest of an adapter's content.

        Raises:
            UnknownName: If there is none of that name.
            ModelError: If its files are missing, corrupt or of another kind.
        """
        path = self.path(kind, name)
        with _reading(kind, name):
            if kind == "control":
                return read_controlnet(path, name=name, placement=Placement()).digest
            if kind == "image_prompt":
                return ip_adapter_digest(path, name)
            return DIGESTS.digest(path)

    def view(self, name: str) -> tuple[int, bool]:
        """Return how an IP-Adapter sees pictures: pixels of each side, whether it crops them."""
        with _reading("image_prompt", name):
            return ip_adapter_view(self.path("image_prompt", name), name)

    def token(self, name: str) -> str:
        """Return the word that stands for an embedding if a request names none."""
        return self._embedding(name).token or Path(name).stem

    def check(self, plan: Plan, model: Model) -> None:
        """Refuse adapters that were made for another model, before anything runs.

        Raises:
            InvalidRequest: If one does not fit; names it.
        """
        t = plan.techniques
        for lora in t.loras:
            path = self.path("lora", lora.part.name)
            with _reading("lora", lora.part.name):
                header = read_header(path, most_bytes=LORA_HEADER_BYTES)
            check_lora(header, lora.part.name, model)
        passes = (plan, plan.second) if plan.second else (plan,)
        sizes = [one.size for one in passes if one.techniques.controls]
        for k, control in enumerate(t.controls):
            with _reading("control", control.part.model):
                path = self.path("control", control.part.model)
                found = read_controlnet(path, name=control.part.model, placement=Placement())
            for size in sizes:
                check_controlnet(
                    found, model, mode=control.part.mode, size=size, field=f"controls[{k}]"
                )
        for k, prompt in enumerate(t.image_prompts):
            name = prompt.part.model
            path = self.path("image_prompt", name)
            with _reading("image_prompt", name):
                check_ip_adapter(path, name, model, field=f"image_prompts[{k}].model")
        for k, embedding in enumerate(t.embeddings):
            weights = self._embedding(embedding.part.name)
            check_embedding(weights, model, field=f"embeddings[{k}].name")

    @contextlib.contextmanager
    def use(
        self, model: Model, adapters: Adapters, placement: Placement, *, is_ours: bool = False
    ) -> Generator[Model]:
        """Give a view of a model with adapters, in memory for the length of the block.

        Args:
            model: The model; its weights stay in memory meanwhile.
            adapters: What is put on it.
            placement: Where and in which type ControlNets and encoders of pictures compute.
            is_ours: Whether the model is among what :class:`Residency` knows, so that the view
                goes when the model does.

        Raises:
            InvalidRequest: If the model takes none, or one does not fit.
            WeightsError: If a file is broken or does not fit.
        """

        def make() -> _View:
            made = self._make(model, adapters, placement)
            return _View(made, _added(made, model))

        with self._residency.use(
            (_NAME, (weakref.ref(model), adapters)),
            make,
            source=None,
            owner=model if is_ours else None,
        ) as view:
            self._residency.bound(_NAME, _MAX_VIEWS)
            yield view.model

    def _make(self, model: Model, adapters: Adapters, placement: Placement) -> Model:
        """Put adapters on a model, those that act inside its layers first."""
        view = model
        if adapters.embeddings:
            weights = [self._embedding(name) for name, _, _ in adapters.embeddings]
            view = with_embeddings(view, weights, [token for *_, token in adapters.embeddings])
        if adapters.image_prompts:
            with _reading("image_prompt", ", ".join(name for name, _ in adapters.image_prompts)):
                found = [
                    read_ip_adapter(
                        self.path("image_prompt", name),
                        name=name,
                        placement=placement,
                        digest=digest,
                    )
                    for name, digest in adapters.image_prompts
                ]
                view = with_ip_adapters(view, found)
        if adapters.loras:
            family = model.spec.family
            with _reading("lora", ", ".join(name for name, _ in adapters.loras)):
                loras = [
                    read_lora(self.path("lora", name), name=name, family=family)
                    for name, _ in adapters.loras
                ]
                view = with_loras(view, loras)
        if adapters.controls:
            view = with_controlnets(
                view, [self._control(name, placement) for name, _ in adapters.controls]
            )
        return view

    def _control(self, name: str, placement: Placement) -> ControlNet:
        """Return a ControlNet; its weights come into memory at its first call."""
        read = read_controlnet(self.path("control", name), name=name, placement=placement)
        key = (read.digest, placement)
        with self._lock:
            known = self._controls.get(key)
            if known is None:
                placed = self._place_control(read) if self._place_control else read
                known = self._controls[key] = placed.network
            return replace(read, network=known)

    def _embedding(self, name: str) -> EmbeddingWeights:
        path = self.path("embedding", name)
        with _reading("embedding", name):
            return read_embedding(path, name=Path(name).stem)


def _added(view: Model, model: Model) -> tuple[Network, ...]:
    """Return the networks of a view that the model has not, those inside others too."""
    known = {id(network) for network in model.networks.values()}
    known |= {id(getattr(network, "source", None)) for network in model.networks.values()}
    added: dict[int, Network] = {}
    for role, found in view.networks.items():
        network: Any = found
        while network is not None and id(network) not in known:
            added[id(network)] = network
            # A ControlNet's own source is what its backend compiled.
            is_whole = role not in model.networks
            network = None if is_whole else getattr(network, "source", None)
    return tuple(added.values())


def _reading(kind: str, name: str) -> AbstractContextManager[None]:
    """Name the kind of adapter and its field in every error of its files."""
    return reading(f"{kind.replace('_', ' ')} {name}", KINDS[kind].named_in)
