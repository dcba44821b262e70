"""Export: the run folder becomes a model.

Everything is written into a hidden folder first and moved into place at the
end; the describing file goes last, so a reader sees the old model, the new
one, or none.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mezzotint.models.base import Model
from mezzotint.models.runs import RUN_FILE
from mezzotint.sampling.schedules import frame_of

__all__ = [
    "as_pipeline_model",
    "export_pipeline",
    "export_run",
    "pipeline_parts",
    "save_part",
    "swap_in",
    "write_pipeline",
]

_DESCRIBING = ("model_index.json", "config.json", RUN_FILE)


def export_run(
    task: Any, run_dir: Path, modules: nn.ModuleDict, training: Mapping[str, Any]
) -> None:
    """Write a task's model into its run folder.

    Raises:
        OSError: If it cannot be written; the model before stays.
    """
    partial = Path(run_dir) / f".export.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        task.export(partial, modules, training)
        swap_in(partial, Path(run_dir))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def swap_in(partial: Path, target: Path) -> None:
    """Move what is in ``partial`` over what is in ``target``."""
    for name in _DESCRIBING:
        (target / name).unlink(missing_ok=True)
    entries = sorted(partial.iterdir(), key=lambda path: path.name in _DESCRIBING)
    for entry in entries:
        place = target / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(entry, place)


def pipeline_parts(task: Any, modules: nn.ModuleDict) -> tuple[str, dict[str, Any]] | None:
    """Return the diffusers pipeline that a run is, and its parts, or None.

    Free pictures in pixel space are a ``DDIMPipeline``, classes in a latent
    space with a transformer a ``DiTPipeline``, text in a latent space a
    ``StableDiffusionPipeline``. None of them takes a rectified flow.
    """
    import diffusers

    about = task.description
    if frame_of(about.scheduler) == "flow":
        return None
    network = modules["network"]
    config = {k: v for k, v in about.scheduler.items() if k != "_class_name"}
    scheduler = getattr(diffusers, str(about.scheduler["_class_name"])).from_config(config)
    if about.data == "pixels" and about.network == "UNet2DModel" and about.conditioning == "none":
        return ("DDIMPipeline", {"unet": network, "scheduler": scheduler})
    if about.data != "latents":
        return None
    vae = task.latent_space.vae
    if about.network == "DiTTransformer2DModel" and about.conditioning == "class":
        return ("DiTPipeline", {"transformer": network, "vae": vae, "scheduler": scheduler})
    if about.conditioning == "text":
        text = task.text_side
        encoder = modules["text_encoder"] if text.learns else text.encoder
        parts = {
            "unet": network, "vae": vae, "text_encoder": encoder, "tokenizer": text.tokenizer,
            "scheduler": scheduler,
        }  # fmt: skip
        return ("StableDiffusionPipeline", parts)
    return None


def export_pipeline(task: Any, folder: Path, modules: nn.ModuleDict) -> bool:
    """Write a run that is a diffusers pipeline as one; False if it is none."""
    found = pipeline_parts(task, modules)
    if found is None:
        return False
    name, parts = found
    extra: dict[str, Any] = {}
    if name == "DiTPipeline":
        extra["id2label"] = {str(k): n for k, n in enumerate(task.description.class_names)}
    write_pipeline(folder, name, parts, extra)
    return True


def write_pipeline(
    folder: Path, name: str, parts: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    """Write a standard diffusers folder from its parts.

    Args:
        folder: Where; must exist.
        name: Class of the pipeline.
        parts: Networks, tokenizers and the scheduler by role.
        extra: Further entries of ``model_index.json``.
    """
    import diffusers

    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": diffusers.__version__}
    for role, part in parts.items():
        library = type(part).__module__.partition(".")[0]
        index[role] = [library, type(part).__name__]
        save_part(part, folder / role)
    if name == "StableDiffusionPipeline":
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
        index |= {"image_encoder": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps({**index, **extra}, indent=2), "utf-8")


def save_part(part: Any, folder: Path) -> None:
    """Write one part in its standard layout, without progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        part.save_pretrained(str(folder))
    finally:
        if shown:
            logging.enable_progress_bar()


def as_pipeline_model(task: Any, modules: nn.ModuleDict) -> Model | None:
    """Return a run that is a diffusers pipeline as a model in memory, or None."""
    found = pipeline_parts(task, modules)
    return None if found is None else Model.from_components(**found[1])
