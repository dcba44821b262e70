"""LoRA: low-rank changes to a model, for some rows of a call, never for the weights.

A LoRA adds ``scale * up(down(x))`` to the answer of a layer. Here that sum is made
by hooks that exist only while one network call runs, so base weights are neither
fused nor wrapped, and a request without a LoRA cannot notice one before it. The
scale is a tensor with one entry per row: requests that differ in scale share calls.
Low-rank products are made row by row, so a row's answer does not depend on its
neighbours.

Files of peft, diffusers (old and new), kohya and single-transformer trainers are
read; diffusers' own conversion does the renaming.

Dimensions: R rows, K LoRAs, r rank.
"""

import copy
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.models.adapters.flat_layers import from_flat
from mezzotint.models.adapters.sd3_layers import from_kohya
from mezzotint.models.adapters.torch_backed import TorchBacked, torch_backed
from mezzotint.models.base import Conditioning, Model, Prompt
from mezzotint.models.digests import DIGESTS
from mezzotint.models.networks import modules_by_name
from mezzotint.models.parts import LORA_HEADER_BYTES, combine_digests, read_header

__all__ = [
    "LORA_SCALES",
    "LoraNetwork",
    "LoraPair",
    "LoraWeights",
    "by_layer",
    "check_fit",
    "read_lora",
    "with_loras",
]

LORA_SCALES = "lora_scales"
"""Name of the conditioning tensor with one scale per LoRA, shape (R, K)."""

