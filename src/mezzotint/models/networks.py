"""Networks in torch: the oracle and the fallback behind every other backend.

A network is built on its first call, so a model whose networks another backend
answers for never imports diffusers or transformers. Once built it is in ``eval``
mode, needs no gradients and is not changed by a call.

Rows: a linear layer over (rows, features), as in time and pooled embeddings, is
the one place where torch's answer for a row depends on how many rows share the
call. :class:`RowLinear` takes such rows one by one.

Dimensions: R rows, F features.
"""

import contextlib
import copy
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

from mezzotint.errors import InvalidRequest
from mezzotint.models.parts import STORED_BYTES, Part
from mezzotint.models.reading import reading
from mezzotint.observe.interruption import check, interruption
from mezzotint.observe.stages import stage

__all__ = [
    "Call",
    "NetworkReady",
    "Offload",
    "Placement",
    "RowLinear",
    "TorchNetwork",
    "align_weights",
    "copy_layers",
    "is_preparing",
    "linear_by_row",
    "modules_by_name",
    "preparing",
    "use_channels_last",
    "use_row_linears",
]

Call = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, ...]]
"""How a module is called with named tensors and what of its answer is the output."""

Mapped = Callable[[torch.dtype], contextlib.AbstractContextManager[nn.Module]]
"""Told the type that is computed in, gives a module whose weights lie where they are stored."""

KEPT_FLOAT32 = frozenset({"timestep"})
"""Inputs that lose their meaning in half precision (999.5 has no float16)."""


_HOOKS = tuple(
    f"_forward_{when}hooks{more}" for when in ("", "pre_") for more in ("", "_with_kwargs")
)


def copy_layers(module: nn.Module, *, share_weights: bool = False) -> nn.Module:
    """Copy a module's layers as they were built, without what calls or the engine put on them.

    Another thread may be in the middle of a call whose adapters hang on the layers as
    hooks; a copy of those would go on adding one request's adapters to others.

    Args:
        module: Stays as it is.
        share_weights: Whether the copy has the module's own parameters and buffers.
    """
    memo: dict[int, Any] = {}
    if share_weights:
        memo |= {id(t): t for t in (*module.parameters(), *module.buffers())}
    for layer in module.modules():
        memo |= {id(getattr(layer, name)): OrderedDict() for name in _HOOKS}
    view = copy.deepcopy(module, memo)
    for layer in view.modules():
        # What the engine repaired on the module's own layer is bound to that layer.
        if layer.__dict__.pop("mezzotint_in_pairs", False):
            layer.__dict__.pop("forward", None)
    return view


def modules_by_name(module: nn.Module) -> dict[str, nn.Module]:
    """Return a module and all inside it by their dotted names, each once; its own is ""."""
    walk: Any = module  # its own annotations leave open what is yielded
    return dict(walk.named_modules())


def use_channels_last(module: nn.Module) -> None:
    """Lay out 4-D weights channels last; others stay."""
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - left out there


class NetworkReady(Exception):
    """Raised by a network that was called while :func:`preparing`: it could answer now."""


_rehearsal = threading.local()


@contextlib.contextmanager
def preparing() -> Generator[None]:
    """Let the networks this thread calls load and compile, and compute nothing.

    A network that knows the shapes of its answer gives zeros, any other raises
    :class:`NetworkReady`.
    """
    _rehearsal.is_on = True
    try:
        yield
    finally:
        _rehearsal.is_on = False


def is_preparing() -> bool:
    """Tell whether this thread's calls only load and compile."""
    return getattr(_rehearsal, "is_on", False)


def _look(_module: nn.Module, _inputs: object) -> None:
    """Raise if this thread's call is to be left."""
    check()


@contextlib.contextmanager
def _leaving() -> Generator[None]:
    """Let each layer look whether this thread's call is to be left, where it may be."""
    if interruption() is None:
        yield
        return
    handle = register_module_forward_pre_hook(_look)
    try:
        check()
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where networks compute and in which type: one for all networks of a model.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        dtype: Type of weights and activations.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @classmethod
    def choose(
        cls, device: str = "cpu", dtype: str | torch.dtype | None = None, *, stored: str = "F32"
    ) -> "Placement":
        """Apply the type policy.

        On a CPU float16 computes in float32: it is slow there and overflows.
        Elsewhere the type is the one asked for, or else the one the weights are
        stored in.

        Args:
            device: The device.
            dtype: ``"float32"``, ``"float16"``, ``"bfloat16"``, or None.
            stored: Type of most weights, as safetensors spells it; those in 8 bits
                are spread out to bfloat16.

        Raises:
            InvalidRequest: If the type is none of these.
        """
        names = {
            "float32": torch.float32,
            "float16": torch.float16,
            "bfloat16": torch.bfloat16,
            "F32": torch.float32,
            "F16": torch.float16,
            "BF16": torch.bfloat16,
        }
        known = names.get(dtype) if isinstance(dtype, str) else dtype
        if dtype is not None and known not in names.values():
            raise InvalidRequest(
                f"dtype must be float32, float16 or bfloat16, got {dtype}", field="dtype"
            )
        if device == "cpu":
            wanted = known or torch.float32
            return cls(device, torch.float32 if wanted == torch.float16 else wanted)
        if known is None and STORED_BYTES.get(stored, 4) == 1:
            known = torch.bfloat16
        return cls(device, known or names.get(stored, torch.float32))

    @property
    def is_float16(self) -> bool:
        """Whether values beyond 65504 overflow."""
        return self.dtype == torch.float16

    @property
    def is_float32(self) -> bool:
        """Whether there is nothing wider to retry in."""
        return self.dtype == torch.float32

    def in_float32(self) -> "Placement":
        """Return the same place in float32."""
        return Placement(self.device, torch.float32)


