import json

import numpy as np
import pytest

from mezzotint.images.codec import encode
from mezzotint.images.png import encode_png
from mezzotint.images.readers import read_foreign, recipe_from_infotext
from mezzotint.request import Hires

PIXELS = np.zeros((8, 8, 3), np.uint8)

A1111 = (
    "a watercolour (soft:1.2) <lora:ink:0.8>\nNegative prompt: blurry\n"
    "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 965400086, "
    "Size: 512x768, Model hash: 45dee52b, Model: dreamy_v8, Clip skip: 2, Version: v1.10.1"
)

COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "dpmpp_2m_sde",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "sd15/dreamy.safetensors"},
    },
    "5": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 640, "height": 448, "batch_size": 1},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "watermark", "clip": ["4", 1]}},
}
COMFY_LINKS = [
    [1, 4, 0, 3, 0, "MODEL"],
    [2, 5, 0, 3, 3, "LATENT"],
    [3, 4, 1, 6, 0, "CLIP"],
    [4, 6, 0, 3, 1, "CONDITIONING"],
    [5, 4, 1, 7, 0, "CLIP"],
    [6, 7, 0, 3, 2, "CONDITIONING"],
]
INVOKE = {
    "app_version": "6.1.0",
    "generation_mode": "txt2img",
    "positive_prompt": "an owl",
    "negative_prompt": "text",
    "width": 832,
    "height": 1216,
    "seed": 3084812,
    "cfg_scale": 6,
    "cfg_rescale_multiplier": 0.0,
    "steps": 30,
    "scheduler": "euler_a",
    "model": {"key": "x", "hash": "y", "name": "owls", "model_name": "owls", "base": "sdxl"},
}
FOOOCUS = {
    "prompt": "a fox",
    "negative_prompt": "",
    "base_model": "juggernaut.safetensors",
    "base_model_hash": "aeb7e9e689",
    "guidance_scale": 4,
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "1225929862",
    "sharpness": 2,
    "steps": 30,
    "resolution": "(896, 1152)",
}


def comfy():
    return {"prompt": json.dumps(COMFY), "workflow": json.dumps({"links": COMFY_LINKS})}


def test_a1111_is_read_into_the_nearest_request():
    recipe = read_foreign(encode_png(PIXELS, {"parameters": A1111}), known_models=["dreamy_v8"])
    request = recipe.request
    assert recipe.generator == "AUTOMATIC1111"
    assert (request.prompt, request.negative_prompt) == ("a watercolour (soft:1.2)", "blurry")
    assert (request.scheduler, request.sigma_schedule) == ("dpmpp_2m", "karras")
    assert (request.num_inference_steps, request.guidance_scale) == (25, 6.5)
    assert (request.seed, request.width, request.height) == (965400086, 512, 768)
    assert request.model == "dreamy_v8"
    assert request.prompt_dialect == "a1111"
    assert [(x.name, x.scale) for x in request.loras] == [("ink", 0.8)]
    assert any("Clip skip (2)" in line for line in recipe.not_honoured)
    assert any("GPU" in line for line in recipe.not_honoured)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a1111_is_read_from_exif(kind):
    recipe = read_foreign(encode(PIXELS, kind, parameters=A1111))
    assert recipe.request.seed == 965400086
    assert "model dreamy_v8 is not in the store; plate is used" in recipe.not_honoured


def test_noise_from_the_cpu_is_no_difference():
    recipe = recipe_from_infotext(A1111 + ", RNG: CPU")
    assert not any("GPU" in line for line in recipe.not_honoured)


def test_comfyui_graphs_are_read():
    recipe = read_foreign(encode_png(PIXELS, comfy()), known_models=["dreamy"])
    request = recipe.request
    assert recipe.generator == "ComfyUI"
    assert (request.prompt, request.negative_prompt) == ("a glass bottle", "watermark")
    assert (request.model, request.scheduler, request.sigma_schedule) == (
        "dreamy",
        "dpmpp_sde",
        "karras",
    )
    assert (request.seed, request.num_inference_steps, request.guidance_scale) == (
        156680208700286,
        20,
        8,
    )
    assert (request.width, request.height) == (640, 448)
    assert not any("dpmpp_2m_sde" in line for line in recipe.not_honoured)  # it is ours


def test_comfyui_graphs_made_over_its_api_are_read_alike():
    whole = read_foreign(encode_png(PIXELS, comfy()), known_models=["dreamy"])
    alone = read_foreign(encode_png(PIXELS, {"prompt": json.dumps(COMFY)}), known_models=["dreamy"])
    assert alone is not None
    assert alone.generator == "ComfyUI"
    assert alone.request == whole.request
    assert alone.not_honoured == whole.not_honoured


