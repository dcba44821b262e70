"""Foreign pipelines: any other diffusers pipeline, served whole.

A pipeline whose mathematics we do not have runs as its authors wrote it, from
prompt to picture in one go. It joins no batch and shows no steps; its spec says so.
Nothing is shared between requests: each run has a shallow copy of the pipeline with
a scheduler of its own, one run at a time.

On the road of every model it has no denoiser, as a GAN: its "latents" are the digits
of the seed, its conditioning carries the text, and ``decode`` runs it.

Dimensions: B rows, H and W picture rows and columns.
"""

import copy
import inspect
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import CardError, InvalidRequest, WeightsError, WorkFailed
from mezzotint.models.base import Conditioning, Model, Prompt, Report
from mezzotint.models.networks import Placement
from mezzotint.models.parts import (
    combine_digests,
    digest_files,
    find_weights,
    read_header,
    read_json,
)
from mezzotint.models.quiet_loading import quiet_loading
from mezzotint.models.spec import ModelSpec
from mezzotint.types import Size

__all__ = ["ForeignModel", "load_foreign"]

_LIBRARIES = ("diffusers", "transformers")
_KEPT = (".json", ".txt", ".model", ".safetensors")
_DIGITS, _BASE = 4, 1 << 16
_GIVEN = {
    "self", "prompt", "negative_prompt", "height", "width", "num_inference_steps",
    "guidance_scale", "generator", "output_type", "class_labels",
}  # fmt: skip
_LIMITS = (
    "runs whole, as diffusers wrote it: joins no batch, shows no preview, and stops for a cancel "
    "or deadline only between pictures",
    "has its own scheduler only: scheduler and sigma_schedule have no effect",
    "takes no image, mask, controls, loras, regions, ensemble or guidance schedule",
)


@dataclass(frozen=True, slots=True)
class _Signature:
    """What a pipeline's call takes: parameter names and the two defaults we need."""

    names: frozenset[str]
    steps: int
    guidance_scale: float


class _WholePipeline:
    """The loaded pipeline behind the network seam's bookkeeping."""

    def __init__(self, path: Path, cls: Any, placement: Placement, num_bytes: int) -> None:
        self._path = path
        self._cls = cls
        self._placement = placement
        self._lock = threading.Lock()
        self._pipeline: Any = None
        self.num_bytes = num_bytes

    def run(self, **arguments: Any) -> Any:
        """Run once, on a copy with a scheduler of its own."""
        with self._lock:
            if self._pipeline is None:
                self._pipeline = self._load()
            pipeline = copy.copy(self._pipeline)
            for role, part in self._pipeline.components.items():
                if role.endswith("scheduler") and part is not None:
                    setattr(pipeline, role, type(part).from_config(part.config))
            with torch.no_grad():
                return pipeline(**arguments)

    def _load(self) -> Any:
        try:
            with quiet_loading():
                pipeline = self._cls.from_pretrained(
                    self._path,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    dtype=self._placement.dtype,
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise WeightsError(
                f"{self._path} cannot be loaded as {self._cls.__name__}: {error}"
            ) from None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self._placement.device)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """A whole pipeline is no network; it is run, never called with tensors."""
        raise InvalidRequest(f"{self._path} runs whole and has no network to call")


