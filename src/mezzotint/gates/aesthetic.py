"""Aesthetic gate: a small head on CLIP's picture embedding, with weights of the user's own.

Where there are none, :mod:`mezzotint.gates.craft` answers to the name. A folder holds
``clip`` (a CLIP vision model with its projection and picture processor, as transformers saves
them) and ``head.safetensors``: one linear layer, or several applied one after the other, by
the order of their numbers, as in the LAION predictors (a linear probe, or an MLP without
activations).
"""

import itertools
import re
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mezzotint.errors import WeightsError
from mezzotint.gates.base import Score
from mezzotint.gates.craft import AESTHETIC
from mezzotint.models.digests import DIGESTS, own_weights
from mezzotint.models.quiet_loading import sole_building

__all__ = ["AestheticGate", "read_head"]

_LAYER = re.compile(r"(?:.*?(\d+)\.)?weight$")


class AestheticGate:
    """What a head learned people like, on its own scale (LAION's: about 1 to 10).

    Args:
        folder: Holds ``clip`` and ``head.safetensors``.

    Raises:
        WeightsError: If one of them is missing, or they do not fit each other.
    """

    info = AESTHETIC

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / "clip").is_dir():
            raise WeightsError(f"expected the folder clip in {folder}, found none")
        self._head = read_head(folder / "head.safetensors")
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        with sole_building(), DIGESTS.steady(folder / "clip"):
            self._clip = (
                cast("Any", CLIPVisionModelWithProjection)
                .from_pretrained(folder / "clip", use_safetensors=True, trust_remote_code=False)
                .eval()
            )
            own_weights(self._clip)
            self._processor = cast("Any", CLIPImageProcessor).from_pretrained(
                folder / "clip", trust_remote_code=False
            )
        wanted, found = self._head[0][0].shape[1], self._clip.config.projection_dim
        if wanted != found:
            raise WeightsError(
                f"{folder}: the head takes embeddings of {wanted} numbers, clip makes {found}"
            )

    def score(self, pixels: Any) -> Score:
        """Measure a picture of shape (H, W, 3), uint8."""
        inputs = self._processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
        with torch.inference_mode():
            embedding = self._clip(inputs.to(self._clip.dtype)).image_embeds
            value = torch.nn.functional.normalize(embedding.float())
            for weight, bias in self._head:
                value = torch.nn.functional.linear(value, weight, bias)
        return Score(float(value), f"aesthetic score {float(value):.2f}")


def read_head(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Read the layers of a head, first to last; each (out, in) and (out,).

    Raises:
        WeightsError: If the file is missing, or its layers do not end in one number.
    """
    if not path.is_file():
        raise WeightsError(f"expected the head of the aesthetic gate at {path}, found none")
    try:
        with DIGESTS.steady(path):
            state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} is no safetensors file: {error}") from None
    layers: list[tuple[int, Tensor, Tensor]] = []
    for name, weight in state.items():
        found = _LAYER.match(name)
        if found is None:
            continue
        if weight.ndim != 2:
            raise WeightsError(f"{path}: {name} must be a matrix, got {tuple(weight.shape)}")
        bias = state.get(name.removesuffix("weight") + "bias")
        bias = torch.zeros(weight.shape[0]) if bias is None else bias
        layers.append((int(found[1] or 0), weight.float(), bias.float()))
    layers.sort(key=lambda layer: layer[0])
    widths = [(w.shape[1], w.shape[0]) for _, w, _ in layers]
    joined = all(a[1] == b[0] for a, b in itertools.pairwise(widths))
    if not layers or not joined or widths[-1][1] != 1:
        raise WeightsError(
            f"{path} is no head: its layers are {widths}, they must end in one number"
        )
    return [(weight, bias) for _, weight, bias in layers]
