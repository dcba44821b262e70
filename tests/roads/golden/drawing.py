"""Draw golden pictures: models, adapters and engines for them, and what is compared.

Only the public face of the library is used, so that this file outlives any move inside it.
"""

import contextlib
import hashlib
import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests import adapters_tiny, tiny

import mezzotint as mz

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "pictures.json"
SHEET = HERE / "pictures.webp"

PROGRAM = Path(sys.executable).with_name("mezzotint")
TINY = {
    "sd2": "sd2", "bert": "bert_sd", "xl": "sdxl", "sd3": "sd3", "flux": "flux", "pixels": "ddpm",
    "classes": "dit",
}  # fmt: skip


def read():
    """Return the golden pictures as they were kept, and their pixels, one array each."""
    kept = json.loads(PICTURES.read_text("utf-8"))
    sheet = np.asarray(Image.open(SHEET).convert("RGB"))
    for case in kept["cases"]:
        for picture in case["pictures"]:
            x, y = picture.pop("at")
            picture["array"] = sheet[y : y + picture["height"], x : x + picture["width"]]
    return kept


def digests_of(kept, case, machine):
    """Return the digests of pixels and file of a case's pictures on a machine, None if unknown.

    A case that was drawn anew on another machine than the rest names that machine itself, and
    one whose arithmetic has changed since names none.
    """
    if machine == case.get("fingerprint", kept["fingerprint"]):
        return [[picture["pixels"], picture["bytes"]] for picture in case["pictures"]]
    for other in kept.get("others", []):
        if machine == other["fingerprint"]:
            return other["drawn"].get(case["name"])
    return None


def builtin(name):
    """Return the folder of a built-in model, as the program tells it."""
    told = subprocess.run(
        [PROGRAM, "models", "show", name, "--json"], capture_output=True, text=True, check=True
    )
    return Path(json.loads(told.stdout)["path"])


def furnish(home):
    """Write tiny models and adapters, whose weights depend on seeds alone, below ``home``.

    Returns:
        ``name=path`` of every model.
    """
    models = {name: home / "tiny" / name for name in (*TINY, "other", "mapped")}
    for name, kind in TINY.items():
        tiny.build(kind).save_pretrained(models[name])
    tiny.sd1(seed=900).save_pretrained(models["other"])
    write_mapped_gan(builtin("plate-gan"), models["mapped"])

    first = tiny.build("sd1")
    for number in (1, 2):
        net = adapters_tiny.controlnet(first, seed=40 + number)
        net.save_pretrained(home / "controlnets" / f"net-{number}")
    for kind in ("vector", "full", "plus"):
        adapters_tiny.ip_adapter(first, home / "ip_adapters" / f"style-{kind}", kind=kind)
    adapters_tiny.embedding(home / "embeddings" / "ink.safetensors")
    (home / "loras").mkdir()
    save_file(query_lora(first.unet), home / "loras" / "ink.safetensors")

    plate = SimpleNamespace(
        unet=diffusers.UNet2DConditionModel.from_pretrained(builtin("plate") / "unet")
    )
    write_plate_controlnet(plate.unet, home / "controlnets" / "plate-net")
    adapters_tiny.ip_adapter(plate, home / "ip_adapters" / "plate-style", seed=61)
    quick = (builtin("plate-quick") / "pytorch_lora_weights.safetensors").read_bytes()
    (home / "loras" / "quick.safetensors").write_bytes(quick)
    return [f"{name}={path}" for name, path in models.items()]


def query_lora(unet):
    """A rank-2 LoRA over every query projection, in diffusers' layout."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, layer in unet.named_modules():
        if name.endswith("to_q"):
            rows, columns = layer.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn((2, columns), generator=generator)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn((rows, 2), generator=generator)
    return tensors


def write_plate_controlnet(unet, folder):
    """Write a ControlNet that begins as the U-Net's own half and answers a little noise."""
    with tiny.seeded(43):
        net = diffusers.ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(8, 16, 16, 32)
        )
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        tiny.stir(layer, 44, 0.05)
    tiny.stir(net.controlnet_cond_embedding, 45, 0.5)
    net.save_pretrained(folder)


