"""A transformer of 12 B weights in a 4-bit file: one picture, its peak of memory, its seconds.

    mezzotint bench packed [--layers 19 38] [--side 256] [--steps 1] [--folder DIR]

The published configuration of FLUX.1-dev with random Q4_0 blocks (6.8 GB; nothing is
downloaded), its autoencoder and CLIP; of T5's 24 layers there is one, since the text encoder
is not what is measured. A fresh process draws one picture in bfloat16 on the CPU.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench._real_size import MEASURE, PROMPT, TEXT, VAE, rounded, run
from bench._report import write

TRANSFORMER: dict[str, Any] = {
    "attention_head_dim": 128, "guidance_embeds": True, "in_channels": 64,
    "joint_attention_dim": 4096, "num_attention_heads": 24, "patch_size": 1,
    "pooled_projection_dim": 768,
}  # fmt: skip
T5: dict[str, Any] = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 1,
    "feed_forward_proj": "gated-gelu", "vocab_size": 32128,
}  # fmt: skip
DRAW = f"""{MEASURE}
import sys, mezzotint as mz
folder, out, side, steps, dtype = sys.argv[1:]
with mz.Engine(dtype=dtype, engine={{'cache_disk_bytes': 0, 'certify': False}}) as engine:
    result = engine.generate(mz.GenerationRequest(
        model=folder, prompt={PROMPT!r}, seed=7, width=int(side), height=int(side),
        num_inference_steps=int(steps)))
result.images[0].save(out)
timings = result.images[0].timings
tell(notes=list(result.images[0].warnings), denoise_s=timings.denoise_s)
"""


def main() -> None:
    """Make the model if it is not there, draw with it, write what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs=2, default=(19, 38), help="double and single")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path, help="where the model is, or is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = options.folder or work / "flux"
        if not (folder / "model_index.json").is_file():
            make_flux(folder, *options.layers)
            print("the model is made", flush=True)
        file = folder / "transformer" / "flux1-dev-Q4_0.gguf"
        found = run(
            DRAW, work / "home", folder, work / "picture.png", options.side, options.steps,
            options.dtype,
        )  # fmt: skip
    write(
        "packed",
        {
            "what": f"FLUX.1-dev of {options.layers[0]} and {options.layers[1]} layers, Q4_0, "
            f"{options.side} px, {options.steps} steps, {options.dtype}, T5 of one layer",
            "command": f"mezzotint bench packed --layers {options.layers[0]} {options.layers[1]} "
            f"--side {options.side} --steps {options.steps}",
            "transformer's file, GB": round(file.stat().st_size / 1e9, 2) if file.is_file() else 0,
            "run": rounded(found),
        },
    )


def make_flux(folder: Path, double: int, single: int) -> None:
    """Write the folder of a FLUX.1-dev with a random transformer in Q4_0.

    Args:
        folder: Where; it must not be there.
        double: Layers with a stream for text and one for the picture, 19 as published.
        single: Layers with one stream, 38 as published.
    """
    import torch
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

    from mezzotint.models.formats.single_file import clip_vocabulary

    config = {**TRANSFORMER, "num_layers": double, "num_single_layers": single}
    vae = {
        **VAE, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159,
        "use_quant_conv": False, "use_post_quant_conv": False,
    }  # fmt: skip
    with init_empty_weights():
        transformer = FluxTransformer2DModel(**config)
    (folder / "transformer").mkdir(parents=True)
    named = {"_class_name": "FluxTransformer2DModel", **config}
    (folder / "transformer" / "config.json").write_text(json.dumps(named))
    _write_blocks(transformer, folder / "transformer" / "flux1-dev-Q4_0.gguf")
    for role, module in (  # what they are born with is random enough
        ("vae", AutoencoderKL(**vae)),
        ("text_encoder", CLIPTextModel(CLIPTextConfig(**TEXT))),
        ("text_encoder_2", T5EncoderModel(T5Config(**T5))),
    ):
        module.to(torch.bfloat16).save_pretrained(folder / role)
    words, merges = clip_vocabulary()
    CLIPTokenizer(vocab=words, merges=merges, model_max_length=77).save_pretrained(
        folder / "tokenizer"
    )
    _letters().save_pretrained(folder / "tokenizer_2")
    (folder / "scheduler").mkdir()
    scheduler = {"shift": 3.0, "use_dynamic_shifting": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index: dict[str, Any] = {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def _write_blocks(module: Any, path: Path) -> None:
    """Write a network's matrices as random Q4_0 blocks of about unit gain, the rest as floats."""
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType.Q4_0
    block, size = gguf.GGML_QUANT_SIZES[kind]
    codes = np.random.default_rng(0).integers(0, 256, (1 << 20, size), dtype=np.uint8)
    writer = gguf.GGUFWriter(str(path), "flux", use_temp_file=True)
    for name, tensor in module.state_dict().items():
        rows, *rest = tensor.shape
        if len(rest) == 1 and rest[0] % block == 0:
            blocks = np.resize(codes, (rows * rest[0] // block, size))
            scale = np.float16(rest[0] ** -0.5 / 4.6)  # the codes' deviation
            blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
            writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=kind)
        else:
            values = np.full(tuple(tensor.shape), float(name.endswith("weight")), np.float32)
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _letters() -> Any:
    """Return a tokenizer of T5's kind over letters."""
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), ("\u2581", -3.0)]
    pieces += [(chr(code), -5.0) for code in range(33, 127)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


if __name__ == "__main__":
    main()
