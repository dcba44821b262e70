"""OpenVINO: a second backend behind the network seam, the default on CPUs.

A network is exported once from its torch module, written beside the other caches
under its digest, and compiled from there ever after: then neither torch modules
nor diffusers nor transformers are loaded. The batch dimension stays dynamic, and so do
height and width where :mod:`mezzotint.models.backends.exporting` finds that they can;
all others are fixed, one compiled network per shape of a row. Measured: float32
answers are bit-identical at every batch size and position and within 1e-5 of
torch per call.

What does not export falls back to torch, and :attr:`OpenVINONetwork.notes` says so.

Dimensions: R rows, then a fixed shape.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mezzotint.models.backends.ahead import compile_network
from mezzotint.models.backends.exporting import Exporter, RowShape, row_key
from mezzotint.models.backends.mapped import giving_back, return_memory, trim
from mezzotint.models.backends.quiet import conversion_failures, import_openvino
from mezzotint.models.backends.streams import denoiser_streams
from mezzotint.models.base import Model, Network
from mezzotint.models.networks import NetworkReady, TorchNetwork, is_preparing
from mezzotint.observe.interruption import check
from mezzotint.observe.stages import stage

__all__ = ["OpenVINONetwork", "room_for", "use_openvino"]

MAX_SHAPES = 4
"""Shapes of rows that one network keeps compiled; the one used longest ago goes first."""

_MAX_PACKED = 1024  # shapes of calls that are remembered
_RESTS_BYTES = 256 << 20  # of weights beside which what a call leaves is worth giving back
_DESCRIPTION_BYTES = 16 << 20  # of an export on disk, at the most, beside its weights
_MAX_COPIED_BYTES = 1 << 16  # of the inputs of a call that are copied to where others lay

_IGNORED = {
    "attention_slicing": "OpenVINO computes attention in its own blocks",
    "channels_last": "OpenVINO lays out weights itself",
}
"""Changes of a torch module that are nothing to OpenVINO, and why."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A compiled network and the requests that run it, one call at a time.

    Args:
        requests: Run it, each on threads of its own; the rows are dealt out among them.
        lone: Runs a single row, on all threads.
        shapes: Of one row of each answer; None where a shape is known only afterwards.
        kinds: Types of the inputs' elements, as numpy has them.
        num_bytes: Bytes that its weights are packed into.
        held: The numbers of its largest constant where they lie, which keeps the file mapped
            that all of them are mapped from; None if it has none.
        packed: Shapes of calls that its weights have been packed for.
        lent: Where the inputs of each request's latest call lie, if they are small.
        lock: Held while it runs.
    """

    requests: tuple[Any, ...]
    lone: Any
    shapes: tuple[tuple[int, ...] | None, ...]
    kinds: tuple[np.dtype[Any], ...]
    num_bytes: int
    held: Any = None
    packed: set[tuple[tuple[int, ...], ...]] = field(
        default_factory=set[tuple[tuple[int, ...], ...]]
    )
    lent: dict[Any, list[np.ndarray]] = field(default_factory=dict[Any, list[np.ndarray]])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lend(self, request: Any, arrays: list[np.ndarray]) -> None:
        """Let a request read its inputs where they lie, until it has run.

        OpenVINO's own way of taking arrays finds out anew for each what it is, which takes
        longer than a small network. Small ones of the shapes of the latest call are copied to
        where those lay: telling a request of a place takes longer than that.
        """
        known = self.lent.pop(request, None)  # put back when all lies where it says
        if known is not None and [a.shape for a in known] == [a.shape for a in arrays]:
            for place, array in zip(known, arrays, strict=True):
                np.copyto(place, array)
            self.lent[request] = known
            return
        openvino = import_openvino()
        is_small = sum(array.nbytes for array in arrays) <= _MAX_COPIED_BYTES
        kept = [array.copy() for array in arrays] if is_small else arrays
        for place, array in enumerate(kept):
            request.set_input_tensor(place, openvino.Tensor(array, shared_memory=True))
        if is_small:
            self.lent[request] = kept


class OpenVINONetwork:
    """A network that OpenVINO runs, made from one that torch runs.

    Safe to call from several threads; calls of one shape are serialised, and a shape
    that is being compiled stops no other.

    Args:
        source: The torch network; built only if an export is needed.
        role: Its role in the model; decoder and encoder may share weights.
        cache: Folder of exported networks, or None to keep them in memory only.
        cache_bytes: Bytes that the folder may take; 0 is no bound.
        num_threads: CPU threads per call; None lets OpenVINO choose.
        streams: Parts that the rows of a call are dealt into, computed side by side:
            less waiting for each other than all threads at one row after another.
        is_generator: Whether it draws whole pictures in one call, as a GAN does: layers are
            rearranged for it, and all threads share the work on a single row, which takes
            a second copy of the weights where there are several streams.
        precision: ``"f32"``, or ``"bf16"`` where the processor multiplies that fast.

    Attributes:
        options: Role, cache and threads, to make a network like this one.
        notes: Why torch answers in this network's place, or why no file is kept of it, if so.
    """

    def __init__(
        self,
        source: TorchNetwork,
        *,
        role: str,
        cache: Path | None = None,
        cache_bytes: int = 0,
        num_threads: int | None = None,
        streams: int = 1,
        is_generator: bool = False,
        precision: Literal["f32", "bf16"] = "f32",
    ) -> None:
        self.source = source
        self.role = role
        self.notes: tuple[str, ...] = ()
        self.options: dict[str, Any] = {
            "role": role, "cache": cache, "cache_bytes": cache_bytes,
            "num_threads": num_threads, "streams": streams, "is_generator": is_generator,
            "precision": precision,
        }  # fmt: skip
        self._streams = streams
        self._precision = precision
        self._is_generator = is_generator
        self._exporter = Exporter(
            source, role=role, folder=cache, max_bytes=cache_bytes, is_generator=is_generator
        )
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._compiled: OrderedDict[RowShape, _Compiled | None] = OrderedDict()
        self._made_for: dict[RowShape, RowShape] = {}  # what answers for a shape of rows
        self._compiling: dict[RowShape, threading.Lock] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of weights, once for each row shape that was compiled; before, what one takes."""
        packed = sum(c.num_bytes for c in list(self._compiled.values()) if c is not None)
        is_own = self.source.is_built and self.source.lender is None
        in_torch = self.source.num_bytes if is_own else 0
        expected = int(self.source.num_bytes * self._share)
        return packed * self._num_copies + in_torch if packed or in_torch else expected

    @property
    def is_compiled(self) -> bool:
        """Whether it has been made ready for a shape, so that its packed weights are there."""
        return bool(self._compiled)

    @property
    def is_held(self) -> bool:
        """Whether weights of it are in memory."""
        return self.is_compiled or self.source.is_built

    @property
    def _share(self) -> float:
        """How much of its bytes in float32 a network takes once its weights are packed."""
        return 0.5 if self._precision == "bf16" else 1.0

    @property
    def _num_copies(self) -> int:
        """Copies of the weights that a compiled shape has."""
        return 2 if self._is_generator and self._streams > 1 else 1

    @property
    def digest(self) -> str:
        """The digest of the weights."""
        return self.source.digest

    def __deepcopy__(self, memo: object) -> "OpenVINONetwork":
        """Return itself: a copy of a model shares its weights."""
        return self

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network once over all rows; float32 on the first input's device.

        A call that has begun is not stopped, whoever comes: OpenVINO's layers keep the shapes
        of a call that was cancelled in its middle, and answer the next one by them.

        Raises:
            Interrupted: If somebody came before it began, and it may be left then.
        """
        check()
        arrays = {name: _plain(tensor) for name, tensor in sorted(inputs.items())}
        compiled = self._find(arrays)
        if compiled is None:
            return self.source(**inputs)
        if is_preparing():
            if any(shape is None for shape in compiled.shapes):
                raise NetworkReady
            rows = len(next(iter(arrays.values())))
            return tuple(
                torch.zeros(rows, *shape) for shape in compiled.shapes if shape is not None
            )
        shapes = tuple(tuple(t.shape) for t in arrays.values())
        with compiled.lock:
            if shapes in compiled.packed:
                return self._infer(compiled, arrays)
            with giving_back(compiled.held):
                answers = self._infer(compiled, arrays)
            if len(compiled.packed) >= _MAX_PACKED:
                compiled.packed.clear()
            compiled.packed.add(shapes)
            return answers

    def rest(self) -> None:
        """Give back what calls of a large network left in memory, until the next call."""
        if self.source.num_bytes >= _RESTS_BYTES:
            for compiled in filter(None, list(self._compiled.values())):
                with compiled.lock:
                    compiled.lent.clear()
                    compiled.requests[0].get_compiled_model().release_memory()
            trim()

    def _find(self, arrays: Mapping[str, Tensor]) -> _Compiled | None:
        """Return the compiled network of a shape, compiling it once however many ask."""
        key = row_key(arrays)
        known = self._known(key)
        if known:
            return known[0]
        with self._lock:
            turn = self._compiling.setdefault(self._exporter.open_key(key), threading.Lock())
        with turn:
            known = self._known(key)
            if not known:
                compiled, made_for = self._prepare(arrays)
                known = (compiled,)
                with self._lock:
                    self._compiled[made_for] = compiled
                    dropped = [
                        self._compiled.popitem(last=False)
                        for _ in range(len(self._compiled) - MAX_SHAPES)
                    ]
                if dropped:
                    del dropped
                    return_memory()
            return known[0]

    def _known(self, key: RowShape) -> tuple[_Compiled | None, ...]:
        """Return what answers for a shape, if it was compiled and not dropped since."""
        with self._lock:
            made_for = self._made_for.get(key, key)
            if made_for not in self._compiled:
                made_for = key if key in self._compiled else self._exporter.open_key(key)
            if made_for not in self._compiled:
                return ()
            if len(self._made_for) >= _MAX_PACKED:
                self._made_for.clear()
            self._made_for[key] = made_for
            self._compiled.move_to_end(made_for)
            return (self._compiled[made_for],)

    def _infer(self, compiled: _Compiled, arrays: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run a compiled network; the answers are copied out of its buffers."""
        rows = len(next(iter(arrays.values())))
        whole = [
            np.ascontiguousarray(tensor.numpy(), dtype=kind)
            for tensor, kind in zip(arrays.values(), compiled.kinds, strict=True)
        ]
        parts = _deal(whole, min(len(compiled.requests), rows))
        working = compiled.requests[: len(parts)] if rows > 1 else (compiled.lone,)
        for request, part in zip(working, parts, strict=True):
            compiled.lend(request, part)
        if len(working) == 1:  # in this thread: another would have to be woken, and wake this one
            working[0].infer(share_outputs=True)
        else:
            _run_side_by_side(working)
        outputs = [
            [np.array(request.get_output_tensor(k).data, dtype=np.float32) for request in working]
            for k in range(len(compiled.shapes))
        ]
        return tuple(
            torch.as_tensor(part[0] if len(part) == 1 else np.concatenate(part)) for part in outputs
        )

    def _prepare(self, arrays: Mapping[str, Tensor]) -> tuple[_Compiled | None, RowShape]:
        """Read or export, then compile, for a shape; None if torch has to answer instead."""
        openvino = import_openvino()

        core = openvino.Core()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": self._streams,
        }
        if self._num_threads:
            settings["INFERENCE_NUM_THREADS"] = self._num_threads
        try:
            exported, made_for = self._export(core, arrays)
            self.notes = self._exporter.notes
            with stage("compiling", self.role, self.source.num_bytes):
                exported, num_bytes = self._lower(core, exported)
                model, held = compile_network(core, exported, settings, is_flat=self._is_flat)
                requests = tuple(model.create_infer_request() for _ in range(self._streams))
                lone = requests[0]
                if self._num_copies > 1:
                    settings["NUM_STREAMS"] = 1
                    both = compile_network(core, exported, settings, is_flat=self._is_flat)
                    lone = both[0].create_infer_request()
        except (
            *conversion_failures(),
            RuntimeError,
            TypeError,
            ValueError,
            NotImplementedError,
            OSError,
        ) as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
            self.notes = (
                f"the {self.role} network runs in torch: OpenVINO could not take it over "
                f"({type(error).__name__}: {reason})",
            )
            return None, row_key(arrays)
        if isinstance(exported, Path):
            trim()  # what packing the weights took; who traced has collected its garbage
        else:
            return_memory()
        shapes = tuple(map(_row_shape, model.outputs))
        kinds = tuple(np.dtype(port.get_element_type().to_dtype()) for port in model.inputs)
        return _Compiled(requests, lone, shapes, kinds, num_bytes, held), made_for

    @property
    def _is_flat(self) -> bool:
        """Whether its graph is arranged for the kernels, where bits stay the same."""
        return self._precision == "f32"

    def _export(self, core: Any, arrays: Mapping[str, Tensor]) -> tuple[Any, RowShape]:
        """Return the export for a call, see :meth:`Exporter.export`."""
        return self._exporter.export(core, arrays)

    def _lower(self, core: Any, exported: Any) -> tuple[Any, int]:
        """Return what is compiled of an export, and the bytes that its weights are packed into."""
        return exported, int(stored_bytes(exported) * self._share)


