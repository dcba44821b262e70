"""Techniques over HTTP: the right media type, and the same pixels in A1111's words."""

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from tests import adapters_tiny, tiny
from tests.roads.test_techniques import write_lora
from tests.serving import Door, open_door
from tests.techniques import DISC, EXAMPLES, PHOTO, TINY, disc, photo, png

from mezzotint.engine.config import EngineConfig
from mezzotint.images.config import ImageConfig
from mezzotint.images.signing import check_signature, make_key_pair, read_trusted_keys
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.request import GenerationRequest
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.local import LocalService

COMMON = {
    "prompt": "a red apple", "seed": 3, "num_inference_steps": 2, "guidance_scale": 3.0,
    "width": 64, "height": 64, "scheduler": "euler",
}  # fmt: skip
THEIRS = {
    "prompt": "a red apple", "seed": 3, "steps": 2, "cfg_scale": 3, "width": 64, "height": 64,
    "sampler_name": "Euler",
}  # fmt: skip


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key of whoever runs the server; the public one lies beside it."""
    path = tmp_path_factory.mktemp("keys") / "sign.pem"
    make_key_pair(path, "studio")
    return path


@contextlib.contextmanager
def opened_door(folder: Path, images: ImageConfig, ready: tuple[str, ...] = ()) -> Iterator[Door]:
    engine = EngineConfig(buckets=(2, 4))
    models = ModelsConfig(
        home=str(folder), backend="torch", placement=PlacementConfig(device="cpu")
    )
    service = LocalService(ServiceConfig(ready=ready, models=models, engine=engine, images=images))
    with open_door(folder / "jobs", service=service, home=folder) as opened:
        yield opened
        opened.do(service.close)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, signer: Path) -> Iterator[Door]:
    images = ImageConfig(signing_key=str(signer))
    with opened_door(tmp_path_factory.mktemp("techniques"), images) as opened:
        yield opened


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["gif", "apng", "webp"])
def test_accept_answers_a_walk_as_a_moving_file(door, kind):
    body = {**COMMON, "walk": {"to": "a leaf", "frames": 3}}
    if kind == "webp":  # a still format too, so the body says that it moves
        body["output"] = {"animation": {"format": "webp"}}
    answer = door.http.post("/v1/generations", json=body, headers={"accept": f"image/{kind}"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == f"image/{kind}"
    assert opened(answer.content).n_frames == 3


def test_a_lora_that_is_brought_along_is_worn_at_once_and_gone_when_it_is_dropped(door):
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    rows, columns = shape_in_plate(layer)
    drawn = {
        f"{layer}.lora_{m}.weight": torch.randn(shape, generator=torch.Generator().manual_seed(4))
        for m, shape in (("A", (2, columns)), ("B", (rows, 2)))
    }
    address = "/v1/adapters/loras/odd"
    told = door.http.put(address, content=save(drawn))
    assert told.status_code == 201, told.text
    assert told.json()["about"] == "rank 2, 1 layers of denoiser"
    assert "odd" in door.http.get("/v1/capabilities").json()["loras"]

    def draw(**more):
        return door.http.post("/v1/generations", json={**COMMON, **more})

    plain, worn = draw(), draw(loras=[{"name": "odd"}])
    images = [answer.json()["images"][0]["b64"] for answer in (plain, worn)]
    assert images[0] != images[1]
    assert door.http.delete(address).status_code == 200
    refused = draw(loras=[{"name": "odd"}])
    assert (refused.status_code, refused.json()["error"]) == (422, "UnknownName")


def shape_in_plate(layer):
    """Return the shape of a layer of plate."""
    from mezzotint.models.cards import builtin_cards
    from mezzotint.models.parts import read_header

    folder = Path(builtin_cards()["plate"].path) / "unet" / "diffusion_pytorch_model.safetensors"
    return read_header(folder).tensors[f"{layer.removeprefix('unet.')}.weight"][1]


def test_a_job_keeps_one_file_and_its_media_type(door):
    body = {**COMMON, "walk": {"to": "a leaf", "frames": 3},
            "output": {"animation": {"format": "gif", "fps": 5}}}  # fmt: skip
    id_ = door.http.post("/v1/jobs", json=body).json()["id"]
    door.http.get(f"/v1/jobs/{id_}/events")
    (image,) = door.http.get(f"/v1/jobs/{id_}").json()["images"]
    assert (image["format"], image["frames"]) == ("gif", 3)
    answer = door.http.get(f"/v1/jobs/{id_}/images/0")
    assert answer.headers["content-type"] == "image/gif"
    found = door.http.post("/v1/inspect", content=answer.content,
                           headers={"content-type": "image/gif"}).json()  # fmt: skip
    assert found["request"]["output"]["animation"]["fps"] == 5


def test_a_picture_is_signed_over_http_by_the_servers_own_key(door, signer):
    trusted = read_trusted_keys(signer.with_suffix(".pem.pub"))
    signed = {**COMMON, "output": {"sign": True}}
    accept = {"accept": "image/png"}
    plain = door.http.post("/v1/generations", json=COMMON, headers=accept).content
    made = door.http.post("/v1/generations", json=signed, headers=accept)
    assert made.status_code == 200, made.text
    assert check_signature(made.content, trusted)[:2] == ("known", "studio")
    assert check_signature(plain, trusted).status == "unsigned"
    assert np.array_equal(opened(made.content), opened(plain))
    changed = bytearray(made.content)
    changed[len(changed) // 2] ^= 1
    assert check_signature(bytes(changed), trusted).status == "broken"

    id_ = door.http.post("/v1/jobs", json=signed).json()["id"]
    door.http.get(f"/v1/jobs/{id_}/events")
    assert door.http.get(f"/v1/jobs/{id_}/images/0").content == made.content


def test_without_a_key_of_its_own_a_server_signs_nothing(tmp_path):
    with opened_door(tmp_path, ImageConfig()) as door:
        for path in ("/v1/generations", "/v1/plan"):
            answer = door.http.post(path, json={**COMMON, "output": {"sign": True}})
            assert answer.status_code == 422, answer.text
            assert answer.json()["field"] == "output.sign"


def test_a_moving_format_without_a_walk_is_refused(door):
    answer = door.http.post("/v1/generations", json=COMMON, headers={"accept": "image/gif"})
    assert answer.status_code == 422
    assert answer.json()["field"] == "output.animation"


def ours(door: Door, **fields) -> np.ndarray:
    request = GenerationRequest(prompt_dialect="a1111", **COMMON, **fields)
    made = door.do(lambda: door.service.generate(request, request_id="x", use_cache=False))
    return np.asarray(opened(made.images[0].data).convert("RGB"))


def theirs(door: Door, verb: str, **fields) -> np.ndarray:
    answer = door.http.post(f"/sdapi/v1/{verb}", json={**THEIRS, **fields})
    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["images"][0])
    return np.asarray(opened(data).convert("RGB"))


def test_hires_in_a1111s_words(door):
    body = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5, "hr_upscaler": "Lanczos"}
    expected = ours(door, hires={"scale": 1.5, "strength": 0.5, "upscaler": "lanczos"})
    assert expected.shape == (96, 96, 3)
    assert np.array_equal(theirs(door, "txt2img", **body), expected)


def test_the_text_in_a1111s_answer_is_the_text_in_its_picture(door):
    answer = door.http.post("/sdapi/v1/txt2img", json={**THEIRS, "batch_size": 2}).json()
    info = json.loads(answer["info"])
    texts = [opened(base64.b64decode(i)).text["parameters"] for i in answer["images"]]
    assert info["infotexts"] == texts
    assert texts[1].startswith("a red apple\nSteps: 2, Sampler: Euler, CFG scale: 3, Seed: 4, ")


def test_plms_draws_with_three_steps(door):
    found = theirs(door, "txt2img", sampler_index="PLMS", sampler_name="", steps=3)
    assert found.shape == (64, 64, 3)
    assert found.std() > 10


def test_extras_bring_a_picture_to_a_size(door):
    sent = png(photo())
    picture = sent.to_base64()
    body = {"image": picture, "resize_mode": 1, "upscaling_resize_w": 32, "upscaling_resize_h": 96}
    width, height = opened(sent.data).size
    for crop in (True, False):
        answer = door.http.post(
            "/sdapi/v1/extra-single-image", json={**body, "upscaling_crop": crop}
        )
        size = opened(base64.b64decode(answer.json()["image"])).size
        assert size == ((32, 96) if crop else (round(width * 96 / height), 96))


def test_img2img_repeats_the_pictures_sent_only_where_it_is_asked(door):
    body = {**THEIRS, "init_images": [png(photo()).to_base64()]}
    for wanted in (False, True):
        answer = door.http.post("/sdapi/v1/img2img", json={**body, "include_init_images": wanted})
        assert answer.json()["parameters"]["init_images"] == (
            body["init_images"] if wanted else None
        )


def test_masks_in_a1111s_words(door):
    image, mask = png(photo()), png(disc())
    body = {"init_images": [image.to_base64()], "mask": mask.to_base64(), "mask_blur": 2,
            "inpainting_fill": 2, "inpaint_full_res": False,
            "denoising_strength": 0.5}  # fmt: skip
    inpaint = {"blur": 2, "fill": "noise", "padding": 0, "paste": True}
    expected = ours(door, image=image, mask=mask, strength=0.5, inpaint=inpaint)
    assert np.array_equal(theirs(door, "img2img", **body), expected)


def test_tiles_and_subseeds_in_a1111s_words(door):
    expected = ours(door, tiling=True, variation={"seed": 8, "strength": 0.5})
    found = theirs(door, "txt2img", tiling=True, subseed=8, subseed_strength=0.5)
    assert np.array_equal(found, expected)


RESTORED = {
    **{name: example.fields for name, example in EXAMPLES.items() if not example.has_files},
    "several": {"num_images": 2, "seed": "18446744073709551615"},
    "curve": {"guidance_scale": {"schedule": "interval", "start": 6, "from": 0.2, "until": 0.8}},
    "gates": {"gates": {"quality": {"threshold": 1}, "max_attempts": 2}},
    "dialect": {"prompt": "a (red:1.3) [apple:pear:0.5]", "prompt_dialect": "a1111"},
    "output": {"output": {"format": "webp", "quality": 70}, "negative_prompt": "fog"},
    "tier": {"reproducibility": "stable", "sigma_schedule": "karras", "priority": -1},
    "latent": {
        "model": "plate-gan", "prompt": None, "num_inference_steps": None, "scheduler": None,
        "guidance_scale": None, "latent": {"class_label": 3, "truncation": 0.7},
    },
}  # fmt: skip
"""Requests whose pictures are dropped on the page: their settings come back as they were."""
WITH_FILES = {
    **{name: example.fields for name, example in EXAMPLES.items() if example.has_files},
    "all": TINY | {
        "prompt": "a blot of <ink>", "embeddings": [{"name": "blot", "token": "<ink>"}], "image": PHOTO, "mask": DISC,
        "strength": 0.7, "loras": [{"name": "ink"}], "controls": [{"model": "edges", "image": DISC}],
        "image_prompts": [{"model": "style", "images": [PHOTO]}], "upscale": {"factor": 2},
        "regions": [{"prompt": "sky", "mask": DISC}, {"prompt": "sea", "box": [0, 0.5, 1, 1]}],
    },
}  # fmt: skip
"""The same of techniques whose weights lie on disk, on models that have such weights."""


def pixels_of(image: dict) -> bytes:
    return opened(base64.b64decode(image["b64"])).tobytes()


PLAIN = GenerationRequest(prompt="a")
"""What a request says that says nothing."""


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A door on tiny models with adapters of each kind."""
    home = tmp_path_factory.mktemp("furnished")
    sd = tiny.build("sd1")
    adapters_tiny.controlnet(sd).save_pretrained(home / "controlnets" / "edges")
    adapters_tiny.ip_adapter(sd, home / "ip_adapters" / "style")
    adapters_tiny.embedding(home / "embeddings" / "blot.safetensors")
    (home / "loras").mkdir()
    write_lora(sd.unet, home / "loras" / "ink.safetensors")
    ready = (f"sd={tiny.folder('sd1')}", f"edit={tiny.folder('flux2_klein')}")
    with opened_door(home, ImageConfig(), ready) as opened:
        yield opened


