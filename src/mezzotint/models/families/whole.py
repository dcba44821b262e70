"""Foreign pipelines: any other diffusers pipeline, served whole.

A pipeline whose mathematics we do not have runs as its authors wrote it, from
prompt to picture. It joins no batch; where it tells of its steps it is run from one to
the next (:meth:`ForeignModel.begin`), so that it can be counted and cancelled on the way.
Nothing is shared between requests: each run has a shallow copy of the pipeline with
a scheduler of its own, one run at a time.

On the road of every model it has no denoiser, as a GAN: its "latents" are the digits
of the seed, its conditioning carries the text, and ``decode`` runs it to its end.

Dimensions: B rows, H and W picture rows and columns.
"""

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mezzotint.errors import CardError, InvalidRequest, WeightsError, WorkFailed
from mezzotint.models.base import Conditioning, Model, Prompt, Report
from mezzotint.models.digests import DIGESTS, own_weights
from mezzotint.models.exported import (
    LIBRARIES,
    exported_class,
    pipeline_class,
    refuse_own_code,
)
from mezzotint.models.families.whole_calls import WholeCall, read_call, why_refused
from mezzotint.models.families.whole_pictures import (
    picture_arguments,
    picture_processors,
    strength_of,
)
from mezzotint.models.networks import Placement
from mezzotint.models.parts import (
    combine_digests,
    digest_files,
    find_weights,
    read_header,
    read_json,
    refuse_missing_quantizer,
    refuse_stored,
    stored_together,
)
from mezzotint.models.quiet_loading import quiet_loading
from mezzotint.models.recommended import names_of_model, recommend
from mezzotint.models.spec import ModelSpec
from mezzotint.models.stepped_call import SteppedCall
from mezzotint.plain import is_list
from mezzotint.types import Size

__all__ = ["ForeignModel", "load_foreign"]

_KEPT = (".json", ".txt", ".model", ".safetensors")
_DIGITS, _BASE = 4, 1 << 16
_OWN_SCHEDULER = "has its own scheduler only: scheduler and sigma_schedule have no effect"
_STEPPED = "runs as diffusers wrote it, one picture at a time: joins no batch"
_UNSTEPPED = (
    "runs whole, as diffusers wrote it: joins no batch, shows no steps, and stops for a cancel "
    "or deadline only between pictures"
)


