"""Sound: series as WAV files.

Values are fractions of full scale. What lies beyond is cut, and counted, so that the
caller can say so.

Dimensions: C channels, L values of each.

Source: Multimedia Programming Interface and Data Specifications 1.0 (1991), chapter
"Waveform Audio File Format"; 16-bit PCM.
"""

import io
import wave

import numpy as np

from mezzotint.errors import ShapeError

__all__ = ["encode_wav"]

_FULL_SCALE = 32767


def encode_wav(values: np.ndarray, sample_rate: int) -> tuple[bytes, int]:
    """Write one sound as 16-bit PCM.

    Args:
        values: Fractions of full scale, -1 to 1. Shape (C, L).
        sample_rate: Values a second of each channel, in Hz.

    Returns:
        The file, and how many values lay beyond full scale and were cut.

    Raises:
        ShapeError: If there are not two axes.
    """
    if values.ndim != 2:
        raise ShapeError(f"a sound is (channels, length), got shape {values.shape}")
    beyond = int((np.abs(values) > 1).sum())
    scaled = (values.clip(-1, 1) * _FULL_SCALE).round().astype("<i2")
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(len(values))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(scaled.T.tobytes())
    return stream.getvalue(), beyond
