"""Animation: the pictures of a walk as one file that moves.

Animated WebP and APNG keep every colour, GIF keeps 256 a frame, MP4 is written by
``ffmpeg`` where that program is on PATH. Equal frames and settings give equal bytes
(for MP4: with the same ffmpeg). The recipe goes where the format has room for words:
Exif in WebP, text chunks in APNG, comment blocks in GIF, a ``uuid`` box in MP4.

Source: PNG 3rd edition, section 11.3.6 (APNG); GIF89a, section 24 (comments);
ISO/IEC 14496-12, section 11.1 (``uuid`` boxes).
"""

import io
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from mezzotint.errors import ImageError, InvalidRequest, ShapeError, WorkFailed
from mezzotint.images.png import deflate, filter_rows
from mezzotint.request import Animation
from mezzotint.textchunks import (
    PARAMETERS,
    RECIPE,
    gif_comments,
    make_exif,
    mp4_box,
    png_chunk,
    png_chunks,
)

__all__ = ["check_animation", "decode_frames", "encode_animation", "order_frames"]

_FFMPEG_SECONDS = 600


def check_animation(animation: Animation) -> None:
    """Refuse what could not be written here, before a frame is drawn.

    Raises:
        InvalidRequest: For MP4 without ffmpeg, or a rate that GIF cannot hold.
    """
    if animation.format == "mp4" and shutil.which("ffmpeg") is None:
        raise InvalidRequest(
            "output.animation.format mp4 is written by ffmpeg, which is not on PATH; "
            "install it, or take webp, apng or gif",
            field="output.animation.format",
            value="mp4",
            allowed="webp, apng, gif",
        )
    if animation.format == "gif" and animation.fps > 50:
        raise InvalidRequest(
            "output.animation.fps must be at most 50 for gif, whose clock ticks in "
            f"hundredths of a second, got {animation.fps:g}",
            field="output.animation.fps",
            value=animation.fps,
            allowed="0.1 to 50",
        )


def order_frames(frames: Sequence[np.ndarray], animation: Animation) -> list[np.ndarray]:
    """Return the frames as they are shown: ping-pong comes back without its two ends."""
    there = list(frames)
    return there + there[-2:0:-1] if animation.loop == "pingpong" else there


def encode_animation(
    frames: Sequence[np.ndarray],
    animation: Animation,
    *,
    quality: int = 90,
    parameters: str = "",
    recipe: str = "",
) -> bytes:
    """Write pictures as one moving file.

    Args:
        frames: One picture per position of the walk, each (H, W, 3), uint8, one size.
        animation: Format, rate and loop.
        quality: 1 to 100; for WebP and MP4.
        parameters: A1111's text, "" for none.
        recipe: Our recipe as JSON, "" for none.

    Returns:
        The file.

    Raises:
        ShapeError: If there are no frames or their sizes differ.
        InvalidRequest: As :func:`check_animation`.
        WorkFailed: If ffmpeg fails.
    """
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1:
        raise ShapeError(f"an animation needs frames of one size, got {sorted(shapes) or 'none'}")
    check_animation(animation)
    shown = order_frames(frames, animation)
    texts = {k: t for k, t in ((PARAMETERS, parameters), (RECIPE, recipe)) if t}
    match animation.format:
        case "apng":
            return _apng(shown, animation, texts)
        case "gif":
            return _gif(shown, animation, texts)
        case "webp":
            return _webp(shown, animation, quality, parameters, recipe)
        case "mp4":
            return _mp4(shown, animation, quality) + mp4_box(texts)


