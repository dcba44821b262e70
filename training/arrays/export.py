"""Write a run as the folder that is kept in the repository: its weights in half precision.

    python export.py RUN FOLDER [--scheduler unipc] [--guidance-scale 1.5] [--steps 50]

The folder is a run without its checkpoints and its data: ``mezzotint sample`` and
``mezzotint generate --model`` draw from it as they do from the run. Checkpoints, metrics and
the data report stay behind; a folder that is there is written over.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mezzotint.models.families.runs import RUN_FILE, WEIGHTS_FILE

CONFIG_FILE = "train_config.json"


def export(run: Path, folder: Path, defaults: dict[str, Any]) -> int:
    """Write the folder.

    Args:
        run: Folder of a finished run of arrays.
        folder: Where to; made if it is missing.
        defaults: Fields of ``mezzotint_run.json`` that are said anew.

    Returns:
        Bytes of the weights.

    Raises:
        OSError: If a file of the run is missing.
        OverflowError: If a weight is too large for half precision.
    """
    weights = load_file(run / "network" / WEIGHTS_FILE)
    halved = {name: value.half().contiguous() for name, value in weights.items()}
    if not all(torch.isfinite(value).all() for value in halved.values()):
        raise OverflowError(f"{run} holds a weight beyond 65504, which half precision has not")
    (folder / "network").mkdir(parents=True, exist_ok=True)
    save_file(halved, folder / "network" / WEIGHTS_FILE, metadata={"format": "pt"})
    for name in (Path("network") / "config.json", Path(CONFIG_FILE), Path(RUN_FILE)):
        plain = json.loads((run / name).read_text("utf-8"))
        if name.name == RUN_FILE:
            plain |= defaults
        else:
            plain = {k: v for k, v in plain.items() if k != "_name_or_path"}
        (folder / name).write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
    return (folder / "network" / WEIGHTS_FILE).stat().st_size


def main() -> None:
    """Read the arguments, write, say how large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--guidance-scale", type=float, help="where a request says none")
    parser.add_argument("--steps", type=int, help="solver steps where a request says none")
    parser.add_argument("--scheduler", help="where a request says none")
    options = parser.parse_args()
    said = {
        "default_scheduler": options.scheduler,
        "default_guidance_scale": options.guidance_scale,
        "default_steps": options.steps,
    }
    size = export(options.run, options.folder, {k: v for k, v in said.items() if v is not None})
    print(f"{options.folder}: {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
