"""Weights on disk: a network computes with weights that are mapped from a file.

A model that does not fit into memory draws slowly rather than not at all. Its weights are
written once, in the type that they compute in and at aligned addresses, to a file of ours:
whoever writes to the model's own files changes nothing, and answers have the bits of a
network in memory. From then on the system reads pages when they are used, and each layer
gives its own back when it is done, so that the process holds what a layer or two need.
"""

import contextlib
import hashlib
import mmap
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import WeightsError
from mezzotint.files import atomic_path
from mezzotint.models.backends.mapped import give_back_pages, give_back_untouched
from mezzotint.models.networks import ALIGNMENT, TorchNetwork
from mezzotint.observe.stages import stage

__all__ = ["OffloadToDisk", "disk_of"]

_FORMAT = 1  # raise when files of before can no longer be used


class OffloadToDisk:
    """Keeps the weights of networks in files, mapped.

    Args:
        folder: Where the files are; None takes a folder that goes with the process.

    Attributes:
        folder: The same; may be set until the first network is built.
    """

    shares_weights = True

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def take(self, network: TorchNetwork) -> None:
        """Keep a network's weights on disk; before it is built.

        Args:
            network: One whose part can be read mapped.
        """
        mapped, digest, num_bytes = network.mapped, network.digest, network.num_bytes
        assert mapped is not None  # noqa: S101 - whoever places networks asks before

        def build(dtype: torch.dtype) -> nn.Module:
            with mapped(dtype) as module:
                path = self._path(digest, dtype)
                if not path.is_file():
                    with stage("converting", "weights", num_bytes):
                        _write(module, dtype, path)
                _use(module, dtype, path)
            for layer in module.modules():
                if list(layer.parameters(recurse=False)):
                    layer.register_forward_hook(_leave)
            return module

        network.build_from(build)
        network.offload, network.num_bytes = self, 0

    @contextlib.contextmanager
    def bring(self, network: TorchNetwork) -> Generator[nn.Module]:
        """Give the module, whose weights come and go by themselves."""
        yield network.module

    def _path(self, digest: str, dtype: torch.dtype) -> Path:
        if self.folder is None:
            folder = tempfile.TemporaryDirectory(prefix="mezzotint-weights-")
            self.folder = Path(folder.name)
            weakref.finalize(self, folder.cleanup)
        self.folder.mkdir(parents=True, exist_ok=True)
        words = f"{_FORMAT}\0{digest}\0{dtype}\0{torch.__version__}"
        return self.folder / f"{hashlib.sha256(words.encode()).hexdigest()[:40]}.weights"


def _leave(layer: nn.Module, _inputs: Any, _answer: Any) -> None:
    """Give back the pages of a layer that has computed."""
    for weight in layer.parameters(recurse=False):
        give_back_pages(weight.data_ptr(), weight.nbytes)


def _weights(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[Tensor, torch.dtype, int]]:
    """Yield each weight, the type that it computes in, and where it lies in the file."""
    place = 0
    for weight in module.parameters():
        kind = dtype if weight.is_floating_point() else weight.dtype
        yield weight, kind, place
        end = place + weight.numel() * kind.itemsize
        place = -(-end // ALIGNMENT) * ALIGNMENT


def _write(module: nn.Module, dtype: torch.dtype, path: Path) -> None:
    """Write the weights of a module one after the other.

    Raises:
        WeightsError: If the disk has no room for them.
    """
    needed = sum(w.numel() * kind.itemsize + ALIGNMENT for w, kind, _ in _weights(module, dtype))
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise WeightsError(
            f"with offload disk these weights take {needed / 1e9:.1f} GB in {path.parent}, and "
            f"{free / 1e9:.1f} GB are free there; free some, or take offload none"
        )
    with atomic_path(path) as partial, partial.open("wb") as file:
        for weight, kind, place in _weights(module, dtype):
            file.write(b"\0" * (place - file.tell()))
            plain = weight.detach().to(kind).contiguous().flatten()
            file.write(plain.view(torch.uint8).numpy().data)
            give_back_untouched(weight.data_ptr(), weight.nbytes)


def _use(module: nn.Module, dtype: torch.dtype, path: Path) -> None:
    """Let a module compute with what is in a file; the mapping lives as long as it."""
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody writes to weights
        whole = torch.frombuffer(pages, dtype=torch.uint8)
    for weight, kind, place in list(_weights(module, dtype)):
        end = place + weight.numel() * kind.itemsize
        weight.data = whole[place:end].view(kind).reshape(weight.shape)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype, copy=True)
        else:
            buffer.data = buffer.data.clone()


def disk_of(network: Any) -> OffloadToDisk | None:
    """Return what keeps a network's weights on disk, if anything does."""
    offload = getattr(network, "offload", None)
    return offload if isinstance(offload, OffloadToDisk) else None
