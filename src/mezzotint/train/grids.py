"""Grids: what a run draws while it learns, always from the same noise and prompts.

``samples/grid.png`` is refreshed in place by atomic rename, so a viewer that
watches it never sees half a picture; every grid carries the recipe of its first
picture and the step it was drawn at.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn import functional

from mezzotint.errors import InvalidRequest
from mezzotint.files import write_atomically
from mezzotint.images.codec import encode
from mezzotint.images.sheets import make_sheet
from mezzotint.models.base import Model
from mezzotint.request import GenerationRequest, LatentInput
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.config.run import SamplesConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.sampling import sample_model

__all__ = ["grid_requests", "terminal_picture", "write_data_sheet", "write_grid"]

_DATA_PICTURES = 24
_DATA_SIDE_PX = 128
_COLUMNS = (6, 5, 8, 7, 4)  # the first that leaves no gap


def grid_requests(config: SamplesConfig, model: Model) -> list[GenerationRequest]:
    """Return the request of each picture of a grid.

    Raises:
        InvalidRequest: If a prompt of a class-conditional model is no class.
    """
    spec = model.spec
    common: dict[str, Any] = {
        "model": spec.name,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "scheduler": config.scheduler,
    }
    prompts = config.prompts or ("",) * config.count
    found: list[GenerationRequest] = []
    for k, prompt in enumerate(prompts):
        values: dict[str, Any] = {**common, "seed": config.seed + k}
        if spec.num_classes:
            values["latent"] = LatentInput(class_label=_label(prompt, k, model))
        elif spec.takes_prompt:
            values["prompt"] = prompt or "a picture"
        found.append(GenerationRequest(**values))
    return found


def _label(prompt: str, position: int, model: Model) -> int:
    """Return the class that a prompt names; without one the classes take turns."""
    names = model.spec.class_names
    if not prompt:
        return position % model.spec.num_classes
    if prompt in names:
        return names.index(prompt)
    if prompt.isdecimal() and int(prompt) < model.spec.num_classes:
        return int(prompt)
    raise InvalidRequest(
        f"samples.prompts must name classes ({', '.join(names[:20])}), got {prompt!r}",
        field="samples.prompts",
        value=prompt,
    )


def write_grid(model: Model, config: TrainConfig, run_dir: Path, step: int) -> Path:
    """Draw the grid of a step and refresh ``samples/grid.png``.

    Returns:
        The refreshed file.

    Raises:
        OSError: If it cannot be written.
    """
    results = [sample_model(model, request) for request in grid_requests(config.samples, model)]
    images = [result.images[0] for result in results]
    recipe = {**images[0].recipe, "training_step": step}
    columns = max(1, round(len(images) ** 0.5))
    sheet = make_sheet([np.asarray(image.pixels) for image in images], columns=columns)
    data = encode(sheet, parameters="", recipe=json.dumps(recipe, sort_keys=True))
    folder = run_dir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    recipes = [image.recipe for image in images]
    about = json.dumps({"step": step, "recipes": recipes}, indent=1).encode()
    write_atomically(folder / "grid.json", about)
    if config.samples.history:
        write_atomically(folder / f"grid-{step:08d}.png", data)
    return write_atomically(folder / "grid.png", data)


def write_data_sheet(data: Dataset, run_dir: Path) -> Path | None:
    """Draw some of the pictures that a run learns from, as it sees them.

    They are spread evenly over the samples of one size, and become
    ``samples/data.png``.

    Returns:
        The file; None where samples are no pictures.

    Raises:
        OSError: If it cannot be written.
    """
    if data.kind != "pixels" or data.shape[0] not in (1, 3):
        return None
    alike = [k for k, bucket in enumerate(data.buckets) if bucket == data.buckets[0]]
    shown = alike[:: max(1, len(alike) // _DATA_PICTURES)][:_DATA_PICTURES]
    pixels = data.read(shown)
    by = max(pixels.shape[-2:]) / _DATA_SIDE_PX
    if by > 1:
        pixels = functional.interpolate(pixels, scale_factor=1 / by, mode="area")
    levels = (pixels.clamp(-1, 1) + 1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    pictures = [np.ascontiguousarray(np.broadcast_to(p, (*p.shape[:2], 3))) for p in levels]
    columns = next((n for n in _COLUMNS if len(pictures) % n == 0), _COLUMNS[0])
    sheet = make_sheet(pictures, columns=columns)
    folder = run_dir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    return write_atomically(folder / "data.png", encode(sheet, parameters="", recipe=""))


def terminal_picture(pixels: np.ndarray, *, columns: int = 80) -> str:
    """Return a picture as text with 24-bit colours, two pixels to a character.

    Args:
        pixels: Shape (H, W, 3), uint8.
        columns: Characters of a line, at most.
    """
    height, width = pixels.shape[:2]
    wide = min(columns, width)
    high = max(2, round(height * wide / width) // 2 * 2)
    small = pixels[_spread(height, high)][:, _spread(width, wide)]
    lines: list[str] = []
    for top, bottom in zip(small[::2], small[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(top, bottom, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _spread(side: int, count: int) -> np.ndarray:
    """Return ``count`` places spread evenly over ``side`` rows or columns. Shape (count,)."""
    return np.round(np.linspace(0, side - 1, count)).astype(np.intp)
