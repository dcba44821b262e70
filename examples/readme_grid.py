"""Draw the captions and the GAN's samples of the README, unpicked.

`bench plate --sheet` draws the 64 captions between them.

python examples/readme_grid.py OUT_FOLDER
"""

import sys
from pathlib import Path

import numpy as np

import mezzotint as mz
from mezzotint.images.codec import encode

CAPTIONS = (
    "a red apple with a green leaf",
    "a slice of pizza",
    "a yellow sun",
    "a red car",
    "a strawberry",
    "a blue heart",
    "a fish on a yellow background",
    "two red apples",
    "a green tree",
)


def sheet(pictures: list[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Set pictures of one size side by side on white."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for k, picture in enumerate(pictures):
        y, x = (k // columns) * (height + gap), (k % columns) * (width + gap)
        canvas[y : y + height, x : x + width] = picture
    return canvas


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    captions = [mz.generate(caption, seed=0).images[0].pixels for caption in CAPTIONS]
    (folder / "captions.png").write_bytes(encode(sheet(captions, len(CAPTIONS)), "png"))
    drawn = mz.generate("", model="plate-gan", seed=0, num_images=64).images
    (folder / "gan.png").write_bytes(encode(sheet([i.pixels for i in drawn], 16, 2), "png"))


if __name__ == "__main__":
    main()