def write_mapped_gan(source, folder):
    """Write the built-in GAN with another mapping network, of random weights, in front."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    whole = load_file(source / "generator.safetensors")
    state = {name: value for name, value in whole.items() if not name.startswith("mapping.")}
    size = config["latent_size"]
    generator = torch.Generator().manual_seed(6)
    for layer in range(2):
        weight = torch.randn((size, size), generator=generator) * (2 / size) ** 0.5
        state[f"mapping.layers.{layer}.weight"] = weight
        state[f"mapping.layers.{layer}.bias"] = torch.zeros(size)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, "mapping_layers": 2}), "utf-8")
    save_file(state, folder / "generator.safetensors")


def loose_parts():
    """A model wired of parts that are in memory, under the name ``sd``."""
    pipeline = tiny.build("sd1")
    roles = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
    return mz.Model.from_components(name="sd", **{r: getattr(pipeline, r) for r in roles})


class Engines:
    """The two engines that draw, each started when it is first wanted.

    ``own`` is what a user has; ``torch`` has all tiny models and the backend that any machine
    has. One thread for torch, whatever the machine has: it is part of what decides the bits.

    Args:
        home: A folder, empty but for what the engines' own homes are to find in it.
    """

    def __init__(self, home):
        self._home = home
        self._started = {}
        self._threads = torch.get_num_threads()

    def __enter__(self):
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_):
        for engine in self._started.values():
            engine.close()
        torch.set_num_threads(self._threads)

    def __getitem__(self, kind):
        """Return ``own`` or ``torch``."""
        if kind not in self._started:
            home = self._home / kind
            home.mkdir(exist_ok=True)
            if kind == "own":
                engine = mz.Engine(device="cpu", home=home)
            else:
                models = [*furnish(home), loose_parts()]
                engine = mz.Engine(models, device="cpu", home=home, backend="torch")
            self._started[kind] = engine
        return self._started[kind]


def fill(value, inputs):
    """Put the pictures in place of their names, ``@name``, in plain data."""
    if isinstance(value, dict):
        return {key: fill(one, inputs) for key, one in value.items()}
    if isinstance(value, list):
        return [fill(one, inputs) for one in value]
    return inputs[value[1:]] if isinstance(value, str) and value[:1] == "@" else value


def empty(value, inputs):
    """Put names, ``@name``, in place of the pictures; undoes :func:`fill`."""
    names = {text: f"@{name}" for name, text in inputs.items()}
    if isinstance(value, dict):
        return {key: empty(one, inputs) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [empty(one, inputs) for one in value]
    return names.get(value, value) if isinstance(value, str) else value


def draw(engine, request, inputs):
    """Draw one request.

    Args:
        engine: Draws it.
        request: Native JSON, pictures by ``@name``.
        inputs: Name and base64 of every picture.

    Returns:
        For each picture what is kept of it, and the picture itself.
    """
    result = engine.generate(mz.GenerationRequest.from_dict(fill(request, inputs)))
    return [(facts(image, inputs), image) for image in result.images]


def facts(image, inputs):
    """Return what is kept of a picture as plain data."""
    return {
        "seed": str(image.seed),
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "bytes": hashlib.sha256(image.bytes).hexdigest(),
        "pixels": digest(image.pixels),
        "digest": image.recipe_digest,
        "recipe": empty(image.recipe["request"], inputs),
        "index": image.recipe["index"],
        "model_calls": image.timings.model_calls,
    }


def digest(pixels):
    """Return the sha256 of a picture's pixels, 64 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


def fingerprint(engine):
    """Return what decides the bits: the recipe's environment, processor, and libraries.

    The program's own version is apart: it stands in the files and changes no pixel.
    """
    image = engine.generate(mz.GenerationRequest(model="plate-gan", seed=1)).images[0]
    environment = {
        key: value
        for key, value in image.recipe["environment"].items()
        if key not in ("mezzotint", "model_digest")
    }
    return {**environment, "machine": platform.machine(), "processor": processor()}


def processor():
    """Return the processor's kind and the extensions that arithmetic kernels are chosen by."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
        told = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        flags = told.get("flags", told.get("Features", "")).split()
        chosen = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "bf16", "i8mm")
        kinds = [told.get(key, "") for key in ("vendor_id", "cpu family", "model", "cache size")]
        return " ".join([*kinds, *sorted(f for f in flags if f.startswith(chosen))])
    return platform.processor()


def psnr(first, second):
    """Return the peak signal-to-noise ratio of two pictures in decibels."""
    error = np.mean((first.astype(np.float64) - second) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