def stored_bytes(exported: Any) -> int:
    """Return the bytes of an export's constants."""
    weights = weights_of(exported)
    if weights is not None:
        return weights.stat().st_size
    return sum(int(constant.get_byte_size()) for constant in constants(exported))


def weights_of(exported: Any) -> Path | None:
    """Return the file that an export's constants are mapped from, if there is one."""
    return exported.with_suffix(".bin") if isinstance(exported, Path) else None


def constants(model: Any) -> list[Any]:
    """Return the constants of a network of OpenVINO's."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]


def _run_side_by_side(requests: tuple[Any, ...]) -> None:
    """Run requests on threads of their own, and wait for all.

    Raises:
        RuntimeError: If one of them failed.
    """
    for request in requests:
        request.start_async()
    failures: list[RuntimeError] = []
    for request in requests:  # all of them: the next call must not find one busy
        try:
            request.wait()
        except RuntimeError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _deal(arrays: list[np.ndarray], count: int) -> list[list[np.ndarray]]:
    """Deal rows out in order, as evenly as they go; parts are views."""
    rows = len(arrays[0])
    edges = [rows * k // count for k in range(count + 1)]
    return [[a[start:end] for a in arrays] for start, end in itertools.pairwise(edges)]


def _row_shape(output: Any) -> tuple[int, ...] | None:
    """Return the shape of one row of an answer, None where it is not fixed."""
    dimensions = list(output.get_partial_shape())[1:]
    if any(d.is_dynamic for d in dimensions):
        return None
    return tuple(int(d.get_length()) for d in dimensions)


def _plain(tensor: Tensor) -> Tensor:
    """Return a contiguous CPU tensor, float32 where it holds fractions."""
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    if tensor.is_cpu and tensor.dtype == kind and tensor.is_contiguous():
        return tensor.detach() if tensor.requires_grad else tensor
    return tensor.detach().to(device="cpu", dtype=kind).contiguous()


def use_openvino(
    model: Model, *, cache: Path | None, cache_bytes: int = 0, num_threads: int | None = None
) -> int:
    """Let OpenVINO answer for every network of a model that computes on the CPU in float32.

    Changes of torch modules that mean nothing to OpenVINO are left out of what it runs, and
    the model's notes say so.

    Args:
        model: The model; its networks are replaced in place, before its first request.
        cache: Folder of exported networks, or None for memory only.
        cache_bytes: Bytes that the folder may take; 0 is no bound. The networks of one model
            may always stay there: else it would be exported anew at every start.
        num_threads: CPU threads per call.

    Returns:
        Bytes that the folder may take with this model.
    """
    cache_bytes = room_for([n for _, n in _torch_networks(model)], cache_bytes)
    ignored = [
        note for note in _IGNORED if any(note in n.changes for _, n in _torch_networks(model))
    ]
    model.notes += tuple(
        f"{name} has no effect on {model.spec.name}: {_IGNORED[name]}; to have it, set "
        "models.backend to torch"
        for name in ignored
    )
    for role, network in _torch_networks(model):
        for name in ignored:
            network.change(name, _leave)
        draws = role == "decoder" and model.certifies_rows
        model.use_network(
            role,
            OpenVINONetwork(
                network,
                role=role,
                cache=cache,
                cache_bytes=cache_bytes,
                num_threads=num_threads,
                streams=denoiser_streams() if draws or role == "denoiser" else 1,
                is_generator=draws,
            ),
        )
    return cache_bytes


def room_for(networks: Sequence[TorchNetwork], cache_bytes: int, *, beside: int = 0) -> int:
    """Return what a folder of exports may take, so that those of some networks fit at once.

    Args:
        networks: The networks.
        cache_bytes: Bytes that the folder may take in any case; 0 is no bound.
        beside: Bytes of other exports that stay with them.
    """
    least = sum(network.num_bytes + _DESCRIPTION_BYTES for network in networks) + beside
    return max(cache_bytes, least) if cache_bytes else 0


def _leave(module: nn.Module) -> None:
    """Change nothing about a module."""


def _torch_networks(model: Model) -> Iterator[tuple[str, TorchNetwork]]:
    networks: list[tuple[str, Network]] = list(model.networks.items())
    for role, network in networks:
        if (
            isinstance(network, TorchNetwork)
            and network.device.type == "cpu"
            and network.dtype == torch.float32
            and network.offload is None
            and not network.packed
            and not network.stays_in_torch
        ):
            yield role, network
