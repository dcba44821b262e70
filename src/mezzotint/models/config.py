"""Config of the model room: where models are, and what may be loaded. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mezzotint.bounds import Pattern, Range
from mezzotint.errors import InvalidRequest
from mezzotint.files import user_home
from mezzotint.plain import Checked, convert, field_types

__all__ = ["ModelsConfig", "PlacementConfig", "read_placement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConfig(Checked):
    """Where a model computes, and what it trades for memory.

    Args:
        device: ``"auto"`` takes CUDA, then MPS, then the CPU; or ``"cpu"``,
            ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"``; as the model
            and device have it if None.
        offload: ``"model"`` keeps one network at a time on the device,
            ``"sequential"`` one layer at a time; both need a device that is not
            the CPU. There ``"disk"`` computes with weights mapped from a file, written once:
            a model larger than memory draws slowly.
        attention_slicing: Compute attention some heads at a time, without torch's fused
            kernels: slower, and less memory only where there are none (not on a CPU).
        vae_slicing: Decode pictures one at a time.
        vae_tiling: Decode large pictures in overlapping tiles; changes the picture
            a little, so it is never ``exact``.
        channels_last: Lay out convolution weights for faster kernels.
        quantize: What linear layers of the denoiser compute in where ``turbo`` draws in torch,
            through torchao: ``"int8"`` and ``"float8"`` products, the second on GPUs of
            compute capability 8.9 or later, or their weights alone, ``"int8_weights"`` and
            ``"float8_weights"``.
    """

    device: Annotated[
        str, Pattern(r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$", "auto, cpu, mps, cuda or cuda:N")
    ] = "auto"
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    offload: Literal["none", "model", "sequential", "disk"] = "none"
    attention_slicing: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    channels_last: bool = False
    quantize: Literal["none", "int8", "float8", "int8_weights", "float8_weights"] = "none"


def read_placement(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check placement options that are one model's own, whatever holds for the others.

    Args:
        options: Fields of :class:`PlacementConfig` by name. All models of a process compute on
            one device, so ``device`` is none of them.

    Returns:
        The same, converted.

    Raises:
        InvalidRequest: If an option is unknown, or has a value that it cannot have.
    """
    types = {name: kind for name, kind in field_types(PlacementConfig).items() if name != "device"}
    for name in options:
        if name not in types:
            raise InvalidRequest(
                f"placement of a model must be of {', '.join(types)}, got {name!r}",
                field=f"placement.{name}",
                allowed=", ".join(types),
            )
    return {k: convert(value, types[k], f"placement.{k}") for k, value in options.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsConfig(Checked):
    """Where models are, how many bytes may be loaded, and what is refused.

    Args:
        home: Folder of the installation; "" is :func:`mezzotint.files.user_home`.
        max_bytes: Weights kept in memory at once, with those of adapters and upscalers; 0 is no
            bound. One model, and the adapters asked for with it, may always be loaded; images of
            another that does not fit beside those under way wait until there is room. Networks
            compiled for the CPU may take as much of the disk, or what the largest model takes.
        allow_paths: Whether a request may name a model by path or Hub id. Only for
            the command line, Python, and servers that listen on loopback.
        allow_downloads: Whether Hub ids may be fetched over the network.
        allow_handler_code: Whether archives with Python handler code may run at all.
        allowed_handlers: sha256 of the archives whose handler code may run.
        backend: Who computes networks on a CPU: ``"openvino"``, ``"torch"``; ``"auto"`` is
            OpenVINO there and torch elsewhere.
        placement: Where models compute, and what they trade for memory; a model's card may
            say otherwise for itself.
        shared_url: Folder or ``s3://bucket/prefix`` where machines share finished ``exact``
            pictures, each for the key that asked for it, and what they learned: certificates,
            measured seconds, ranges of int8, compiled networks. Models that
            ``mezzotint models share`` has put there are taken by machines that lack them;
            "" shares nothing. Whoever may write there is trusted as this machine is.
    """

    where: ClassVar[str] = "models"
    home: str = ""
    max_bytes: Annotated[int, Range(0, 1 << 50)] = 8 << 30
    allow_paths: bool = True
    allow_downloads: bool = True
    allow_handler_code: bool = False
    allowed_handlers: tuple[
        Annotated[str, Pattern(r"^[0-9a-f]{64}$", "a sha256, 64 digits of 0-9 and a-f")], ...
    ] = ()
    backend: Literal["auto", "torch", "openvino"] = "auto"
    placement: PlacementConfig = PlacementConfig()
    shared_url: str = ""

    @property
    def home_path(self) -> Path:
        """The folder of the installation."""
        return Path(self.home).expanduser() if self.home else user_home()

    @property
    def models_path(self) -> Path:
        """The folder of the model store."""
        return self.home_path / "models"
