"""Drawing: figures as SVG or PNG through matplotlib, without a display and without a trace of when.

matplotlib is imported when a figure is drawn: nobody else waits for it. The same numbers
give the same bytes with the same version of it.
"""

import contextlib
import io
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mezzotint.cli.flags import WrongFlag
from mezzotint.errors import WorkFailed
from mezzotint.files import write_atomically

__all__ = ["FORMATS", "INK", "check_figure_path", "draw_lines", "draw_values", "figure"]

FORMATS = (".svg", ".png", ".pdf")
INK = (
    "#1f5fa8", "#c8472f", "#3b8a4a", "#8a5aa8", "#d08a1e", "#3a9aa8",
    "#7a5245", "#c8609a", "#6f6f6f", "#9a9a2a", "#22337a", "#145a32",
)  # fmt: skip
"""Colours of curves, in turn; told apart without red against green alone."""
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, and the file is small
    "svg.hashsalt": "mezzotint",
}
_DPI = 150

Curve = Sequence[tuple[float, float]]


def check_figure_path(path: Path, flag: str = "--output") -> None:
    """Refuse a file name that no figure can be written under, before any work.

    Raises:
        WrongFlag: If its ending or its folder is wrong.
    """
    if path.suffix.lower() not in FORMATS:
        raise WrongFlag(flag, f"must end in {', '.join(FORMATS)}, got {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise WrongFlag(flag, f"the folder {path.parent} does not exist")


@contextlib.contextmanager
def figure(path: Path, *, width: float = 8.0, height: float = 5.0, rows: int = 1) -> Generator[Any]:
    """Give a figure's axes and write it to a file when the block ends well.

    Args:
        path: Where to; its ending is the format.
        width: Inches.
        height: Inches.
        rows: Axes below one another, which share what lies across; 0 makes none.

    Yields:
        The axes, a list of them where there are several rows, the empty figure for none.

    Raises:
        WorkFailed: If the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    library: Any = mpl  # its own annotations leave open what a style may hold
    with library.rc_context(_STYLE):
        drawn: Any = Figure(figsize=(width, height))
        FigureCanvasAgg(drawn)
        axes = [drawn.add_subplot(rows, 1, k + 1) for k in range(rows)]
        yield drawn if rows == 0 else axes[0] if rows == 1 else axes
        stream = io.BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        drawn.savefig(stream, format=kind, dpi=_DPI, metadata=dates.get(kind, {"Software": None}))
    try:
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise WorkFailed(f"cannot write {path}: {error.strerror or error}") from None


def draw_lines(
    path: Path, curves: Mapping[str, Curve], *, across: str, up: str, logarithmic: bool = True
) -> None:
    """Draw each curve, named in a legend beside them.

    Args:
        path: Where to.
        curves: Points by name; above 0 where the axes are logarithmic.
        across: Name of the horizontal axis.
        up: Name of the vertical axis.
        logarithmic: Whether both axes are.
    """
    with figure(path, width=9.0) as axes:
        for number, (name, curve) in enumerate(curves.items()):
            axes.plot(
                [x for x, _ in curve],
                [max(y, 1e-12) if logarithmic else y for _, y in curve],
                label=name,
                color=INK[number % len(INK)],
                linestyle="-" if number < len(INK) else "--",
                marker="o",
                markersize=3.5,
            )
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_values(path: Path, values: Any) -> None:
    """Draw many samples of arrays in one picture.

    Args:
        path: Where to.
        values: Points, (N, D): a scatter of the first two features, or a histogram of one.
            Series, (N, C, L): curves over one another, a colour for each channel.
    """
    faint = float(min(1.0, max(0.08, 30 / len(values))))
    is_points = values.ndim == 2
    with figure(path, width=6.0 if is_points else 8.0, height=6.0 if is_points else 4.0) as axes:
        if is_points and values.shape[1] == 1:
            axes.hist(values[:, 0], bins=60, color=INK[0])
            axes.set_xlabel("feature 1")
        elif is_points:
            axes.scatter(
                values[:, 0], values[:, 1], s=9, alpha=max(faint, 0.35), color=INK[0], linewidths=0
            )
            axes.set_aspect("equal", adjustable="datalim")
            axes.set_xlabel("feature 1")
            axes.set_ylabel("feature 2")
        else:
            for channel in range(values.shape[1]):
                ink = INK[channel % len(INK)]
                axes.plot(values[:, channel].T, color=ink, alpha=faint, linewidth=0.9)
            axes.set_xlabel("position")
        axes.set_title(f"{len(values)} samples", fontsize=9, loc="left")