@pytest.mark.parametrize("text", ["[1]", '{"3": 5}', '{"3": {"inputs": 5}}', "{", "a prompt"])
def test_a_text_named_prompt_that_is_no_graph_is_no_recipe(text):
    assert read_foreign(encode_png(PIXELS, {"prompt": text})) is None


HIRES = (
    "a lake\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: m, "
    "Denoising strength: 0.35, Clip skip: 2, {}RNG: CPU"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Hires upscale: 1.5, Hires steps: 12, Hires upscaler: R-ESRGAN 4x+, ",
            {"scale": 1.5, "num_inference_steps": 12, "upscaler": "real-esrgan"},
        ),
        ("Hires resize: 768x1024, Hires upscaler: Lanczos, ",
         {"width": 768, "height": 1024, "upscaler": "lanczos"}),
        ('Hires prompt: "a lake, at dawn", Hires upscale: 2, Hires upscaler: Latent (bicubic), ',
         {"prompt": "a lake, at dawn", "scale": 2, "upscaler": "latent"}),
    ],
)  # fmt: skip
def test_hires_fields_of_a1111_are_a_second_pass_and_no_start_picture(text, expected):
    recipe = recipe_from_infotext(HIRES.format(text), known_models=["m"])
    assert recipe.request.hires == Hires(strength=0.35, **expected)
    assert recipe.request.image is None
    assert recipe.not_honoured == ("Clip skip (2) is not known here",)


def test_a_second_pass_that_is_not_offered_is_said():
    text = HIRES.format("Hires upscale: 99, Hires upscaler: 4x-UltraSharp, ")
    recipe = recipe_from_infotext(text, known_models=["m"])
    assert (recipe.request.hires.scale, recipe.request.hires.upscaler) == (2, "latent")
    assert [line.partition(" ")[0] for line in recipe.not_honoured] == ["Clip", "the", "upscaler"]


def test_a_strength_alone_is_image_to_image():
    recipe = recipe_from_infotext(HIRES.format(""), known_models=["m"])
    assert recipe.request.hires is None
    assert any("began from another picture" in line for line in recipe.not_honoured)


def test_invokeai_is_read():
    recipe = read_foreign(encode_png(PIXELS, {"invokeai_metadata": json.dumps(INVOKE)}))
    request = recipe.request
    assert recipe.generator == "InvokeAI"
    assert (request.prompt, request.scheduler, request.seed) == (
        "an owl",
        "euler_ancestral",
        3084812,
    )
    assert (request.width, request.height, request.guidance_scale) == (832, 1216, 6)


def test_fooocus_is_read():
    texts = {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}
    recipe = read_foreign(encode_png(PIXELS, texts))
    request = recipe.request
    assert recipe.generator == "Fooocus"
    assert (request.prompt, request.seed, request.guidance_scale) == ("a fox", 1225929862, 4)
    assert (request.width, request.height) == (896, 1152)
    assert any("sharpness" in line for line in recipe.not_honoured)


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"Comment": "hello"},
        {"parameters": "just words"},
        {"prompt": "{", "workflow": "{"},
        {"prompt": "[1]", "workflow": "[]"},
        {"invokeai_metadata": "3"},
    ],
)
def test_pictures_without_a_known_recipe_have_none(texts):
    assert read_foreign(encode_png(PIXELS, texts)) is None


def test_values_that_cannot_be_used_are_said_and_left_out():
    text = "x\nSteps: 99999, Sampler: Sparkle, CFG scale: nan, Seed: -1, Size: 0x4, Version: 1"
    recipe = recipe_from_infotext(text)
    request = recipe.request
    assert (request.num_inference_steps, request.guidance_scale, request.seed) == (None, None, None)
    assert request.scheduler is None
    said = " ".join(recipe.not_honoured)
    for word in (
        "num_inference_steps 99999",
        "guidance_scale nan",
        "seed -1",
        "Sparkle",
        "width 0",
    ):
        assert word in said


def test_a_graph_without_a_workflow_is_read_as_the_door_reads_it():
    graph = {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 8566257, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m",
                "scheduler": "karras", "denoise": 1, "model": ["4", 0], "positive": ["6", 0],
                "negative": ["7", 0], "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dreamy.ckpt"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 1, "height": 32, "width": 64}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "a pear"}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "hands"}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    }  # fmt: skip
    recipe = read_foreign(
        encode_png(PIXELS, {"prompt": json.dumps(graph)}), known_models=["dreamy"]
    )
    assert recipe is not None
    request = recipe.request
    assert (recipe.generator, request.model, request.prompt) == ("ComfyUI", "dreamy", "a pear")
    assert (request.scheduler, request.sigma_schedule) == ("dpmpp_2m", "karras")
    assert (request.width, request.height, request.seed) == (64, 32, 8566257)
    assert (request.num_inference_steps, request.guidance_scale) == (20, 8.0)