class _WholePipeline:
    """The loaded pipeline behind the network seam's bookkeeping."""

    def __init__(
        self,
        path: Path,
        cls: Any,
        placement: Placement,
        num_bytes: int,
        pinned: Mapping[Path, str],
    ) -> None:
        self._path = path
        self._pinned = pinned
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
            parts: dict[str, Any] = dict(self._pipeline.components)
            for role, part in parts.items():
                if role.endswith("scheduler") and part is not None:
                    cls = cast("Any", type(part))
                    own = cls.from_config(part.config, trust_remote_code=False)
                    setattr(pipeline, role, own)
            with torch.no_grad(), _attention_kept(parts.values()):
                return pipeline(**arguments)

    def _load(self) -> Any:
        """Build the pipeline, and only from the bytes that its digest is of."""
        try:
            with quiet_loading(), DIGESTS.loading(self._pinned):
                pipeline = self._cls.from_pretrained(
                    self._path,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    dtype=self._placement.dtype,
                    **picture_processors(self._path, read_json(self._path / "model_index.json")),
                )
                for part in pipeline.components.values():
                    if isinstance(part, torch.nn.Module):
                        own_weights(part)
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError
        ) as error:  # fmt: skip
            raise WeightsError(
                f"{self._path} cannot be loaded as {self._cls.__name__}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self._placement.device)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """A whole pipeline is no network; it is run, never called with tensors."""
        raise InvalidRequest(f"{self._path} runs whole and has no network to call")


@contextlib.contextmanager
def _attention_kept(parts: Iterable[Any]) -> Generator[None]:
    """Put attention processors back that a run had exchanged when it was given up."""
    kept = [(p, dict(p.attn_processors)) for p in parts if hasattr(p, "set_attn_processor")]
    try:
        yield
    except BaseException:  # whatever ended the run; it goes on
        for part, processors in kept:
            part.set_attn_processor(processors)
        raise


class _Steps:
    """Pauses a run at the end of each step of the plan, however often the pipeline calls back.

    Args:
        steps: Steps of the plan.
        pause: Pauses the run.
    """

    def __init__(self, steps: int, pause: Callable[[], None]) -> None:
        self._steps = steps
        self._pause = pause
        self._calls = 0
        self._done = 0

    def on_step_end(
        self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """Take the call of ``callback_on_step_end``; changes nothing."""
        self._count(getattr(pipeline, "num_timesteps", None))
        return tensors

    def on_step(self, step: int, timestep: Any, latents: Any) -> None:
        """Take the call of the older ``callback``."""
        self._count(None)

    def _count(self, expected: Any) -> None:
        """Count a call back; ``expected`` is how many there will be, where it is known."""
        self._calls += 1
        total = expected if isinstance(expected, int) and expected > 0 else self._steps
        reached = min(self._calls * self._steps // total, self._steps)
        while self._done < reached:
            self._done += 1
            self._pause()


class ForeignModel(Model):
    """A diffusers pipeline on the road of every model.

    Args:
        pipeline: The pipeline.
        call: What its call takes.
        spec: What it is and can do.
    """

    def __init__(self, pipeline: _WholePipeline, call: WholeCall, spec: ModelSpec) -> None:
        self._pipeline = pipeline
        self._call = call
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
        return torch.cat(
            [self.begin(latents[k : k + 1], row).finish() for k, row in enumerate(rows)]
        )

    def begin(self, latents: Tensor, conditioning: Conditioning) -> SteppedCall[Tensor]:
        """Return a run of one row that pauses after each step, not started yet.

        Args:
            latents: The digits of the seed. Shape (1, 4).
            conditioning: What :meth:`encode` made of the request, one row.

        Returns:
            A call whose answer is the picture in [-1, 1]. Shape (1, 3, H, W), float32.
            While it is paused no other run of this model moves.
        """
        return SteppedCall(lambda pause: self._draw(latents[0], conditioning, pause))

    def _arguments(self, digits: Tensor, row: Conditioning) -> dict[str, Any]:
        """Return what the pipeline is called with, the call backs left out."""
        numbers: list[float] = row["numbers"][0].cpu().numpy().tolist()
        width, height, steps, scale, label = numbers
        size = Size(int(width), int(height))
        whole: list[float] = digits.cpu().numpy().tolist()
        seed = sum(int(digit) * _BASE**k for k, digit in enumerate(whole))
        call, negative = self._call, _to_text(row["negative_text"])
        offered = {
            "prompt": _to_text(row["text"]),
            "width": int(width),
            "height": int(height),
            "num_inference_steps": int(steps),
            "max_area": int(width) * int(height),
            "class_labels": [max(int(label), 0)],
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "np",
            **picture_arguments(call, row, size),
        }
        if call.guidance is not None:
            offered |= {call.guidance: scale, "guidance_schedule": None}
        if call.takes_negative and call.is_true_guidance and scale > 1:
            offered["negative_prompt"] = negative or " "  # without one its guidance is off
        elif call.takes_negative and negative:
            offered["negative_prompt"] = negative
        return {k: v for k, v in offered.items() if k in call.names}

    def _draw(self, digits: Tensor, row: Conditioning, pause: Callable[[], None]) -> Tensor:
        arguments = self._arguments(digits, row)
        total = int(row["numbers"][0, 2])
        steps = _Steps(min(int(total * strength_of(row)), total), pause)
        if self._call.tells_steps == "callback_on_step_end":
            arguments["callback_on_step_end"] = steps.on_step_end
        elif self._call.tells_steps == "callback":
            arguments |= {"callback": steps.on_step, "callback_steps": 1}
        try:
            images = self._pipeline.run(**arguments).images
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise InvalidRequest(f"{self.spec.name} refuses the request: {reason}") from error
        picture = torch.as_tensor(images[0], dtype=torch.float32).movedim(-1, 0)[None] * 2 - 1
        if not bool(torch.isfinite(picture).all()):
            raise WorkFailed(f"{self.spec.name} drew values that are not finite")
        return picture.expand(-1, 3, -1, -1) if picture.shape[1] == 1 else picture


def _to_bytes(text: str) -> Tensor:
    """Write a text as a row of bytes. Shape (1, length), uint8."""
    return torch.tensor([list(text.encode("utf-8", "replace"))], dtype=torch.uint8)


def _to_text(row: Tensor) -> str:
    return row.flatten().cpu().numpy().tobytes().decode("utf-8", "replace")


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
    if reason := why_refused(cls):
        raise CardError(f"{path} is a {cls.__name__}, which {reason}")
    call = read_call(cls)
    num_bytes, stored = _check_parts(path, index, variant)
    kept = [p for p in path.rglob("*") if p.is_file() and p.suffix in _KEPT]
    digests = digest_files(path, kept, expected=expected)
    pinned = {path / name: found for name, found in digests.items()}
    placement = Placement.choose(device, dtype, stored=stored)
    spec = _make_spec(path, call, name=name or str(path), digest=combine_digests(digests))
    denoiser = _config(path, "transformer") or _config(path, "unet")
    advice = recommend(cls.__name__, names_of_model(spec.name, str(path), index), denoiser)
    if call.guidance is None:
        advice.pop("default_guidance_scale", None)
    spec = replace(spec, **advice)
    return ForeignModel(_WholePipeline(path, cls, placement, num_bytes, pinned), call, spec)


def _pipeline_class(path: Path, index: Mapping[str, Any]) -> Any:
    """Find the pipeline's class in diffusers, and nowhere else."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    named = index.get("_class_name")
    cls = exported_class("diffusers", named, where=path, kind=DiffusionPipeline)
    if cls is DiffusionPipeline:  # it would look up another
        raise CardError(f"{path} must name the pipeline that it is, got {named}")
    for role, entry in index.items():
        if role.startswith("_") or not is_list(entry) or len(entry) != 2:
            continue
        library, class_name = entry
        where = f"{path}: {role}"
        if library is None:
            continue
        if library not in LIBRARIES:
            pipeline_class(str(library), class_name, where=where)
        elif exported_class(library, class_name, where=where).__name__.startswith("Auto"):
            refuse_own_code(path / role if (path / role).is_dir() else path)
    return cls


def _check_parts(path: Path, index: Mapping[str, Any], variant: str | None) -> tuple[int, str]:
    """Check every network's weights by their headers; return bytes and type of all."""
    num_bytes, kinds = 0, list[str]()
    for role, entry in index.items():
        folder = path / role
        is_part = is_list(entry) and len(entry) == 2 and entry[0] is not None
        if role.startswith("_") or not is_part or not (folder / "config.json").is_file():
            continue
        refuse_stored(folder, (), where=path)
        if not any(f.suffix in (".safetensors", ".bin", ".ckpt") for f in folder.iterdir()):
            continue
        refuse_missing_quantizer(read_json(folder / "config.json"), where=folder / "config.json")
        headers = [read_header(file) for file in find_weights(folder, variant=variant)[0]]
        refuse_stored(folder, headers, where=path)
        num_bytes += sum(header.data_bytes for header in headers)
        kinds += [header.stored for header in headers]
    return num_bytes, stored_together(kinds)


def _make_spec(path: Path, call: WholeCall, *, name: str, digest: str) -> ModelSpec:
    size, scale = _native_size(path, call)
    sized = {"width", "height"} <= call.names or call.sized_by_picture
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
        default_steps=call.steps,
        default_guidance_scale=call.guidance_scale,
        default_scheduler="ddim",
        takes_prompt="prompt" in call.names,
        takes_negative_prompt=call.takes_negative,
        takes_guidance=False,
        takes_distilled_guidance=call.guidance is not None,
        takes_image=call.start is not None,
        needs_image=call.start is not None,
        takes_mask=call.start == "masked",
        needs_mask=call.start == "masked",
        min_references=call.references[0],
        max_references=call.references[1],
        num_classes=1000 if "class_labels" in call.names else 0,
        token_limit=0,
        stepwise=False,
        tells_steps=call.tells_steps is not None,
        limits=(_STEPPED if call.tells_steps else _UNSTEPPED, _OWN_SCHEDULER, _pictures(call)),
        path=str(path),
    )


