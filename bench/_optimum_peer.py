"""optimum-intel's pipeline over a folder of ``plate``, asked line by line; run by another Python.

    PYTHON _optimum_peer.py FOLDER

Its own exporter knows CLIP as the text encoder of a Stable Diffusion and no other: it converts
with a stand-in of the same width, which is never called. Prompts are encoded by the folder's own
text encoder in torch. U-Net, decoder, scheduler and words are those of the folder.

Each line that comes is a JSON object with ``prompt``, ``seed``, ``num_inference_steps`` and, if
the picture is to be kept, ``path``. Each line that goes has the seconds that it took; the first
says that it is ready.
"""

import json
import sys
import tempfile
import time
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel


def convert(plain: StableDiffusionPipeline) -> Any:
    """Return the pipeline with OpenVINO behind its networks, float32."""
    from optimum.intel import OVStableDiffusionPipeline  # only there, see ``bench optimum-intel``

    words = plain.text_encoder.config
    stand_in = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words.vocab_size,
            hidden_size=words.hidden_size,
            projection_dim=words.hidden_size,
            max_position_embeddings=words.max_position_embeddings,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline(
            vae=plain.vae,
            text_encoder=stand_in,
            tokenizer=plain.tokenizer,
            unet=plain.unet,
            scheduler=plain.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
        return OVStableDiffusionPipeline.from_pretrained(
            folder,
            export=True,
            compile=True,
            load_in_8bit=False,
            ov_config={"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"},
        )


def main() -> None:
    """Convert, then draw what comes."""
    told, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    plain = StableDiffusionPipeline.from_pretrained(sys.argv[1])
    pipeline = convert(plain)
    pipeline.set_progress_bar_config(disable=True)
    print(json.dumps({"ready": True}), file=told, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        with torch.no_grad():
            words, nothing = plain.encode_prompt(asked["prompt"], "cpu", 1, True)
        picture = pipeline(
            prompt_embeds=words,
            negative_prompt_embeds=nothing,
            num_inference_steps=asked["num_inference_steps"],
            guidance_scale=asked["guidance_scale"],
            generator=torch.Generator().manual_seed(asked["seed"]),
        ).images[0]
        seconds = time.perf_counter() - began
        if "path" in asked:
            picture.save(asked["path"])
        print(json.dumps({"seconds": seconds}), file=told, flush=True)


if __name__ == "__main__":
    main()
