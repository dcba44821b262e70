"""Filling: a network of a configuration, and the weights that go into it."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mezzotint.errors import CardError, WeightsError
from mezzotint.models.backends.mapped import give_back_untouched
from mezzotint.models.backends.packed import Packed, pack_linear
from mezzotint.models.exported import exported_class
from mezzotint.models.parts import read_json
from mezzotint.models.quiet_loading import quiet_loading, sole_building

__all__ = ["LeavingPages", "empty_network", "fill", "from_folder"]

_TOLD = 5
_LEAST_BYTES = 1 << 20  # of a weight whose pages are worth a call of the system
_COMPUTED = {"inv_freq", "num_batches_tracked", "position_ids"}  # weights that are no weights


def empty_network(class_name: str, config: Mapping[str, Any], *, where: object) -> nn.Module:
    """Build a network whose weights are not in memory yet.

    Args:
        class_name: One of diffusers' classes, or a CLIP text model of transformers.
        config: Its configuration.
        where: What names it, for messages.
    """
    import transformers
    from accelerate import init_empty_weights

    with sole_building(), init_empty_weights(include_buffers=False):
        if class_name.startswith("CLIP"):
            return exported_class("transformers", class_name, where=where)(
                transformers.CLIPTextConfig(**config)
            )
        cls = exported_class("diffusers", class_name, where=where)
        return cls.from_config(dict(config), trust_remote_code=False)


def fill(
    module: nn.Module,
    weights: Mapping[str, Tensor | Packed],
    dtype: torch.dtype,
    *,
    where: object,
) -> nn.Module:
    """Put weights into a network, in place; what the network has no place for is left out.

    Args:
        module: An empty network.
        weights: By the module's own names. Packed ones stay so in linear layers.
        dtype: What it computes in.
        where: The file or folder, for messages.

    Returns:
        The same module.

    Raises:
        WeightsError: If a weight is missing, or has another shape than the network.
    """
    wanted, name = module.state_dict(), type(module).__name__
    if missing := sorted(set(wanted) - set(weights)):
        raise WeightsError(f"{where}: {name} lacks {missing[0]} ({len(missing)} missing)")
    plain: dict[str, Tensor] = {}
    for place, tensor in wanted.items():
        given = weights[place]
        if tuple(given.shape) != tuple(tensor.shape):
            raise WeightsError(
                f"{where}: {name} {place} has shape {tuple(given.shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
        owner, _, leaf = place.rpartition(".")
        layer = module.get_submodule(owner)
        if isinstance(given, Packed) and leaf == "weight" and type(layer) is nn.Linear:
            pack_linear(layer, given, dtype)
        else:
            plain[place] = given.numbers(dtype) if isinstance(given, Packed) else given.to(dtype)
    module.load_state_dict(plain, assign=True, strict=False)
    return module


class LeavingPages(TorchDispatchMode):
    """Inside the block, a mapped weight leaves memory when it was copied into another type.

    It is done where the weight is copied, in its thread, while whoever copies it holds it. What
    other threads copy stays.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator as it is; of one that copies to another type, leave the source."""
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            given = args[0]
            is_plain = given.device.type == "cpu" and given.layout == torch.strided
            # Of one that is spread out, its bytes do not tell which memory is its own.
            if is_plain and given.is_contiguous() and given.nbytes >= _LEAST_BYTES:
                give_back_untouched(given.data_ptr(), given.nbytes)
        return made


def from_folder(
    path: Path,
    library: str,
    class_name: str,
    dtype: torch.dtype,
    *,
    variant: str | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Any:
    """Let a library build a network from its folder, with every weight accounted for.

    Args:
        path: The folder.
        library: Whose class it is.
        class_name: Its class.
        dtype: What weights are given in.
        variant: Set of weights, None for the plain ones.
        state: The weights, where they are not read from the folder; for transformers.

    Raises:
        CardError: If the library has no such class.
        WeightsError: If weights are missing, or do not fit the configuration.
    """
    cls = exported_class(library, class_name, where=path, kind=nn.Module)
    options: dict[str, Any] = {"dtype": dtype}
    if variant:
        options["variant"] = variant
    if state is not None:
        config = cls.config_class.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        config.__dict__.pop("quantization_config", None)
        options |= {"state_dict": dict(state), "config": config}
    try:
        with quiet_loading():
            module, report = cls.from_pretrained(
                path if state is None else None,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (ValueError, RuntimeError, OSError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{path}: weights do not fit {class_name}: {reason}{_taken_for_granted(path, cls)}"
        ) from error
    problems = {
        kind: sorted(map(str, report.get(kind) or ()))
        for kind in ("missing_keys", "mismatched_keys", "error_msgs")
    }
    problems["missing_keys"] += sorted(
        name for name, weight in module.named_parameters() if weight.is_meta
    )
    granted = _taken_for_granted(path, cls)
    if granted and library == "diffusers":  # the network may be smaller than its weights
        left = map(str, report.get("unexpected_keys") or ())
        problems["unexpected_keys"] = sorted(
            key for key in left if key.rpartition(".")[2] not in _COMPUTED
        )
    for kind, names in problems.items():
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            raise WeightsError(f"{path}: weights do not fit {class_name}: {kind} {shown}{granted}")
    return module


def _taken_for_granted(path: Path, cls: Any) -> str:
    """Say which keys a configuration lacks, so that those of the class were taken; "" for none.

    A configuration that is whole but old lacks a few as well, so it is said only of weights
    that do not fit.
    """
    try:
        given = set(read_json(path / "config.json"))
        known = inspect.signature(cls.__init__).parameters
    except (WeightsError, CardError, ValueError, TypeError):
        return ""
    lacking = sorted(set(known) - given - {"self", "args", "kwargs", "config"})
    if not lacking:
        return ""
    more = f" and {len(lacking) - _TOLD} more" if len(lacking) > _TOLD else ""
    return (
        f"; its config.json lacks {', '.join(lacking[:_TOLD])}{more}, for which the class's "
        "defaults were taken"
    )
