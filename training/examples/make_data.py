"""Make the small data that the examples of this folder learn from, in a few seconds.

    python training/examples/make_data.py [FOLDER]

Writes ``data/points.npy``, ``data/waves.npy``, ``data/pictures`` (shapes with captions),
``data/style`` (twenty line drawings with captions) and, where scikit-learn is installed
(``pip install scikit-learn``), ``data/digits`` (its handwritten digits in class folders).
"""

import sys
from pathlib import Path

try:
    import numpy as np
    from PIL import Image, ImageDraw
except ModuleNotFoundError as error:
    sys.exit(
        f"make_data.py needs {error.name}, which is not in this Python ({sys.executable}); run it "
        "with the Python that Mezzotint is installed in: .venv/bin/python in a checkout, after "
        "./dev setup, or: pip install numpy pillow"
    )

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 210),
    "yellow": (240, 200, 40),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "star")
COUNTS = {"a": 1, "two": 2}


def main(folder: Path) -> None:
    """Write everything below a folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "points.npy", points(rng, 20_000))
    np.save(folder / "waves.npy", waves(rng, 4_000))
    captioned(folder / "pictures", rng, count=1_000, side=64)
    captioned(folder / "style", rng, count=20, side=128, outlined=True)
    digits(folder / "digits")
    print(f"written below {folder}")


def points(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw points of three Gaussians. Shape (N, 2), float32."""
    means = np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, -3.0]])
    part = rng.choice(3, size=count, p=(0.5, 0.3, 0.2))
    spread = np.array([0.3, 0.5, 0.2])[part, None]
    return (means[part] + spread * rng.normal(size=(count, 2))).astype(np.float32)


def waves(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw sine waves of three or five periods. Shape (N, 1, 64), float32."""
    periods = rng.choice((3, 5), size=(count, 1))
    phase = rng.uniform(0, 2 * np.pi, (count, 1))
    return np.sin(2 * np.pi * periods * np.arange(64) / 64 + phase)[:, None].astype(np.float32)


def captioned(
    folder: Path, rng: np.random.Generator, *, count: int, side: int, outlined: bool = False
) -> None:
    """Draw shapes on white, each with its caption beside it."""
    folder.mkdir(exist_ok=True)
    for k in range(count):
        words, colour, shape = (
            str(rng.choice(list(choices))) for choices in (COUNTS, COLOURS, SHAPES)
        )
        picture = Image.new("RGB", (4 * side, 4 * side), "white")
        pen = ImageDraw.Draw(picture)
        places = COUNTS[words]
        for place in range(places):
            radius = 4 * side * rng.uniform(0.25, 0.4) / places
            centre = (4 * side * (place + 0.5) / places, 2 * side + rng.uniform(-1, 1) * radius / 2)
            draw(pen, shape, centre, radius, COLOURS[colour], outlined=outlined)
        picture.resize((side, side), Image.Resampling.LANCZOS).save(folder / f"{k:04}.png")
        plural = "s" if places > 1 else ""
        (folder / f"{k:04}.txt").write_text(f"{words} {colour} {shape}{plural}")


def draw(
    pen: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    colour: tuple[int, int, int],
    *,
    outlined: bool,
) -> None:
    """Draw one shape, filled or as a line."""
    corners = {"circle": 60, "square": 4, "triangle": 3, "star": 10}[shape]
    angles = np.arange(corners) * 2 * np.pi / corners - (
        np.pi / 4 if shape == "square" else np.pi / 2
    )
    radii = np.where(np.arange(corners) % 2, 0.45, 1.0) if shape == "star" else np.ones(corners)
    xy = [
        (centre[0] + radius * r * np.cos(a), centre[1] + radius * r * np.sin(a))
        for a, r in zip(angles, radii, strict=True)
    ]
    if outlined:
        pen.line([*xy, xy[0], xy[1]], fill=colour, width=max(int(radius / 8), 4), joint="curve")
    else:
        pen.polygon(xy, fill=colour)


def digits(folder: Path) -> None:
    """Write scikit-learn's digits, 16 px, one folder for each."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        print("no digits: they come with scikit-learn (pip install scikit-learn)")
        return
    pictures, labels = load_digits(return_X_y=True)
    for k, (pixels, label) in enumerate(zip(pictures.reshape(-1, 8, 8), labels, strict=True)):
        target = folder / str(label)
        target.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8))
        grey.resize((16, 16), Image.Resampling.BILINEAR).save(target / f"{k:04}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
