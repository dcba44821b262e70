"""What ``sample`` writes of a run of arrays: numbers, sound, figures and movies.

Dimensions: N samples, C channels, L length, H and W rows and columns.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mezzotint.cli.figures.drawing import check_figure_path, draw_values, figure
from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.outputs import FORMATS as PICTURES
from mezzotint.cli.outputs import MOVING
from mezzotint.files import write_atomically

__all__ = ["draw_fields", "draw_spectrograms", "movie_frames", "write_arrays"]

_MOST_ROWS = 16
_FPS = 12.0
_RANGE_DB = 80.0
_COLOURS = 3  # channels that are red, green and blue


def write_arrays(trainer: Any, request: Any, output: Path | None, output_dir: Path) -> list[Path]:
    """Draw the samples of a request and write them as the name after ``-o`` says.

    Args:
        trainer: A run of arrays.
        request: How many, from which seed, how.
        output: What ``-o`` said; None writes sound as WAV and all else as ``.npy``.
        output_dir: Folder for files without ``-o``.

    Returns:
        The files; none where a sample is drawn as a picture like any other.

    Raises:
        WrongFlag: If nothing can be written there.
    """
    about = trainer.describe()
    if output is None:
        output_dir.mkdir(parents=True, exist_ok=True)
        suffix = ".wav" if about.sample_rate else ".npy"
        output = output_dir / f"{Path(request.model).name}{suffix}"
    elif not output.absolute().parent.is_dir():
        raise WrongFlag("--output", f"the folder {output.parent} does not exist")
    kind = output.suffix.lower()
    if kind == ".npy":
        return [_write_numbers(output, _values(trainer, request))]
    if kind == ".wav":
        return _write_sounds(output, trainer, request, about.sample_rate)
    if PICTURES.get(kind) in MOVING:
        return [_write_movie(output, trainer, request, about)]
    one_picture = request.num_images == 1 and not about.sample_rate
    if about.data == "fields":
        one_picture = about.shape[0] in (1, _COLOURS)  # pictures, one each
    if one_picture and kind not in (".svg", ".pdf"):
        return []
    check_figure_path(output)
    if about.sample_rate:
        _check_rows(request.num_images)
        draw_spectrograms(output, _values(trainer, request), about.sample_rate)
    elif about.data == "fields":
        _check_rows(request.num_images)
        draw_fields(output, _values(trainer, request), about.channel_names)
    else:
        draw_values(output, _values(trainer, request))
    return [output]


def _values(trainer: Any, request: Any, *, circle: bool = False) -> Any:
    """Draw arrays in the units of the data. Shape (N, *shape), float32."""
    guidance, label = request.guidance_scale, request.latent.class_label
    return trainer.draw(
        request.num_images,
        seed=request.seed or 0,
        num_inference_steps=request.num_inference_steps,
        scheduler=request.scheduler,
        guidance_scale=guidance if isinstance(guidance, float) else None,
        labels=None if label is None else [label] * request.num_images,
        circle=circle,
    )


def _check_rows(count: int) -> None:
    if count > _MOST_ROWS:
        raise WrongFlag(
            "--num-images", f"at most {_MOST_ROWS} samples fit into one figure, got {count}"
        )


def _write_numbers(path: Path, values: Any) -> Path:
    """Write arrays as ``.npy``."""
    import numpy as np

    stream = io.BytesIO()
    np.save(stream, values)
    return write_atomically(path, stream.getvalue())


def _write_sounds(path: Path, trainer: Any, request: Any, rate: int) -> list[Path]:
    """Write each sample as a WAV file; several are numbered."""
    from mezzotint.train.sound import encode_wav

    if not rate:
        raise WrongFlag(
            "--output",
            "this run says no data.sample_rate, so it is no sound; write .npy, or a picture",
        )
    paths: list[Path] = []
    for number, sound in enumerate(_values(trainer, request)):
        data, beyond = encode_wav(sound, rate)
        several = request.num_images > 1
        place = path.with_name(f"{path.stem}-{number:04d}{path.suffix}") if several else path
        paths.append(write_atomically(place, data))
        if beyond:
            print(f"warning: {place}: {beyond} values beyond full scale cut", file=sys.stderr)
    return paths


def draw_spectrograms(path: Path, values: Any, sample_rate: int) -> None:
    """Draw the first channel of each sound over time and frequency, one below the other.

    Args:
        path: Where to.
        values: Fractions of full scale. Shape (N, C, L).
        sample_rate: Values a second, in Hz.

    Colours are the power beside the loudest of all, over 80 dB; windows are Hann's, of
    about 64 ms, three quarters of each shared with the next.
    """
    import numpy as np

    window = 1 << max(3, round(np.log2(0.064 * sample_rate)))
    window = min(window, values.shape[-1])
    hop, shape = max(1, window // 4), np.hanning(window)
    padded = np.pad(values[:, 0], ((0, 0), (window // 2, window // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, ::hop]
    power = np.abs(np.fft.rfft(frames * shape, axis=2)) ** 2
    level = 10 * np.log10(power / max(float(power.max()), 1e-30) + 1e-12)
    seconds = values.shape[-1] / sample_rate
    rows = len(values)
    with figure(path, width=8.0, height=1.2 + 2.0 * rows, rows=rows) as found:
        axes: Sequence[Any] = [found] if rows == 1 else found
        for axis, picture in zip(axes, level, strict=True):
            axis.imshow(
                picture.T, origin="lower", aspect="auto", cmap="magma", vmin=-_RANGE_DB, vmax=0,
                extent=(0, seconds, 0, sample_rate / 2), interpolation="nearest",
            )  # fmt: skip
            axis.grid(visible=False)
            axis.set_ylabel("frequency / Hz")
        axes[-1].set_xlabel("time / s")
        axes[0].figure.colorbar(axes[-1].images[0], ax=list(axes), label="power / dB")


def _limits(values: Any) -> list[tuple[float, float, str]]:
    """Return range and colour map of each channel: from blue to red around 0 if it has both."""
    found: list[tuple[float, float, str]] = []
    for channel in range(values.shape[1]):
        low, high = float(values[:, channel].min()), float(values[:, channel].max())
        if low < 0 < high:
            far = max(-low, high)
            found.append((-far, far, "RdBu_r"))
        else:
            found.append((low, high, "viridis"))
    return found


def _draw_maps(drawn: Any, values: Any, names: Sequence[str]) -> list[list[Any]]:
    """Lay out one map for each sample and channel; return what was drawn, row by row."""
    rows, columns = values.shape[:2]
    shown: list[list[Any]] = []
    for row in range(rows):
        shown.append([])
        for column, (low, high, colours) in enumerate(_limits(values)):
            axis = drawn.add_subplot(rows, columns, row * columns + column + 1)
            shown[-1].append(
                axis.imshow(
                    values[row, column], cmap=colours, vmin=low, vmax=high, interpolation="nearest"
                )
            )
            axis.set_axis_off()
            if row == 0:
                axis.set_title(names[column] if names else f"channel {column + 1}", fontsize=9)
            drawn.colorbar(shown[-1][-1], ax=axis, shrink=0.85)
    return shown


def draw_fields(path: Path, values: Any, names: Sequence[str]) -> None:
    """Draw maps: a row for each sample, a column for each channel.

    Args:
        path: Where to.
        values: Shape (N, C, H, W).
        names: What each channel is; empty if nobody said.
    """
    rows, columns = values.shape[:2]
    with figure(path, width=3.4 * columns, height=2.8 * rows, rows=0) as drawn:
        _draw_maps(drawn, values, names)


def movie_frames(values: Any, names: Sequence[str]) -> list[Any]:
    """Draw each sample as one frame, all with the same colours.

    Args:
        values: Shape (N, C, H, W).
        names: What each channel is; empty if nobody said.

    Returns:
        Frames of one size, (rows, columns, 3), uint8.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(3.4 * values.shape[1], 2.8), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(drawn)
    maps = _draw_maps(drawn, values[:1], names)[0]
    for shown, (low, high, colours) in zip(maps, _limits(values), strict=True):
        shown.set_cmap(colours)
        shown.set_clim(low, high)
    frames: list[Any] = []
    for value in values:
        for shown, channel in zip(maps, value, strict=True):
            shown.set_data(channel)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def _write_movie(path: Path, trainer: Any, request: Any, about: Any) -> Path:
    """Write samples along a circle of noise as one moving file."""
    from mezzotint.images.animation import check_animation, encode_animation
    from mezzotint.request import Animation

    kind: Any = PICTURES[path.suffix.lower()]
    animation = Animation(format=kind, fps=_FPS)
    check_animation(animation)
    if about.data != "fields":
        raise WrongFlag("--output", f"a movie is made of fields, this run answers {about.data}")
    if request.num_images < 2:
        raise WrongFlag("--num-images", "a movie needs at least two frames, got 1")
    values = _values(trainer, request, circle=True)
    frames = movie_frames(values, about.channel_names)
    return write_atomically(path, encode_animation(frames, animation))
