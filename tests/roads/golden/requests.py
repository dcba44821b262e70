"""The requests of the golden pictures: every technique, solver and built-in model once."""

import base64
import io

import numpy as np
from PIL import Image

SOLVERS = (
    "ddim", "ddpm", "dpmpp_2m", "dpmpp_sde", "euler", "euler_ancestral", "heun", "lcm", "unipc",
    "CogVideoXDDIMScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler",
    "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "TCDScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip
FLOW_SOLVERS = (
    "flow_euler", "flow_heun", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler", "DPMSolverMultistepScheduler",
)  # fmt: skip
SIGMA_SCHEDULES = ("beta", "exponential", "karras", "leading", "linear", "trailing")
THINGS = (
    "a red apple", "a banana on a blue background", "a green frog", "a cat face", "a sunflower",
    "a pink heart", "a strawberry on a yellow background", "two cherries", "an orange",
    "a blue fish", "a tree", "a smiling face", "a carrot on a white background", "a panda face",
    "a slice of pizza", "a rose", "three lemons", "a bear face on a green background",
)  # fmt: skip


def inputs():
    """Return the pictures that requests take, base64 of PNG by name."""
    y, x = np.mgrid[:128, :128]
    photo = np.full((128, 128, 3), (250, 214, 90), np.uint8)
    photo[(y - 64) ** 2 + (x - 64) ** 2 < 40**2] = (205, 40, 45)
    photo[(abs(x - 64) < 5) & (y > 12) & (y < 30)] = (70, 120, 40)
    disc = (((y - 64) ** 2 + (x - 64) ** 2 < 36**2) * 255).astype(np.uint8)
    slope = (x * 2).astype(np.uint8)
    clear = np.dstack([photo, 255 - disc])  # transparent where to repaint, as OpenAI's edits
    return {
        "photo": encoded(photo),
        "small photo": encoded(photo[16:112, 16:112]),
        "wide photo": encoded(photo[32:96]),
        "disc": encoded(disc, "L"),
        "slope": encoded(slope, "L"),
        "transparent disc": encoded(clear, "RGBA"),
    }


def encoded(pixels, mode="RGB"):
    """Return a picture as base64 of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


PNDM = "PNDMScheduler"  # by its class: what recipes name that were made before plms was a table
CASES = []


def case(name, engine="own", *, slow=False, least_db=50.0, **request):
    """Add a case; prompt and seed follow from its place where they are not given."""
    place = len(CASES)
    model = request.setdefault("model", "plate")
    if "gan" not in model and model not in ("mapped", "pixels", "classes"):
        tiny_words = "a big red apple on the table"
        own = THINGS[place % len(THINGS)] if model.startswith("plate") else tiny_words
        request.setdefault("prompt", own)
        request.setdefault("num_inference_steps", 4)
    request.setdefault("seed", 100 + place)
    CASES.append(
        {"name": name, "engine": engine, "slow": slow, "least_db": least_db, "request": request}
    )


def add_solvers():
    """Every scheduler and sigma schedule; the four-step one and a GAN have none to choose."""
    for solver in SOLVERS:
        engine = "torch" if "KDPM2" in solver else "own"  # OpenVINO compiles anew for its times
        steps = 3 if solver.endswith("Scheduler") and solver != "PNDMScheduler" else 4
        case(f"solver {solver}", engine, scheduler=solver, num_inference_steps=steps)
    for solver in FLOW_SOLVERS:
        case(f"flow solver {solver}", "torch", model="sd3", scheduler=solver, width=64, height=64)
    case("solver SASolverScheduler", "torch", model="sd", scheduler="SASolverScheduler")
    for schedule in SIGMA_SCHEDULES:
        case(f"sigmas {schedule}", scheduler="euler", sigma_schedule=schedule, prompt="a red apple",
             seed=7)  # fmt: skip
    case("sigmas karras of dpmpp_2m", scheduler="dpmpp_2m", sigma_schedule="karras")
    case("sigmas exponential of dpmpp_sde", scheduler="dpmpp_sde", sigma_schedule="exponential")


def add_models():
    """Built-in models as they come, and every family with random weights."""
    case("plate", num_inference_steps=6)
    case("plate, many steps", num_inference_steps=12, seed=7, prompt="a red apple")
    case("plate in torch", "torch", seed=7, prompt="a red apple")
    case("plate-quick", model="plate-quick")
    case("plate-quick in torch", "torch", model="plate-quick")
    case("plate-quick, three", model="plate-quick", num_images=3)
    case("plate-gan", model="plate-gan", seed=7)
    case("plate-gan in torch", "torch", model="plate-gan", num_images=2)
    case("plate-gan, a class", model="plate-gan", latent={"class_label": 3})
    case("plate-gan, truncated", model="plate-gan", latent={"truncation": 0.5, "class_label": 0})
    case("gan with mapping", "torch", model="mapped", latent={"truncation": 0.7, "class_label": 2})
    for model in ("sd", "sd2", "bert", "xl", "flux"):
        own = {"scheduler": PNDM} if model == "sd" else {}
        case(f"tiny {model}", "torch", model=model, num_inference_steps=3, width=64, height=64,
             guidance_scale=3.0, **own)  # fmt: skip
    case("tiny pixels", "torch", model="pixels", num_inference_steps=3)
    case("tiny classes", "torch", model="classes", num_inference_steps=3, guidance_scale=3.0,
         latent={"class_label": 4})  # fmt: skip


def add_guidance():
    """Guidance scales, schedules and negative prompts."""
    curves = {
        "linear": {"start": 8, "end": 1},
        "cosine": {"start": 8, "end": 1, "rescale": 0.5},
        "power": {"start": 7, "end": 2, "power": 2.0},
        "interval": {"start": 6, "from": 0.2, "until": 0.7},
        "list": {"values": [8, 5, 3, 1]},
        "constant": {"start": 6, "rescale": 0.7},
    }
    for name, curve in curves.items():
        case(f"guidance {name}", guidance_scale={"schedule": name, **curve})
    case("guidance off", guidance_scale=1)
    case("negative prompt", guidance_scale=5, negative_prompt="a yellow background, a leaf")


def add_pictures():
    """What begins with a picture."""
    photo = {"image": "@photo", "prompt": "a green apple on a yellow background"}
    case("image to image", **photo, strength=0.6)
    case("image to image of another size", image="@wide photo", width=128, height=128)
    case("image to image by diffusers", **photo, scheduler="EulerDiscreteScheduler", strength=0.7)
    case("inpainting", **photo, mask="@disc", strength=1.0)
    case("inpainting by transparency", **photo, mask="@transparent disc", strength=1.0)
    case("inpainting with paste", **photo, mask="@disc", strength=0.9,
         inpaint={"paste": True, "blur": 4.0, "fill": "noise"})  # fmt: skip
    case("inpainting outside", **photo, mask="@disc", strength=0.9, inpaint={"invert": True})
    case("inpainting, surroundings", **photo, mask="@disc", strength=0.9,
         inpaint={"fill": "surroundings"})  # fmt: skip
    case("inpainting, nothing", **photo, mask="@slope", strength=1.0, inpaint={"fill": "nothing"})
    case("inpainting, masked area", **photo, mask="@disc", strength=0.8,
         inpaint={"area": "masked", "padding": 8})  # fmt: skip
    case("outpainting", image="@small photo", outpaint={"left": 16, "right": 16, "bottom": 32},
         prompt="a red apple on a yellow background", strength=0.9)  # fmt: skip


def add_compositions():
    """Regions, ensembles, walks, variations, tiling, second passes, enlargement."""
    left, right = {"box": [0, 0, 0.5, 1]}, {"box": [0.5, 0, 1, 1]}
    case("regions", prompt="two things on a white background", regions=[
        {"prompt": "a red apple", **left}, {"prompt": "a green frog", **right, "start": 0.2}])  # fmt: skip
    case("region by mask", regions=[{
        "prompt": "a sunflower", "mask": "@disc", "weight": 3.0, "negative_prompt": "blue"}])  # fmt: skip
    case("ensemble", ensemble=[{"model": "plate", "weight": 2.0}, {"model": "plate-quick"}])
    case("ensemble by step", ensemble=[
        {"model": "plate", "weights": [1, 1, 0, 0]}, {"model": "plate-quick", "weights": [0, 0, 1, 1]}])  # fmt: skip
    case("ensemble by place", ensemble=[{"model": "plate"}, {"model": "plate-quick", **left}])
    walk = {"prompt": "a red apple", "num_inference_steps": 4}
    case("walk of the prompt", **walk, walk={"to": "a green frog", "frames": 4})
    case("walk of the seed", **walk, walk={"mode": "seed", "to_seed": 9, "frames": 3})
    case("walk of both", **walk, walk={"mode": "both", "to": "a pink heart", "frames": 3})
    case("walk of plate-gan", model="plate-gan", walk={"mode": "seed", "to_seed": 5, "frames": 4})
    case("walk in w", "torch", model="mapped", latent={"class_label": 0},
         walk={"mode": "seed", "to_seed": 5, "frames": 3, "space": "w"})  # fmt: skip
    case("variation", seed=7, prompt="a red apple", variation={"strength": 0.4, "seed": 11})
    case(
        "variation of the noise size",
        prompt="a red apple",
        seed=7,
        variation={"noise_width": 160, "noise_height": 160},
    )
    case("tiling", "torch", tiling=True)
    small = {"width": 64, "height": 64, "prompt": "a red apple"}
    case("second pass, latent", "torch", **small, hires={"scale": 1.5, "strength": 0.7})
    case("second pass, lanczos", "torch", **small,
         hires={"width": 128, "height": 96, "upscaler": "lanczos", "prompt": "a green apple",
                "num_inference_steps": 6, "negative_prompt": "red"})  # fmt: skip
    case("another size", "torch", width=96, height=144)
    case("enlarged", model="plate-gan", upscale={"factor": 1.5, "model": "lanczos"})
    case("enlarged plate", upscale={"factor": 1.25})


def add_texts():
    """Prompt dialects, long prompts, LoRAs named in the text."""
    case("a1111", prompt="a (red:1.4) apple, ((green leaf)) [blue background]",
         prompt_dialect="a1111")  # fmt: skip
    case("comfyui", prompt="a (green:1.3) frog on a (blue:0.6) background",
         prompt_dialect="comfyui")  # fmt: skip
    case("compel", prompt="a red++ apple on a (yellow)1.3 background", prompt_dialect="compel")
    case("a prompt that is cut", prompt="a red apple " * 12)
    case("other letters", prompt="una manzana roja, ein Äpfel 🍎")
    case("a1111 in CLIP", "torch", model="sd", scheduler=PNDM, prompt_dialect="a1111",
         prompt="a (red:1.4) apple [on] the table BREAK a blue leaf")  # fmt: skip
    case("a1111 names a LoRA", "torch", model="sd", scheduler=PNDM, prompt_dialect="a1111",
         prompt="a red apple <lora:ink:0.5>")  # fmt: skip


def add_gates():
    """Gates that pass, that ask for another attempt, and that look at a preview."""
    case("gates that pass", gates={"nsfw": {}, "open_nsfw": {}, "quality": {"threshold": 200}})
    case("gates with the best of three", prompt="a red apple", seed=7,
         gates={"quality": {"threshold": 1}, "max_attempts": 3, "keep": "best"})  # fmt: skip
    case("gates with a preview", gates={"quality": {"threshold": 200, "preview_at": 0.5}})


def add_outputs():
    """Files, animations, tiers, seeds."""
    apple = {"prompt": "a red apple", "seed": 7}
    case("jpeg", **apple, output={"format": "jpeg"})
    case("jpeg, small", **apple, output={"format": "jpeg", "quality": 60})
    case("webp", **apple, output={"format": "webp", "quality": 80})
    case("without metadata", **apple, output={"metadata": False}, num_inference_steps=3)
    gan = {"model": "plate-gan", "walk": {"mode": "seed", "to_seed": 3, "frames": 4}}
    for kind, loop in (("webp", "forever"), ("gif", "pingpong"), ("apng", "once")):
        animation = {"format": kind, "fps": 5, "loop": loop}
        case(f"animation {kind}", **gan, output={"animation": animation})
    case("three pictures", num_images=3)
    case("the largest seed", seed=str(2**64 - 1))
    case("stable", reproducibility="stable")
    case("turbo in torch", "torch", num_inference_steps=9, reproducibility="turbo", **apple)
    case("turbo", slow=True, least_db=25.0, num_inference_steps=9, reproducibility="turbo", **apple)


def add_adapters():
    """LoRAs, ControlNets, IP-Adapters and textual inversions on tiny models and on plate."""
    tiny = {"engine": "torch", "model": "sd", "guidance_scale": 4.0, "scheduler": PNDM}
    net = {"model": "net-1", "image": "@photo"}
    style = {"images": ["@photo"], "scale": 0.8}
    word = {"prompt": "a red apple <ink>", "embeddings": [{"name": "ink"}]}
    case("lora", **tiny, loras=[{"name": "ink", "scale": 0.7}])
    case("controlnet", **tiny, controls=[net])
    case("controlnet with edges", **tiny, controls=[{**net, "preprocess": "canny", "end": 0.5}])
    case("two controlnets", **tiny, controls=[
        {**net, "scale": 0.6}, {"model": "net-2", "image": "@slope", "start": 0.3}])  # fmt: skip
    for kind in ("vector", "full", "plus"):
        case(f"ip-adapter {kind}", **tiny, image_prompts=[{"model": f"style-{kind}", **style}])
    case("textual inversion", **tiny, **word)
    case("all adapters", **tiny, **word, controls=[net], loras=[{"name": "ink"}],
         image_prompts=[{"model": "style-vector", **style}], hires={"scale": 1.5})  # fmt: skip
    case("ensemble of tiny models", **tiny, ensemble=[{"model": "sd"}, {"model": "other"}])
    plate = {"engine": "torch", "prompt": "a red apple", "seed": 7}
    case("lora on plate", **plate, loras=[{"name": "quick", "scale": 1.0}], guidance_scale=1)
    case("controlnet on plate", **plate, controls=[{"model": "plate-net", "image": "@photo"}])
    case("ip-adapter on plate", **plate,
         image_prompts=[{"model": "plate-style", "images": ["@photo"], "scale": 0.2}])  # fmt: skip


for add in (
    add_solvers, add_models, add_guidance, add_pictures, add_compositions, add_texts, add_gates,
    add_outputs, add_adapters,
):  # fmt: skip
    add()
CASES.sort(key=lambda one: one["engine"])  # one engine starts where the other is done
