"""Safety-checker gate: the checker that comes inside a diffusers folder.

Stable Diffusion folders carry ``safety_checker`` and ``feature_extractor``. The
checker compares the picture's CLIP embedding with embeddings of concepts; the
score is the largest excess over a concept's own threshold, so 0 is the border.
The picture is never blacked out: the policy decides what a score means.
"""

from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from mezzotint.errors import WeightsError
from mezzotint.gates.base import GateInfo, Score
from mezzotint.models.digests import DIGESTS, own_weights
from mezzotint.models.quiet_loading import sole_building

__all__ = ["SafetyCheckerGate"]


class SafetyCheckerGate:
    """Excess of a picture over the concept thresholds of a diffusers safety checker.

    Args:
        folder: A diffusers pipeline folder with ``safety_checker`` and
            ``feature_extractor``.

    Raises:
        WeightsError: If one of the two is missing.
    """

    info = GateInfo(
        name="safety_checker",
        doc="largest excess over a concept's threshold (cosine similarity), border at 0",
        default_threshold=0.0,
        spread=0.05,
        blocks=True,
    )

    def __init__(self, folder: str | Path) -> None:
        for part in ("safety_checker", "feature_extractor"):
            if not (Path(folder) / part).is_dir():
                raise WeightsError(f"expected the folder {part} in {folder}, found none")
        from diffusers.pipelines.stable_diffusion.safety_checker import (
            StableDiffusionSafetyChecker,
        )
        from transformers import CLIPImageProcessor

        files = (Path(folder) / "safety_checker", Path(folder) / "feature_extractor")
        with sole_building(), DIGESTS.steady(*files):
            self._checker = (
                cast("Any", StableDiffusionSafetyChecker)
                .from_pretrained(
                    Path(folder) / "safety_checker", use_safetensors=True, trust_remote_code=False
                )
                .eval()
            )
            own_weights(self._checker)
            self._processor = cast("Any", CLIPImageProcessor).from_pretrained(
                Path(folder) / "feature_extractor", trust_remote_code=False
            )

    def score(self, pixels: Any) -> Score:
        """Measure a picture of shape (H, W, 3), uint8."""
        inputs = self._processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
        with torch.inference_mode():
            pooled = self._checker.vision_model(inputs.to(self._checker.dtype))[1]
            embedding = torch.nn.functional.normalize(self._checker.visual_projection(pooled))
            concepts = torch.nn.functional.normalize(self._checker.concept_embeds)
            special = torch.nn.functional.normalize(self._checker.special_care_embeds)
            excess = (embedding @ concepts.T)[0] - self._checker.concept_embeds_weights
            care = (embedding @ special.T)[0] - self._checker.special_care_embeds_weights
        adjustment = 0.01 if float(care.max()) > 0 else 0.0  # as the checker itself does
        value = float(excess.max()) + adjustment
        return Score(value, f"concept {int(excess.argmax())} at {value:+.3f} over its threshold")
