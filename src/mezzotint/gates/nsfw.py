"""NSFW gate: a MobileNetV2 with five classes, small enough to be built in.

The weights are those of the npm package nsfwjs (MIT), stored as they come: one
byte per weight with a minimum and a scale per tensor. Recall on explicit
pictures was not measured by us; treat the gate as one layer of several.
"""

import json
from importlib import resources
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from mezzotint.gates.base import GateInfo, Score

__all__ = ["NsfwGate"]

_STRIDED_BLOCKS = (1, 3, 6, 13)
_RESIDUAL_BLOCKS = (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)
_INPUT_PX = 224


class NsfwGate:
    """Probability that a picture is explicit: the classes porn and hentai together."""

    info = GateInfo(
        name="nsfw",
        doc="probability of explicit content (porn + hentai), 0 to 1",
        default_threshold=0.7,
        spread=0.5,
        blocks=True,
    )

    def __init__(self) -> None:
        path = resources.files("mezzotint.gates") / "weights" / "nsfw_mobilenet_v2.safetensors"
        with resources.as_file(path) as file, safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            quantization = json.loads(metadata["quantization"])
            self._classes: list[str] = json.loads(metadata["classes"])
            self._weights: dict[str, Tensor] = {}
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                minimum, scale = quantization[name]
                self._weights[name] = stored.get_tensor(name).float() * scale + minimum

    def score(self, pixels: Any) -> Score:
        """Measure a picture of shape (H, W, 3), uint8; the score is a probability."""
        probabilities = self.probabilities(pixels)
        explicit = probabilities["porn"] + probabilities["hentai"]
        likeliest = max(probabilities, key=probabilities.__getitem__)
        return Score(explicit, f"looks like {likeliest} ({probabilities[likeliest]:.2f})")

    def probabilities(self, pixels: Any) -> dict[str, float]:
        """Return the probability of each of the five classes; they sum to 1."""
        image = torch.as_tensor(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255
        image = functional.interpolate(
            image, size=(_INPUT_PX, _INPUT_PX), mode="bilinear", align_corners=True
        )
        with torch.inference_mode():
            logits = self._classify(self._features(image))
        return dict(zip(self._classes, logits.softmax(-1)[0].numpy().tolist(), strict=True))

    def _features(self, x: Tensor) -> Tensor:
        """Run the convolutional body. (1, 3, 224, 224) -> (1, 1280, 7, 7)."""
        x = self._norm(self._conv(functional.pad(x, (0, 1, 0, 1)), "Conv1", stride=2), "bn_Conv1")
        x = self._depthwise(x.clamp(0, 6), "expanded_conv", stride=1)
        for block in range(1, 17):
            name = f"block_{block}"
            inner = self._norm(self._conv(x, f"{name}_expand"), f"{name}_expand_BN").clamp(0, 6)
            inner = self._depthwise(inner, name, stride=2 if block in _STRIDED_BLOCKS else 1)
            x = x + inner if block in _RESIDUAL_BLOCKS else inner
        return self._norm(self._conv(x, "Conv_1"), "Conv_1_bn").clamp(0, 6)

    def _classify(self, x: Tensor) -> Tensor:
        """Run the head. (1, 1280, 7, 7) -> (1, 5) logits."""
        x = functional.avg_pool2d(x, 7).flatten(1)
        x = self._dense(x, "dense_1").relu()
        x = self._dense(x, "dense_2").relu()
        return self._dense(x, "dense_3")

    def _depthwise(self, x: Tensor, name: str, *, stride: int) -> Tensor:
        kernel = self._weights[f"{name}_depthwise/depthwise_kernel"].permute(2, 3, 0, 1)
        padded = functional.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        x = functional.conv2d(padded, kernel, stride=stride, groups=x.shape[1])
        x = self._norm(x, f"{name}_depthwise_BN").clamp(0, 6)
        return self._norm(self._conv(x, f"{name}_project"), f"{name}_project_BN")

    def _conv(self, x: Tensor, name: str, *, stride: int = 1) -> Tensor:
        kernel = self._weights[f"{name}/kernel"].permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, stride=stride)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weights = self._weights
        return functional.batch_norm(
            x,
            weights[f"{name}/moving_mean"],
            weights[f"{name}/moving_variance"],
            weights[f"{name}/gamma"],
            weights[f"{name}/beta"],
            eps=1e-3,
        )

    def _dense(self, x: Tensor, name: str) -> Tensor:
        return x @ self._weights[f"{name}/kernel"] + self._weights[f"{name}/bias"]
