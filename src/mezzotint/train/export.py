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

__all__ = ["as_pipeline_model", "export_pipeline", "export_run", "pipeline_parts", "swap_in"]

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

    Free pictures in pixel space are a ``DDPMPipeline``, classes in a latent
    space with a transformer a ``DiTPipeline``, text in a latent space a
    ``StableDiffusionPipeline``.
    """
    import diffusers

    about = task.description
    network = modules["network"]
    config = {k: v for k, v in about.scheduler.items() if k != "_class_name"}
    scheduler = getattr(diffusers, str(about.scheduler["_class_name"])).from_config(config)
    if about.data == "pixels" and about.network == "UNet2DModel" and about.conditioning == "none":
        return ("DDPMPipeline", {"unet": network, "scheduler": scheduler})
    if about.data != "latents":
        return None
    vae = task.latent_space.vae
    if about.network == "DiTTransformer2DModel" and about.conditioning == "class":
        names = {str(k): name for k, name in enumerate(about.class_names)}
        return (
            "DiTPipeline",
            {"transformer": network, "vae": vae, "scheduler": scheduler, "id2label": names},
        )
    if about.conditioning == "text":
        text = task.text_side
        encoder = modules["text_encoder"] if text.learns else text.encoder
        parts = {
            "unet": network, "vae": vae, "text_encoder": encoder, "tokenizer": text.tokenizer,
            "scheduler": scheduler, "safety_checker": None, "feature_extractor": None,
        }  # fmt: skip
        return ("StableDiffusionPipeline", parts)
    return None


def export_pipeline(task: Any, folder: Path, modules: nn.ModuleDict) -> bool:
    """Write a run that is a diffusers pipeline as one; False if it is none."""
    found = pipeline_parts(task, modules)
    if found is None:
        return False
    import diffusers

    name, parts = found
    options = {"requires_safety_checker": False} if name == "StableDiffusionPipeline" else {}
    pipeline = getattr(diffusers, name)(**parts, **options)
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    if task.description.scheduler["_class_name"] != type(pipeline.scheduler).__name__:
        path = folder / "scheduler" / "scheduler_config.json"  # diffusers swapped its class
        path.write_text(json.dumps(dict(task.description.scheduler), indent=1), "utf-8")
    return True


def as_pipeline_model(task: Any, modules: nn.ModuleDict) -> Model | None:
    """Return a run that is a diffusers pipeline as a model in memory, or None."""
    found = pipeline_parts(task, modules)
    if found is None:
        return None
    parts = {name: part for name, part in found[1].items() if part is not None}
    return Model.from_components(**parts)