def _pictures(call: WholeCall) -> str:
    """Say which pictures and techniques a pipeline takes, and which it does not."""
    low, high = call.references
    taken = {None: "", "image": "needs image", "masked": "needs image and mask"}[call.start]
    if high:
        count = f"{low} to {high}" if low < high else str(high)
        taken = f"takes {count} of image_references, no image or mask"
    rest = "controls, loras, regions, ensemble or guidance schedule"
    return f"{taken or 'takes no image, mask or image_references'}; takes no {rest}"


def _native_size(path: Path, call: WholeCall) -> tuple[Size, int]:
    """Return the size that a pipeline draws at, and the factor of its VAE.

    The call's own default counts, then what the pipeline, the network and the kind of
    network say: transformers that do not were made for 1024 px, U-Nets for 512.
    """
    vae = _config(path, "vae") or _config(path, "vqvae") or _config(path, "movq")
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0]
    scale = 2 ** (len(blocks) - 1) if vae else 1
    network = _config(path, "transformer") or _config(path, "unet")
    said = read_json(path / "model_index.json").get("default_sample_size")
    if call.size is not None:
        return call.size, scale
    if isinstance(said, int):
        return Size(said, said), scale
    side = network.get("sample_size")
    rows, columns = (side, side) if isinstance(side, int) else (side or (None, None))[:2]
    if not rows or not columns or not math.isfinite(rows):
        side = 1024 if (path / "transformer").is_dir() else 512
        return Size(side, side), scale
    return Size(int(columns) * scale, int(rows) * scale), scale


def _config(path: Path, role: str) -> dict[str, Any]:
    file = path / role / "config.json"
    return read_json(file) if file.is_file() else {}