ALIGNMENT = 64  # bytes; what torch's own CPU allocator gives


class RowLinear(nn.Linear):
    """A linear layer whose answer for a row does not depend on its neighbours.

    Attributes:
        every_row: True takes token inputs (R, ..., F) row by row as well; set by
            the engine where a layer failed the certificate.
    """

    every_row: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; (R, F) inputs are taken row by row, but not while being exported."""
        weight = self.weight  # a packed one is spread out anew for each who asks
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return F.linear(input, weight, self.bias)
        if input.ndim == 2 and input.is_cuda:
            return linear_by_row(input, weight, self.bias)
        if input.shape[0] > 1 and (input.ndim == 2 or self.every_row):
            # A clone starts at an aligned address, as a row alone does.
            rows = [F.linear(row.clone(), weight, self.bias) for row in torch.split(input, 1)]
            return torch.cat(rows)
        return F.linear(input, weight, self.bias)


def linear_by_row(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear layer as one small product per row, in a single launch.

    On a GPU a launch per row would cost more than the products themselves.

    Args:
        rows: Shape (R, F).
        weight: Shape (G, F).
        bias: Shape (G,), or None.

    Returns:
        Shape (R, G).
    """
    products = torch.bmm(rows.unsqueeze(1), weight.t().expand(len(rows), -1, -1)).squeeze(1)
    return products if bias is None else products + bias


def use_row_linears(module: nn.Module) -> nn.Module:
    """Turn every plain linear layer into a :class:`RowLinear`, weights untouched.

    Call it again after adapters brought layers of their own.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = RowLinear
    return module


def align_weights(module: nn.Module) -> nn.Module:
    """Move weights to addresses that are multiples of 64 bytes.

    A weight mapped from a file lies where the file puts it, and on a CPU the
    kernel chosen for an address, so the last bit of an answer, depends on it.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return module


class Offload(Protocol):
    """How a network that lives on the CPU comes to its device for the length of a call."""

    shares_weights: bool
    """Whether another module over the same weights may come and go in the same way."""

    def bring(self, network: "TorchNetwork") -> contextlib.AbstractContextManager[nn.Module]:
        """Give the network's module, able to compute on the network's device."""
        ...