def decode_frames(data: bytes) -> list[np.ndarray]:
    """Decode every frame of a moving WebP, APNG or GIF of our own.

    Args:
        data: The file.

    Returns:
        Frames as shown, each (H, W, 3), uint8.

    Raises:
        ImageError: If it is no such file.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "GIF")) as picture:
            shown = (np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture))
            return list(shown)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ImageError(f"expected an animated WebP, APNG or GIF: {error}") from None


def _durations(count: int, fps: float, ticks: int) -> list[int]:
    """Return how long each frame stands, in ``1 / ticks`` s, so that rounding never adds up."""
    ends = [round(ticks * k / fps) for k in range(count + 1)]
    return [b - a for a, b in pairwise(ends)]


def _webp(
    frames: Sequence[np.ndarray], animation: Animation, quality: int, parameters: str, recipe: str
) -> bytes:
    first, *rest = [Image.fromarray(frame) for frame in frames]
    stream = io.BytesIO()
    first.save(
        stream,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=_durations(len(frames), animation.fps, 1000),
        loop=1 if animation.loop == "once" else 0,
        quality=quality,
        method=4,
        exif=make_exif(parameters, recipe) if parameters or recipe else b"",
    )
    return stream.getvalue()


def _gif(frames: Sequence[np.ndarray], animation: Animation, texts: Mapping[str, str]) -> bytes:
    first, *rest = [
        Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT) for frame in frames
    ]
    # A frame that equals the one before is merged with it: its time must not be lost.
    options = {} if animation.loop == "once" else {"loop": 0}
    stream = io.BytesIO()
    first.save(
        stream,
        "GIF",
        save_all=True,
        append_images=rest,
        duration=[10 * d for d in _durations(len(frames), animation.fps, 100)],
        disposal=1,
        optimize=False,
        **options,
    )
    data = stream.getvalue()
    return b"GIF89a" + data[6:-1] + gif_comments(texts) + data[-1:]


def _apng(frames: Sequence[np.ndarray], animation: Animation, texts: Mapping[str, str]) -> bytes:
    height, width = frames[0].shape[:2]
    delay = (1 / Fraction(animation.fps)).limit_denominator(65_535)
    if delay.numerator > 65_535:
        delay = Fraction(round(delay))
    plays = 1 if animation.loop == "once" else 0
    chunks = [
        b"\x89PNG\r\n\x1a\n",
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        png_chunk(b"acTL", struct.pack(">II", len(frames), plays)),
        png_chunk(b"sRGB", b"\0"),
        png_chunks(texts),
    ]
    number = 0
    for k, frame in enumerate(frames):
        control = (number, width, height, 0, 0, delay.numerator, delay.denominator, 0, 0)
        chunks.append(png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", *control)))
        number += 1
        body = deflate(filter_rows(frame), 1)
        if k == 0:
            chunks.append(png_chunk(b"IDAT", body))
        else:
            chunks.append(png_chunk(b"fdAT", struct.pack(">I", number) + body))
            number += 1
    return b"".join((*chunks, png_chunk(b"IEND", b"")))


def _mp4(frames: Sequence[np.ndarray], animation: Animation, quality: int) -> bytes:
    """Let ffmpeg write H.264; odd sides are made even by repeating the last pixels."""
    program = shutil.which("ffmpeg")
    assert program is not None  # noqa: S101 - checked before
    height, width = frames[0].shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    even = [np.pad(frame, pad, mode="edge") for frame in frames]
    rate = str(Fraction(animation.fps).limit_denominator(1001))
    crf = min(max(18 + (90 - quality) // 3, 0), 51)
    with tempfile.TemporaryDirectory(prefix="mezzotint-") as folder:
        target = Path(folder) / "walk.mp4"
        command = [
            program, "-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-threads", "1",
            "-f", "rawvideo", "-pix_fmt", "rgb24",
            "-s", f"{even[0].shape[1]}x{even[0].shape[0]}", "-r", rate, "-i", "pipe:0",
            "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf),
            "-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart",
            str(target),
        ]  # fmt: skip
        try:
            done = subprocess.run(  # noqa: S603 - our own arguments, no shell
                command,
                input=b"".join(np.ascontiguousarray(f).tobytes() for f in even),
                capture_output=True,
                timeout=_FFMPEG_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WorkFailed(f"ffmpeg did not write the animation: {error}") from None
        if done.returncode or not target.is_file():
            said = done.stderr.decode("utf-8", "replace").strip()[-300:]
            raise WorkFailed(f"ffmpeg did not write the animation: {said or done.returncode}")
        return target.read_bytes()
