"""Each placement option on and off: its effect on seconds, memory and picture, on the CPU.

    mezzotint bench placement [--narrower 4] [--side 640] [--steps 4] [--folder DIR]

A Stable Diffusion 1.5 with random weights (nothing is downloaded) draws the same two pictures
in a fresh process for each row of the table, twice: the first run converts and writes what is
kept, the second counts. Decibels are of the worse picture to the plain one of the same backend.
With `--only` the other rows stay as the result file has them. ``packed`` is the same model with
its U-Net's matrices as 8-bit floats with scales. At 640 px the autoencoder cuts its tiles, which
it does not at its own 512.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench._real_size import MEASURE, PROMPT, SCALE, SEED, decibels, make, rounded, run
from bench._report import RESULTS, write

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "openvino": ("exact", {}),
    "openvino, turbo": ("turbo", {}),
    "openvino, dtype bfloat16": ("exact", {"dtype": "bfloat16"}),
    "openvino, offload disk": ("exact", {"offload": "disk"}),
    "openvino, vae_slicing": ("exact", {"vae_slicing": True}),
    "openvino, vae_tiling": ("exact", {"vae_tiling": True}),
    "torch": ("exact", {"backend": "torch"}),
    "torch, turbo": ("turbo", {"backend": "torch"}),
    "torch, dtype bfloat16": ("exact", {"backend": "torch", "dtype": "bfloat16"}),
    "torch, channels_last": ("exact", {"backend": "torch", "channels_last": True}),
    "torch, attention_slicing": ("exact", {"backend": "torch", "attention_slicing": True}),
    "torch, vae_slicing": ("exact", {"backend": "torch", "vae_slicing": True}),
    "torch, vae_tiling": ("exact", {"backend": "torch", "vae_tiling": True}),
    "torch, offload disk": ("exact", {"backend": "torch", "offload": "disk"}),
    "torch, bfloat16 and offload disk": (
        "exact", {"backend": "torch", "dtype": "bfloat16", "offload": "disk"},
    ),
    "torch, packed": ("exact", {"backend": "torch"}),
}  # fmt: skip
DRAW = f"""{MEASURE}
import sys, mezzotint as mz
from mezzotint.types import Stepped
folder, out, side, steps, tier, options = sys.argv[1:]
engine_options = {{'cache_memory_bytes': 0, 'cache_disk_bytes': 0}}
with mz.Engine(engine=engine_options, **json.loads(options)) as engine:
    handle = engine.submit(mz.GenerationRequest(
        model=folder, prompt={PROMPT!r}, seed={SEED}, guidance_scale={SCALE}, width=int(side),
        height=int(side), num_inference_steps=int(steps), num_images=2, reproducibility=tier))
    for event in handle.events():
        if isinstance(event, Stepped) and event.image == 0:
            seen.append(time.perf_counter())
    images = handle.result().images
for k, image in enumerate(images):
    image.save(f'{{out}}-{{k}}.png')
tell(notes=[warning for warning in images[0].warnings])
"""


def main() -> None:
    """Make the models, draw row by row, write what each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--narrower", type=int, default=4, help="divides the widths")
    parser.add_argument("--folder", type=Path, help="where the model is, or is made")
    parser.add_argument("--only", default="", help="rows whose names hold this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = options.folder or work / "sd15"
        if not (folder / "model_index.json").is_file():
            make(folder, "sd15", narrower=options.narrower)
        rows = {}
        for label, (tier, asked) in ROWS.items():
            plain = label.partition(",")[0]
            if options.only not in label and label != plain:
                continue
            model = _packed(folder, work / "packed") if "packed" in label else folder
            picture = work / label.replace(", ", "-").replace(" ", "_")
            arguments = (model, picture, options.side, options.steps, tier, json.dumps(asked))
            first = run(DRAW, work / "home", *arguments)
            row = first if "error" in first else run(DRAW, work / "home", *arguments)
            rows[label] = {**row, "first_clock_s": first.get("clock_s")}
            if "error" not in row and label != plain:
                pairs = [
                    (work / f"{plain}-{k}.png", picture.with_name(f"{picture.name}-{k}.png"))
                    for k in range(2)
                ]
                worst = min(decibels(one, other) for one, other in pairs)
                rows[label]["db"] = "same bytes" if worst == float("inf") else worst
            print(label, rounded(rows[label]), flush=True)
    if options.only:
        before = json.loads((RESULTS / "placement.json").read_text())["runs"]
        found = {**before, **rows}
        rows = {label: found[label] for label in ROWS if label in found}
    write(
        "placement",
        {
            "what": f"SD 1.5 / {options.narrower}, two pictures of {options.side} px, "
            f"{options.steps} steps, guidance {SCALE}, second run of a fresh process each",
            "command": f"mezzotint bench placement --narrower {options.narrower} "
            f"--side {options.side} --steps {options.steps}",
            "highest load of the machine": round(max(r.get("load", 0) for r in rows.values()), 1),
            "runs": {label: rounded(row) for label, row in rows.items()},
        },
    )


def _packed(folder: Path, target: Path) -> Path:
    """Write a model's folder again with the U-Net's matrices as 8-bit floats with scales."""
    import torch
    from safetensors.torch import load_file, save_file

    if target.is_dir():
        return target
    target.mkdir()
    for part in folder.iterdir():
        if part.name != "unet":
            (target / part.name).symlink_to(part.resolve())
    (target / "unet").mkdir()
    (target / "unet" / "config.json").symlink_to((folder / "unet" / "config.json").resolve())
    state: dict[str, torch.Tensor] = {}
    for file in (folder / "unet").glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            state[name] = tensor
            if tensor.ndim == 2:
                scale = tensor.float().abs().max() / 448
                state[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
                state[name.removesuffix(".weight") + ".scale_weight"] = scale
    save_file(state, target / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return target


if __name__ == "__main__":
    main()