class TorchNetwork:
    """A torch module behind the :class:`~mezzotint.models.base.Network` seam.

    Args:
        build: Makes the module with its weights in a type; called once, when needed.
        call: Calls the module with named tensors.
        dtype: Type the module computes in.
        device: Where it computes.
        num_bytes: Bytes of its weights.
        digest: sha256 of its weights and configuration, for compiled copies.
        config: The module's configuration, where it has one.

    Attributes:
        offload: How the module comes to its device; None where it stays there.
        field: The request field that names what the network is part of, for errors of
            its files.
        mapped: Gives the module with its weights mapped from their files, which are watched
            meanwhile; None where they cannot be.
        packed: What its weights stay in memory as, see :class:`~mezzotint.models.parts.Part`;
            such a network runs in torch.
        fixes_sizes: Whether the call reckons with the sides of a picture as plain numbers,
            so that what was traced at one size says nothing of another.
        stays_in_torch: Whether no other backend answers what torch does.
        lender: The network whose module this one calls in another way; None for one's own.
            Letting go of one lets go of the other, or its weights would stay for nobody.
    """

    def __init__(
        self,
        build: Callable[[torch.dtype], nn.Module],
        call: Call,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        num_bytes: int = 0,
        digest: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.config: Mapping[str, Any] = config or {}
        self._build = build
        self._module: nn.Module | None = None
        self._held: Callable[[], nn.Module | None] = lambda: None  # the last, if it is anywhere
        self._lock = threading.Lock()
        self._changes: dict[str, Callable[[nn.Module], Any]] = {}
        self.offload: Offload | None = None
        self.mapped: Mapped | None = None
        self.lender: TorchNetwork | None = None
        self.field = "model"
        self.fixes_sizes = self.stays_in_torch = False
        self.packed = ""
        self.call = call
        self.dtype = dtype
        self.device = torch.device(device)
        self.num_bytes = num_bytes
        self.digest = digest

    @classmethod
    def of(
        cls,
        part: Part,
        call: Call,
        placement: Placement,
        *,
        build: Callable[[torch.dtype], nn.Module] | None = None,
    ) -> "TorchNetwork":
        """Make the network of a part."""
        width = placement.dtype.itemsize if part.packed else STORED_BYTES.get(part.stored, 4)
        network = cls(
            build or part.build,
            call,
            dtype=placement.dtype,
            device=placement.device,
            num_bytes=part.num_bytes * placement.dtype.itemsize // width,
            digest=part.digest,
            config=part.config,
        )
        network.mapped = part.mapped if build is None else None
        network.packed = part.packed
        return network

    def build_from(self, build: Callable[[torch.dtype], nn.Module]) -> None:
        """Let something else build the module; before its first use."""
        with self._lock:
            self._build, self._held = build, lambda: None

    @property
    def module(self) -> nn.Module:
        """The module, built and moved to its device on first use."""
        with self._lock:
            if self._module is None:
                self._module = self._held()
            if self._module is None:
                with (
                    stage("reading", "weights", self.num_bytes),
                    reading("a network's weights", self.field),
                ):
                    module = self._build(self.dtype)
                module = module.to(device="cpu" if self.offload else self.device)
                align_weights(module.eval().requires_grad_(False))
                use_row_linears(module)
                for change in self._changes.values():
                    change(module)
                self._module, self._held = module, weakref.ref(module)
            return self._module

    def let_go(self) -> None:
        """Forget the module, whose weights another backend has now; a later use builds it again.

        Who holds the module keeps it; a later use then takes that one, adapters and all.
        """
        with self._lock:
            self._module = None
        if self.lender is not None:
            self.lender.let_go()

    @property
    def changes(self) -> tuple[str, ...]:
        """Names of what :meth:`change` was asked for."""
        return tuple(self._changes)

    def change(self, name: str, how: Callable[[nn.Module], Any]) -> None:
        """Change the module in place, when it is built or now if it is.

        Args:
            name: Of the change; a second one of that name replaces it.
            how: What to do with the module.
        """
        with self._lock:
            self._changes[name] = how
            if (module := self._held()) is not None:
                how(module)

    def like(
        self,
        build: Callable[[torch.dtype], nn.Module],
        *,
        call: Call | None = None,
        dtype: torch.dtype | None = None,
        num_bytes: int = 0,
        digest: str = "",
    ) -> "TorchNetwork":
        """Return another network at the same place, offloaded in the same way.

        Args:
            build: Makes its module, maybe with layers of its own over this one's weights.
            call: How to call it; as this one if None.
            dtype: What it computes in; as this one if None.
            num_bytes: Bytes of weights that it adds.
            digest: Its digest.

        Raises:
            InvalidRequest: If this network's layers come and go one by one.
        """
        if self.offload is not None and not self.offload.shares_weights:
            raise InvalidRequest(
                "tiling, turbo and step caches need whole networks; with offload sequential "
                "layers come and go one by one. Use offload model or none",
                field="offload",
                value="sequential",
                allowed="none, model",
            )
        other = TorchNetwork(
            build,
            call or self.call,
            dtype=dtype or self.dtype,
            device=self.device,
            num_bytes=num_bytes,
            digest=digest,
        )
        other.offload, other.field = self.offload, self.field
        other.fixes_sizes, other.packed = self.fixes_sizes, self.packed
        other.stays_in_torch = self.stays_in_torch
        return other

    @property
    def is_built(self) -> bool:
        """Whether the weights are in memory."""
        return self._module is not None

    is_held = is_built  # by the name that all networks have for it

    def __deepcopy__(self, memo: object) -> "TorchNetwork":
        """Return itself: a copy of a model shares its weights."""
        return self

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the module once over all rows; float32 on the first input's device.

        Raises:
            NetworkReady: Instead of running, while :func:`preparing`.
            Interrupted: If the call may be left and somebody came meanwhile.
        """
        device = next(iter(inputs.values())).device
        if is_preparing():
            _ = self.module
            raise NetworkReady
        cast = {name: self._cast(name, tensor) for name, tensor in inputs.items()}
        with torch.no_grad(), _leaving():
            if self.offload is None:
                outputs = self.call(self.module, cast)
            else:
                with self.offload.bring(self) as module:
                    outputs = self.call(module, cast)
        return tuple(output.to(device=device, dtype=torch.float32) for output in outputs)

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        """Move an input to the module's device and type; whole numbers stay whole."""
        if name in KEPT_FLOAT32 or not tensor.is_floating_point():
            return tensor.to(self.device)
        return tensor.to(device=self.device, dtype=self.dtype)
