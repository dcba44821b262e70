"""Export: the run folder becomes a model.

Everything is written into a hidden folder first and moved into place at the
end; the describing file goes last, so a reader sees the old model, the new
one, or none.
"""

import copy
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from mezzotint.models.exported import exported_class
from mezzotint.models.families.runs import RUN_FILE, WEIGHTS_FILE
from mezzotint.sampling.schedules import frame_of
from mezzotint.train.tasks.ground import Ground

__all__ = ["export_ground", "export_run", "write_pipeline"]

_DESCRIBING = ("model_index.json", "config.json", RUN_FILE)


def export_run(
    task: Any, run_dir: Path, modules: nn.ModuleDict, training: Mapping[str, Any]
) -> None:
    """Write a task's content into its run folder.

    Raises:
        OSError: If it cannot be written; the model before stays.
    """
    partial = Path(run_dir) / f".export.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        task.export(partial, modules, training)
        _swap_in(partial, Path(run_dir))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap_in(partial: Path, target: Path) -> None:
    """Move what is in ``partial`` over what is in ``target``."""
    for name in _DESCRIBING:
        (target / name).unlink(missing_ok=True)
    entries = sorted(partial.iterdir(), key=lambda path: path.name in _DESCRIBING)
    for entry in entries:
        place = target / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(entry, place)


def _pipeline_parts(
    ground: Ground, modules: nn.ModuleDict
) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
    """Return the diffusers pipeline that a run is: class, parts, index entries; or None.

    Free pictures in pixel space are a ``DDIMPipeline``, classes in a latent
    space with a transformer a ``DiTPipeline``, text in a latent space a
    ``StableDiffusionPipeline``. None of them takes a rectified flow.
    """
    about = ground.description
    if frame_of(about.scheduler) == "flow":
        return None
    network = modules["network"]
    if about.data == "pixels" and about.network == "UNet2DModel" and about.conditioning == "none":
        # DDIMPipeline would put its own scheduler in the place of a distilled model's.
        name = "DDPMPipeline" if "LCM" in str(about.scheduler["_class_name"]) else "DDIMPipeline"
        return name, {"unet": network, "scheduler": _scheduler(about.scheduler)}, {}
    if ground.latents is None:
        return None
    parts = {
        "scheduler": _scheduler(about.scheduler),
        "vae": copy.deepcopy(ground.latents.vae),
    }
    if about.network == "DiTTransformer2DModel" and about.conditioning == "class":
        names = {str(k): name for k, name in enumerate(about.class_names)}
        return "DiTPipeline", {"transformer": network, **parts}, {"id2label": names}
    if ground.text is not None:
        empty = dict.fromkeys(
            ("feature_extractor", "safety_checker", "image_encoder"), (None, None)
        )
        return (
            "StableDiffusionPipeline",
            {"unet": network, **parts, **_text_parts(ground, modules)},
            {**empty, "requires_safety_checker": False},
        )
    return None


def _scheduler(config: Mapping[str, Any]) -> Any:
    """Return the diffusers scheduler of a configuration."""
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    kept = {k: v for k, v in config.items() if not k.startswith("_")}
    cls = exported_class(
        "diffusers", config["_class_name"], where="the scheduler", kind=SchedulerMixin
    )
    return cls.from_config(kept, trust_remote_code=False)


def _text_parts(ground: Ground, modules: nn.ModuleDict) -> dict[str, Any]:
    """Return tokenizer and text encoder of a run, {} without text."""
    if ground.text is None:
        return {}
    encoder = modules["text_encoder"] if ground.text.learns else copy.deepcopy(ground.text.encoder)
    return {"tokenizer": ground.text.tokenizer, "text_encoder": encoder}


def export_ground(
    ground: Ground, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]
) -> None:
    """Write a run as a model: a diffusers folder where one fits, or a run folder."""
    about = {**ground.description.to_plain(), "training": dict(training)}
    found = _pipeline_parts(ground, modules)
    if found is not None:
        write_pipeline(folder, *found)
        about["family"] = "pipeline"
    else:
        _save_part(modules["network"], folder / "network")
        for role, part in _text_parts(ground, modules).items():
            _save_part(part, folder / role)
        if ground.latents is not None:
            _save_part(ground.latents.vae, folder / "vae")
    (folder / RUN_FILE).write_text(json.dumps(about, indent=1), "utf-8")


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
        index[role] = [type(part).__module__.partition(".")[0], type(part).__name__]
        _save_part(part, folder / role)
    (folder / "model_index.json").write_text(json.dumps({**index, **extra}, indent=2), "utf-8")


def _save_part(part: Any, folder: Path) -> None:
    """Write one part in its standard layout, without progress bars."""
    if not hasattr(part, "save_pretrained"):  # a network of ours
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(part.config, indent=1), "utf-8")
        state = {name: value.contiguous() for name, value in part.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE)
        return
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        part.save_pretrained(str(folder))
    finally:
        if shown:
            logging.enable_progress_bar()
