"""Draw one picture offline, save it, and prove that its recipe makes it again.

python examples/generate.py OUT_FOLDER
"""

import sys
from pathlib import Path

import mezzotint as mz


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    result = mz.generate("a red apple with a green leaf", seed=7)
    image = result.images[0]
    print(image.save(folder / "apple.png"), f"seed {image.seed}", f"{image.timings}")

    again = mz.generate(mz.GenerationRequest(prompt="a red apple with a green leaf", seed=7))
    print("the same bytes:", again.images[0].bytes == image.bytes)


if __name__ == "__main__":
    main()