class ForeignModel(Model):
    """A diffusers pipeline on the road of every model.

    Args:
        pipeline: The pipeline.
        signature: What its call takes.
        spec: What it is and can do.
    """

    def __init__(self, pipeline: _WholePipeline, signature: _Signature, spec: ModelSpec) -> None:
        self._pipeline = pipeline
        self._signature = signature
        self.spec = spec
        self.denoiser = None
        self.networks = {"pipeline": pipeline}

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Return the shape of the seed's digits."""
        return (_DIGITS,)

    def draw_latents(self, size: Size, generator: torch.Generator) -> Tensor:
        """Write the generator's seed as digits, so that the pipeline starts from it."""
        seed = generator.initial_seed() % 2**64
        digits = [float(seed // _BASE**k % _BASE) for k in range(_DIGITS)]
        return torch.tensor([digits], dtype=torch.float32)

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Put the request into tensors: texts as bytes, numbers as numbers."""
        return [self._encode_one(prompt) for prompt in prompts]

    def _encode_one(self, prompt: Prompt) -> Conditioning:
        scale = prompt.distilled_guidance
        numbers = [
            prompt.size.width,
            prompt.size.height,
            prompt.num_inference_steps or self.spec.default_steps,
            self.spec.default_guidance_scale if scale is None else scale,
            -1 if prompt.class_label is None else prompt.class_label,
        ]
        return Conditioning(
            {
                "text": _to_bytes(prompt.text),
                "negative_text": _to_bytes(prompt.negative_text),
                "numbers": torch.tensor([numbers], dtype=torch.float64),
            }
        )

    def decode(
        self,
        latents: Tensor,
        conditioning: Conditioning | None = None,
        *,
        report: Report | None = None,
    ) -> Tensor:
        """Run the pipeline for each row; see :meth:`mezzotint.models.base.Model.decode`."""
        rows = [
            conditioning.row(k) if conditioning is not None else self._encode_one(Prompt())
            for k in range(len(latents))
        ]
        return torch.cat([self._draw(latents[k], row) for k, row in enumerate(rows)])

    def _draw(self, digits: Tensor, row: Conditioning) -> Tensor:
        width, height, steps, scale, label = row["numbers"][0].tolist()
        seed = sum(int(digit) * _BASE**k for k, digit in enumerate(digits.tolist()))
        offered = {
            "prompt": _to_text(row["text"]),
            "negative_prompt": _to_text(row["negative_text"]),
            "width": int(width),
            "height": int(height),
            "num_inference_steps": int(steps),
            "guidance_scale": scale,
            "class_labels": [max(int(label), 0)],
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "np",
        }
        known = {k: v for k, v in offered.items() if k in self._signature.names}
        try:
            images = self._pipeline.run(**known).images
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidRequest(f"{self.spec.name} refuses the request: {error}") from error
        picture = torch.as_tensor(images[0], dtype=torch.float32).movedim(-1, 0)[None] * 2 - 1
        if not bool(torch.isfinite(picture).all()):
            raise WorkFailed(f"{self.spec.name} drew values that are not finite")
        return picture.expand(-1, 3, -1, -1) if picture.shape[1] == 1 else picture


def _to_bytes(text: str) -> Tensor:
    """Write a text as a row of bytes. Shape (1, length), uint8."""
    return torch.tensor([list(text.encode("utf-8", "replace"))], dtype=torch.uint8)


def _to_text(row: Tensor) -> str:
    return bytes(row.flatten().tolist()).decode("utf-8", "replace")


def load_foreign(
    path: Path,
    *,
    name: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    expected: Mapping[str, str] | None = None,
    variant: str | None = None,
) -> ForeignModel:
    """Load a diffusers folder of any pipeline that turns text into one picture.

    Weights come into memory with the first picture.

    Args:
        path: The folder, with its ``model_index.json``.
        name: Store name; the path if None.
        device: Where to compute.
        dtype: One type for all networks; None follows the type policy.
        expected: sha256 by path inside the folder.
        variant: Set of weights; None takes what is there.

    Raises:
        CardError: If the folder needs code of its own, is no pipeline of diffusers, or
            needs an input that a request cannot give.
        WeightsError: If weights are missing, corrupt or pickles.
    """
    path = Path(path)
    index = read_json(path / "model_index.json")
    cls = _pipeline_class(path, index)
    signature = _read_signature(path, cls)
    num_bytes, is_half = _check_parts(path, index, variant)
    kept = [p for p in path.rglob("*") if p.is_file() and p.suffix in _KEPT]
    digest = combine_digests(digest_files(path, kept, expected=expected))
    placement = Placement.choose(device, dtype, stored="F16" if is_half else "F32")
    spec = _make_spec(path, signature, name=name or str(path), digest=digest)
    return ForeignModel(_WholePipeline(path, cls, placement, num_bytes), signature, spec)


def _pipeline_class(path: Path, index: Mapping[str, Any]) -> Any:
    """Find the pipeline's class in diffusers, and nowhere else."""
    import diffusers
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    class_name = index.get("_class_name")
    cls = getattr(diffusers, class_name, None) if isinstance(class_name, str) else None
    if not (inspect.isclass(cls) and issubclass(cls, DiffusionPipeline)):
        raise CardError(
            f"{path} is a {class_name}, which this diffusers ({diffusers.__version__}) has not; "
            "code inside a model folder never runs"
        )
    for role, entry in index.items():
        if role.startswith("_") or not isinstance(entry, list) or len(entry) != 2:
            continue
        if entry[0] is not None and str(entry[0]) not in _LIBRARIES:
            module = f"pipelines.{entry[0]}"
            if not hasattr(diffusers.pipelines, str(entry[0])):
                raise CardError(f"{path}: {role} is a class of {entry[0]!r}, not of {module}")
    return cls


def _read_signature(path: Path, cls: Any) -> _Signature:
    """Read what the call takes; refuse what a request cannot give."""
    parameters = inspect.signature(cls.__call__).parameters
    needed = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    pictures = {"image", "control_image", "mask_image"} & set(parameters)  # optional by name only
    if missing := sorted((set(needed) | pictures) - _GIVEN):
        raise CardError(
            f"{path} is a {cls.__name__}, which needs {', '.join(missing)}; a request gives text, "
            "size, steps and guidance only"
        )
    if {"num_frames", "audio_length_in_s"} & set(parameters):
        raise CardError(f"{path} is a {cls.__name__}, which makes no single pictures")

    def default(name: str, otherwise: float) -> float:
        value = parameters[name].default if name in parameters else None
        return float(value) if isinstance(value, int | float) else otherwise

    return _Signature(
        names=frozenset(parameters),
        steps=int(default("num_inference_steps", 50)),
        guidance_scale=default("guidance_scale", 7.5 if "guidance_scale" in parameters else 1.0),
    )


def _check_parts(path: Path, index: Mapping[str, Any], variant: str | None) -> tuple[int, bool]:
    """Check every network's weights by their headers; return bytes and whether they are half."""
    num_bytes, halves = 0, []
    for role, entry in index.items():
        folder = path / role
        is_part = isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
        if role.startswith("_") or not is_part or not (folder / "config.json").is_file():
            continue
        if not any(f.suffix in (".safetensors", ".bin", ".ckpt") for f in folder.iterdir()):
            continue
        for file in find_weights(folder, variant=variant)[0]:
            header = read_header(file)
            num_bytes += header.data_bytes
            halves.append(header.is_half)
    return num_bytes, bool(halves) and all(halves)


def _make_spec(path: Path, signature: _Signature, *, name: str, digest: str) -> ModelSpec:
    size, scale = _native_size(path)
    sized = {"width", "height"} <= signature.names
    return ModelSpec(
        name=name,
        digest=digest,
        family="foreign",
        latent_scale=scale,
        size_multiple=2 * scale if sized else 1,
        default_size=size,
        min_size_px=2 * scale if sized else min(size),
        max_size_px=2048 if sized else max(size),
        fixed_size=not sized,
        default_steps=signature.steps,
        default_guidance_scale=signature.guidance_scale,
        default_scheduler="ddim",
        takes_prompt="prompt" in signature.names,
        takes_negative_prompt="negative_prompt" in signature.names,
        takes_guidance=False,
        takes_distilled_guidance="guidance_scale" in signature.names,
        takes_image=False,
        num_classes=1000 if "class_labels" in signature.names else 0,
        token_limit=0,
        stepwise=False,
        limits=_LIMITS,
        path=str(path),
    )


def _native_size(path: Path) -> tuple[Size, int]:
    """Guess size and VAE factor from the configurations; 512 px where they say nothing."""
    vae = _config(path, "vae") or _config(path, "vqvae") or _config(path, "movq")
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0]
    scale = 2 ** (len(blocks) - 1) if vae else 1
    network = _config(path, "transformer") or _config(path, "unet")
    side = network.get("sample_size")
    rows, columns = (side, side) if isinstance(side, int) else (side or (None, None))[:2]
    if not rows or not columns or not math.isfinite(rows):
        return Size(512, 512), scale
    return Size(int(columns) * scale, int(rows) * scale), scale


def _config(path: Path, role: str) -> dict[str, Any]:
    file = path / role / "config.json"
    return read_json(file) if file.is_file() else {}