def slowly(names):
    """Return names of requests as parameters; those that take long are drawn with slow tests."""
    long = {name for name in names if name in EXAMPLES and EXAMPLES[name].is_long}
    return [pytest.param(n, marks=pytest.mark.slow if n in long else ()) for n in names]


@pytest.mark.parametrize("name", slowly(RESTORED))
def test_what_a_picture_says_of_itself_draws_its_bytes_again(door, name):
    draw_what_a_picture_says(door, COMMON | RESTORED[name], name)


@pytest.mark.parametrize("name", slowly(WITH_FILES))
def test_what_a_picture_says_of_its_files_draws_its_bytes_again(furnished, name):
    draw_what_a_picture_says(furnished, COMMON | WITH_FILES[name], name)


def draw_what_a_picture_says(door: Door, fields: dict, technique: str) -> None:
    """Draw, read the settings in each picture, draw them afresh: the same bytes.

    A technique changes the picture: without it another one is drawn.
    """
    asked = {n: v for n, v in fields.items() if v is not None}
    made = door.http.post("/v1/generations", json=asked)
    assert made.status_code == 200, made.text
    if technique in EXAMPLES:
        bare = {n: v for n, v in asked.items() if n != technique}
        plain = door.http.post("/v1/generations", json=bare).json()["images"][0]
        assert pixels_of(made.json()["images"][-1]) != pixels_of(plain)
    for image in made.json()["images"]:
        data = base64.b64decode(image["b64"])
        kind = {"content-type": "application/octet-stream"}
        said = door.http.post("/v1/inspect", content=data, headers=kind).json()
        assert said["not_honoured"] == []
        first, second = (GenerationRequest.from_dict(r) for r in (asked, said["request"]))
        # a recipe holds what decides this one picture: not how it was chosen, nor when it came
        for field in asked.keys() - {"seed", "num_images", "gates", "priority"}:
            if getattr(first, field) != getattr(PLAIN, field):  # what is said may be resolved
                assert getattr(second, field) != getattr(PLAIN, field), field
        again = door.http.post(
            "/v1/generations", json=said["request"], headers={"cache-control": "no-cache"}
        )
        assert again.status_code == 200, again.text
        assert data in [base64.b64decode(i["b64"]) for i in again.json()["images"]]
