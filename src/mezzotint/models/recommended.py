"""Recommended: what the authors of a model draw it with, where its files do not say.

A folder, or a single file, says which network it is and how it was trained, but not in
how many steps, with which guidance and by which scheduler it draws best; that stands in
model cards, for people. Here it stands for the program: a row for each kind of model that
departs from its family, found by its pipeline, by what its name says (``turbo``,
``lightning``, ``8steps``) or by its configuration. No tensors, no files.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from mezzotint.types import Size

__all__ = ["RECOMMENDED", "Recommended", "names_of_model", "recommend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """A kind of model, and what it is drawn with.

    Args:
        pipeline: Class names of the pipelines that it is of, as a pattern for their start.
        name: Pattern that is looked for in its names, in lower case; "" fits all.
        config: What the configuration of its denoiser holds.
        steps: Steps of the noise scheduler.
        counts_steps: Whether its name tells its steps (``4step``, ``8-steps``), which then
            count in place of ``steps``.
        guidance_scale: Scale where 1 is off; None is the family's.
        scheduler: Name of the request field; None is the folder's.
        sigma_schedule: Name of the request field; None is the folder's.
        size: Width and height in pixels; None is the folder's.
    """

    pipeline: str
    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    steps: int | None = None
    counts_steps: bool = False
    guidance_scale: float | None = None
    scheduler: str | None = None
    sigma_schedule: str | None = None
    size: Size | None = None

    def fits(self, pipeline: str, names: Iterable[str], config: Mapping[str, Any]) -> bool:
        """Whether a model is of this kind."""
        return (
            re.match(self.pipeline, pipeline) is not None
            and any(re.search(self.name, name) for name in names)
            and all(config.get(key) == value for key, value in self.config.items())
        )


_XL = "StableDiffusionXL"
_ANY_SD = "StableDiffusion(?!3)|LatentConsistency"

RECOMMENDED = (
    Recommended(
        pipeline=_ANY_SD,
        name=r"^sd[-_ ]?(xl)?[-_ ]?turbo",
        steps=1,
        guidance_scale=1.0,
        sigma_schedule="trailing",
        size=Size(512, 512),
    ),
    Recommended(
        pipeline=_XL,
        name="lightning",
        steps=4,
        counts_steps=True,
        guidance_scale=1.0,
        scheduler="euler",
        sigma_schedule="trailing",
    ),
    Recommended(
        pipeline=_ANY_SD,
        name="hyper-?sd",
        steps=4,
        counts_steps=True,
        guidance_scale=1.0,
        scheduler="ddim",
        sigma_schedule="trailing",
    ),
    Recommended(
        pipeline=_ANY_SD,
        name=r"\blcm|dmd2",
        steps=4,
        counts_steps=True,
        guidance_scale=1.0,
        scheduler="lcm",
    ),
    Recommended(pipeline=_ANY_SD, name="sdxs", steps=1, guidance_scale=1.0),
    Recommended(
        pipeline=_ANY_SD,
        name="turbo|lightning",
        steps=4,
        counts_steps=True,
        guidance_scale=1.0,
        sigma_schedule="trailing",
    ),
    Recommended(pipeline=_XL, name="playground-?v2", steps=50, guidance_scale=3.0),
    Recommended(
        pipeline="StableDiffusion3",
        name="turbo",
        steps=4,
        counts_steps=True,
        guidance_scale=1.0,
    ),
    Recommended(
        pipeline="StableDiffusion3",
        config={"qk_norm": "rms_norm", "num_layers": 38},  # 3.5 large
        steps=28,
        guidance_scale=3.5,
    ),
    Recommended(
        pipeline="StableDiffusion3",
        config={"qk_norm": "rms_norm", "num_layers": 24},  # 3.5 medium
        steps=40,
        guidance_scale=4.5,
    ),
    Recommended(
        pipeline="Flux",
        name="schnell",
        config={"guidance_embeds": False},
        steps=4,
        guidance_scale=1.0,
    ),
    Recommended(
        pipeline="Flux(?!2|Fill|Kontext)",
        name="turbo|hyper",
        steps=8,
        counts_steps=True,
        guidance_scale=3.5,
    ),
    Recommended(pipeline="Flux(?!2)", name="krea", steps=28, guidance_scale=4.5),
    Recommended(pipeline="FluxKontext", steps=28, guidance_scale=2.5),
    Recommended(pipeline="ZImage(?!Omni)", name="turbo", steps=8, guidance_scale=1.0),
    Recommended(
        pipeline="QwenImage",
        name="lightning|turbo|lcm",
        steps=8,
        counts_steps=True,
        guidance_scale=1.0,
    ),
    Recommended(pipeline="QwenImageEditPlus", steps=40, guidance_scale=4.0),
    Recommended(pipeline="Chroma", name="flash", steps=8, guidance_scale=1.0),
    Recommended(pipeline="CogView4", steps=50, guidance_scale=3.5),
    Recommended(pipeline="HiDream", name=r"\bdev", steps=28, guidance_scale=1.0),
    Recommended(pipeline="HiDream", name=r"\bfast", steps=16, guidance_scale=1.0),
    Recommended(pipeline="HunyuanDiT", name="distill", steps=25, guidance_scale=5.0),
    Recommended(
        pipeline="HunyuanImage",
        name="distill",
        steps=8,
        guidance_scale=3.25,
        size=Size(2048, 2048),
    ),
    Recommended(pipeline="HunyuanImage", size=Size(2048, 2048)),
    Recommended(pipeline="StableCascade|Wuerstchen", size=Size(1024, 1024)),
    Recommended(pipeline="KandinskyV22", size=Size(768, 768)),
    Recommended(pipeline="PixArt", name=r"\blcm", steps=4, guidance_scale=1.0),
)
"""Kinds of models; of those that fit, the first counts."""


def names_of_model(name: str, path: str = "", index: Mapping[str, Any] | None = None) -> list[str]:
    """Return what a model is called, in lower case, words joined by ``-``.

    Args:
        name: Its name in the store, or its path.
        path: Where its files are; of a snapshot in the Hub's cache the repository counts.
        index: Its ``model_index.json``, which may say where it came from.
    """
    origin = str((index or {}).get("_name_or_path") or "")
    found: list[str] = []
    for text in (name, path, origin):
        parts = PurePath(text.replace("\\", "/").rstrip("/")).parts
        if len(parts) > 2 and parts[-2] == "snapshots":
            parts = (parts[-3].rpartition("--")[2],)
        if parts:
            found.append(re.sub(r"[ _]+", "-", parts[-1].lower()))
    return found


def recommend(
    pipeline: str, names: Iterable[str], config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a model is drawn with beyond what its family says, {} if it says all.

    Args:
        pipeline: Class name of its pipeline.
        names: Of :func:`names_of_model`.
        config: Configuration of its denoiser.

    Returns:
        Some of ``default_steps``, ``default_guidance_scale``, ``default_scheduler``,
        ``default_sigma_schedule`` and ``default_size``, as fields of
        :class:`~mezzotint.models.spec.ModelSpec`.

    Example:
        >>> recommend("StableDiffusionXLPipeline", ["sdxl-lightning-2step"])["default_steps"]
        2
    """
    names = list(names)
    row = next((r for r in RECOMMENDED if r.fits(pipeline, names, config or {})), None)
    if row is None:
        return {}
    steps = row.steps
    if row.counts_steps:
        told = (re.search(r"(?<!\d)(\d{1,2})-?steps?\b", name) for name in names)
        steps = next((int(match[1]) for match in told if match and int(match[1])), steps)
    values = {
        "default_steps": steps,
        "default_guidance_scale": row.guidance_scale,
        "default_scheduler": row.scheduler,
        "default_sigma_schedule": row.sigma_schedule,
        "default_size": row.size,
    }
    return {name: value for name, value in values.items() if value is not None}