_ROLES = {
    "unet": "denoiser",
    "transformer": "denoiser",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
}
_TRANSFORMERS = (
    "chroma",
    "dit",
    "flux",
    "flux2",
    "flux2-dev",
    "lumina2",
    "pixart",
    "qwen-image",
    "qwen-image-2",
    "sana",
    "sd3",
    "z-image",
)
_DOWN, _UP = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two matrices of one layer; ``factor`` is alpha / rank.

    ``down`` has shape (r, in) or (r, in, kh, kw), ``up`` (out, r) or (out, r, 1, 1).
    """

    down: Tensor
    up: Tensor
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraWeights:
    """A LoRA file: its content digest and its pairs by network role and layer name."""

    name: str
    digest: str
    pairs: Mapping[str, Mapping[str, LoraPair]] = field(repr=False)


def read_lora(path: str | Path, *, name: str | None = None, family: str = "sd") -> LoraWeights:
    """Read a LoRA file or a folder that holds one.

    Args:
        path: A ``.safetensors`` file, or a folder with exactly one.
        name: Name for messages; the file's stem if None.
        family: Family of the model it is for (``ModelSpec.family``); decides
            how foreign layer names are translated.

    Raises:
        WeightsError: If the file is missing, corrupt, a pickle, or no LoRA.
    """
    file = _only_file(Path(path))
    read_header(file, most_bytes=LORA_HEADER_BYTES)
    digest = DIGESTS.digest(file)
    with DIGESTS.loading({file: digest}):
        stored = {key: tensor.clone() for key, tensor in load_file(file).items()}
    state = _normalised(stored, family, file)
    pairs: dict[str, dict[str, LoraPair]] = {}
    for key in sorted(k for k in state if k.endswith(_DOWN)):
        layer = key.removesuffix(_DOWN)
        prefix, _, module = layer.partition(".")
        up = state.get(layer + _UP)
        if up is None or prefix not in _ROLES:
            raise WeightsError(f"{file}: no LoRA layer can be made of {key}")
        rank = state[key].shape[0]
        alpha = state.get(layer + ".alpha")
        factor = float(alpha) / rank if alpha is not None else 1.0
        pairs.setdefault(_ROLES[prefix], {})[module] = LoraPair(
            state[key].float(), up.float(), factor
        )
    if not pairs:
        raise WeightsError(f"{file} holds no LoRA layers (expected pairs of down and up weights)")
    return LoraWeights(name=name or file.stem, digest=digest, pairs=pairs)


def _only_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise WeightsError(f"expected exactly one .safetensors file in {path}, found {len(files)}")
    return files[0]


def _normalised(state: dict[str, Tensor], family: str, file: Path) -> dict[str, Tensor]:
    """Rename the layers of any known trainer to ``role.layer.lora_A.weight`` and ``.alpha``."""
    from diffusers.loaders import lora_pipeline

    mixins: dict[str, Any] = {
        "chroma": lora_pipeline.FluxLoraLoaderMixin,
        "flux": lora_pipeline.FluxLoraLoaderMixin,
        "flux2": lora_pipeline.Flux2LoraLoaderMixin,
        "flux2-dev": lora_pipeline.Flux2LoraLoaderMixin,
        "lumina2": lora_pipeline.Lumina2LoraLoaderMixin,
        "pixart": lora_pipeline.SanaLoraLoaderMixin,  # which renames nothing
        "qwen-image": lora_pipeline.QwenImageLoraLoaderMixin,
        "qwen-image-2": lora_pipeline.QwenImageLoraLoaderMixin,
        "sana": lora_pipeline.SanaLoraLoaderMixin,
        "sd3": lora_pipeline.SD3LoraLoaderMixin,
        "sdxl": lora_pipeline.StableDiffusionXLLoraLoaderMixin,
        "z-image": lora_pipeline.ZImageLoraLoaderMixin,
    }
    mixin = mixins.get(family, lora_pipeline.StableDiffusionLoraLoaderMixin)
    options = {"return_alphas": True} if family in ("chroma", "flux") else {}
    state = from_kohya(state) if family == "sd3" else from_flat(state, family)
    state = _with_role(state, family)
    try:
        loaded = mixin.lora_state_dict(dict(state), **options)
    except (ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"{file} is not a LoRA that diffusers can read: {error}") from None
    renamed, alphas = cast(
        "tuple[dict[str, Tensor], dict[str, Any] | None]",
        loaded if isinstance(loaded, tuple) else (loaded, None),
    )
    result: dict[str, Tensor] = {}
    for key, value in renamed.items():
        if match := _MATRIX.match(key):
            suffix = _DOWN if match["matrix"] in ("lora_A", "down", "lora_down") else _UP
            result[_layer(match["layer"]) + suffix] = value
    for key, value in (alphas or {}).items():
        layer = key.removesuffix(".alpha")
        match = _MATRIX.match(layer)
        result[_layer(match["layer"] if match else layer) + ".alpha"] = torch.tensor(float(value))
    return result


_MATRIX = re.compile(
    r"(?P<layer>.+?)(?:\.lora_linear_layer|\.lora|_lora)?"
    r"\.(?P<matrix>lora_A|lora_B|lora_down|lora_up|down|up)(?:\.default)?\.weight$"
)
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def _layer(name: str) -> str:
    """Name a layer as the module does, without the words that trainers put into it."""
    name = name.replace(".processor", "")
    head, _, last = name.rpartition(".")
    if name.startswith("text_encoder"):
        return f"{head}.{_TEXT_PROJECTIONS.get(last, last)}"
    is_alone = ".single_transformer_blocks." in name  # FLUX.2's: the layer itself, not a list
    return f"{name}.0" if last == "to_out" and not is_alone else name


def _with_role(state: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """Give a file of one bare network (peft's own layout) the role it must mean."""
    role = "transformer" if family in _TRANSFORMERS else "unet"
    stripped = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    named = tuple(f"{prefix}." for prefix in (*_ROLES, "diffusion_model"))
    if any(key.startswith((*named, "lora_")) for key in stripped):
        return stripped
    return {f"{role}.{key}": value for key, value in stripped.items()}


class LoraNetwork:
    """A torch network with LoRAs added while it runs.

    Args:
        source: The network without them; shared, never changed. Other adapters that
            run on torch may stand between.
        loras: Pairs by layer name, one mapping per LoRA.
        names: Names of the LoRAs, for messages.

    Attributes:
        scales: One scale per LoRA for calls whose inputs carry none (text encoders).

    Raises:
        WeightsError: If a layer does not exist or has another shape.
    """

    def __init__(
        self,
        source: TorchBacked,
        loras: Sequence[Mapping[str, LoraPair]],
        *,
        names: Sequence[str],
    ) -> None:
        self.source = source
        self.scales: tuple[float, ...] = (1.0,) * len(loras)
        self._lock = threading.Lock()
        self._held = source.module  # held, or a network that is let go builds other layers
        modules = modules_by_name(self._held)
        self._pairs = tuple(by_layer(pairs, modules) for pairs in loras)
        for name, pairs in zip(names, self._pairs, strict=True):
            check_fit(name, pairs, modules)
        self._layers = {
            layer: modules[layer] for layer in sorted({k for pairs in self._pairs for k in pairs})
        }

    def __deepcopy__(self, memo: object) -> "LoraNetwork":
        """Return itself: a copy of a model shares its weights."""
        return self

    @property
    def module(self) -> nn.Module:
        """The module of the network without LoRAs."""
        return self.source.module

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the network without LoRAs."""
        return self.source.config

    @property
    def num_bytes(self) -> int:
        """Bytes of the LoRAs alone; the base network counts for itself."""
        pairs = (pair for pairs in self._pairs for pair in pairs.values())
        return sum(4 * (pair.down.numel() + pair.up.numel()) for pair in pairs)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network once over all rows; ``lora_scales`` (R, K) may differ per row."""
        scales = inputs.pop(LORA_SCALES, None)
        rows = next(iter(inputs.values())).shape[0]
        if scales is None:
            scales = torch.tensor([self.scales]).repeat(rows, 1)
        with self._lock, self._hooked(scales):
            return self.source(**inputs)

    @contextmanager
    def _hooked(self, scales: Tensor) -> Generator[None]:
        """Add the LoRAs to their layers for the time of the body."""
        with ExitStack() as stack:
            for layer, module in self._layers.items():
                added = [
                    (pairs[layer], scales[:, k])
                    for k, pairs in enumerate(self._pairs)
                    if layer in pairs
                ]
                handle = module.register_forward_hook(_hook(added))
                stack.callback(handle.remove)
            yield


def _hook(added: Sequence[tuple[LoraPair, Tensor]]) -> Callable[..., Tensor]:
    """Return a hook that adds the LoRAs of one layer to its answer, in this thread alone."""
    owner = threading.get_ident()

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if threading.get_ident() != owner:
            return output
        x = inputs[0]
        for pair, scales in added:
            changes = [
                _change(module, x[k : k + 1], pair) * (float(scale) * pair.factor)
                if float(scale)
                else torch.zeros_like(output[k : k + 1])
                for k, scale in enumerate(scales)
            ]
            output = output + torch.cat(changes).to(output.dtype)
        return output

    return add


def _change(module: nn.Module, x: Tensor, pair: LoraPair) -> Tensor:
    """Return ``up(down(x))`` for one row, in the type of the row."""
    down = pair.down.to(device=x.device, dtype=x.dtype)
    up = pair.up.to(device=x.device, dtype=x.dtype)
    if isinstance(module, nn.Conv2d):
        if down.ndim == 2:
            down, up = down[:, :, None, None], up[:, :, None, None]
        low = functional.conv2d(
            x, down, stride=module.stride, padding=module.padding, dilation=module.dilation
        )
        return functional.conv2d(low, up)
    return functional.linear(functional.linear(x, down.flatten(1)), up.flatten(1))


def by_layer(
    pairs: Mapping[str, LoraPair], modules: Mapping[str, nn.Module]
) -> dict[str, LoraPair]:
    """Name the layers of a LoRA as the network does, where it has them.

    Text encoders had a prefix, or none, in other versions of transformers; trainers write
    underscores for dots.
    """
    flat = {name.replace(".", "_"): name for name in modules}
    found: dict[str, LoraPair] = {}
    for layer, pair in pairs.items():
        bare = layer.removeprefix("text_model.")
        others = (layer, flat.get(layer, layer), bare if bare != layer else f"text_model.{layer}")
        found[next((name for name in others if name in modules), layer)] = pair
    return found


def check_fit(name: str, pairs: Mapping[str, LoraPair], modules: Mapping[str, nn.Module]) -> None:
    """Refuse a LoRA made for another architecture, naming the first layer that does not fit."""
    missing = [layer for layer in pairs if layer not in modules]
    if missing:
        raise WeightsError(
            f"LoRA {name} does not fit this model: it changes {len(pairs)} layers, "
            f"{len(missing)} of which do not exist here, e.g. {missing[0]}"
        )
    for layer, pair in pairs.items():
        weight: Any = getattr(modules[layer], "weight", None)
        expected = tuple(weight.shape[:2]) if isinstance(weight, Tensor) else ()
        found = (pair.up.shape[0], pair.down.shape[1])
        if found != expected:
            raise WeightsError(
                f"LoRA {name} does not fit this model: layer {layer} maps "
                f"{expected[1:]} to {expected[:1]} features, the LoRA {found[1:]} to {found[:1]}"
            )


def with_loras(model: Model, loras: Sequence[LoraWeights]) -> Model:
    """Return a view of a model with LoRAs; the model itself stays as it is.

    The view shares every weight. Its conditionings carry ``lora_scales``, one row
    per prompt, taken from :attr:`~mezzotint.models.base.Prompt.lora_scales`.

    Args:
        model: The base model; its denoiser and text encoders must be able to run
            in torch.
        loras: The LoRAs, in the order of the scales.

    Raises:
        InvalidRequest: If the model is a GAN or a foreign pipeline.
        WeightsError: If a LoRA does not fit the model.
    """
    if model.denoiser is None or not model.spec.stepwise:
        raise InvalidRequest(f"model {model.spec.name} takes no LoRA", field="loras")
    view = copy.deepcopy(model)  # networks share themselves, see TorchNetwork.__deepcopy__
    touched = sorted({role for lora in loras for role in lora.pairs})
    for role in touched:
        if role not in model.networks:
            names = ", ".join(lora.name for lora in loras if role in lora.pairs)
            raise WeightsError(f"LoRA {names} changes {role}, which {model.spec.name} has not")
    for role in {*touched, "denoiser"}:
        source = torch_backed(model.networks[role], "loras")
        pairs = [lora.pairs.get(role, {}) for lora in loras]
        view.networks[role] = LoraNetwork(source, pairs, names=[lora.name for lora in loras])
    digests = {f"lora {k}": lora.digest for k, lora in enumerate(loras)}
    view.spec = replace(model.spec, digest=combine_digests({"model": model.spec.digest, **digests}))
    view.encode = _encode_with_scales(view, view.encode, len(loras))  # type: ignore[method-assign]
    return view


def _encode_with_scales(
    view: Model, encode: Callable[[Sequence[Prompt]], list[Conditioning]], count: int
) -> Callable[[Sequence[Prompt]], list[Conditioning]]:
    """Wrap ``encode`` so that each prompt's own scales reach every network."""
    lock = threading.Lock()
    text_networks = [
        network
        for role, network in view.networks.items()
        if role.startswith("text") and isinstance(network, LoraNetwork)
    ]

    def encode_each(prompts: Sequence[Prompt]) -> list[Conditioning]:
        result: list[Conditioning] = []
        with lock:
            for prompt in prompts:
                scales = prompt.lora_scales or (1.0,) * count
                for network in text_networks:
                    network.scales = scales
                (conditioning,) = encode([prompt])
                result.append(conditioning.replace(**{LORA_SCALES: torch.tensor([scales])}))
        return result

    return encode_each
