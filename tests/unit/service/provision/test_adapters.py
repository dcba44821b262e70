"""Views with adapters, and the pictures that adapters look at, take bounded memory."""

import io
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests import adapters_tiny, tiny
from tests.roads.test_techniques import write_lora

from mezzotint.models.adapters.ip_adapter import crop_picture, prepare_picture
from mezzotint.models.families import upscalers
from mezzotint.models.networks import Placement
from mezzotint.models.store.residency import Residency
from mezzotint.planning.plan import Adapters
from mezzotint.request import Control, GenerationRequest, ImagePrompt, Lora, Upscale
from mezzotint.service.engine import Engine
from mezzotint.service.provision import model_provider
from mezzotint.service.provision.adapters import AdapterProvider
from mezzotint.types import ImageInput


class Thing:
    """Stands for a model or a view of one."""

    num_bytes = 1

    def __init__(self):
        self.networks = {}


@pytest.fixture
def residency():
    return Residency(0)


@pytest.fixture
def provider(tmp_path, monkeypatch, residency):
    provider = AdapterProvider(tmp_path, allow_paths=False, residency=residency)
    monkeypatch.setattr(provider, "_make", lambda *_: Thing())
    return provider


def put(provider, model, name, *, is_ours=False):
    adapters = Adapters(loras=((name, "digest"),))
    with provider.use(model, adapters, Placement(), is_ours=is_ours) as view:
        return view


def test_a_view_is_kept_and_goes_with_its_model(provider, residency):
    with residency.use(("m", None), Thing, source=None) as model:
        assert put(provider, model, "ink", is_ours=True) is put(provider, model, "ink")
        assert put(provider, model, "ink") is not put(provider, model, "fog", is_ours=True)
        assert put(provider, model, "ink") is not put(provider, Thing(), "ink")
    assert set(residency.sizes()) == {"m", "(adapters)"}
    assert len(residency._residents) == 4
    residency.drop("m")
    assert len(residency._residents) == 1  # that of a model nobody bounds
    put(provider, model, "ink", is_ours=True)  # too late to be kept
    assert len(residency._residents) == 1


def test_views_are_bounded_over_all_models(provider, residency):
    models = [Thing(), Thing()]
    for k in range(20):
        put(provider, models[k % 3 == 0], f"lora {k}")
    assert len(residency._residents) == 8
    assert len(residency._loading) <= 8 + 1
    assert put(provider, models[False], "lora 19") is put(provider, models[False], "lora 19")


def picture():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)).save(
        stream, "PNG"
    )
    return ImageInput(stream.getvalue())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    pipeline = tiny.build("sd1")
    for number in (1, 2):
        net = adapters_tiny.controlnet(pipeline, seed=40 + number)
        net.save_pretrained(home / "controlnets" / f"net-{number}")
    adapters_tiny.ip_adapter(pipeline, home / "ip_adapters" / "style")
    (home / "loras").mkdir()
    write_lora(pipeline.unet, home / "loras" / "ink.safetensors")
    return home


def settled(engine):
    """What is in memory once nobody draws."""
    residency = engine.service.provider.store.residency
    for _ in range(500):
        if not any(resident.users for resident in residency._residents.values()):
            break
        time.sleep(0.01)
    return residency


def asked():
    """One request after the other, with other adapters each."""
    control = {number: (Control(model=f"net-{number}", image=picture()),) for number in (1, 2)}
    for fields in (
        {},
        {"controls": control[1]},
        {"controls": control[2]},
        {"loras": (Lora(name="ink"),)},
        {"image_prompts": (ImagePrompt(model="style", images=(picture(),)),)},
        {"controls": control[1], "loras": (Lora(name="ink"),)},
        {"controls": control[1]},
    ):
        yield GenerationRequest(
            model=str(tiny.folder("sd1")), prompt="a red apple", seed=5, num_inference_steps=2,
            **fields,
        )  # fmt: skip


def drawn(home, max_bytes):
    """Draw all, and say what was in memory after each."""
    torch.set_num_threads(1)
    with Engine(
        device="cpu", home=home, backend="torch", max_bytes=max_bytes,
        engine={"cache_memory_bytes": 0, "cache_disk_bytes": 0},
    ) as engine:  # fmt: skip
        pictures, held = [], []
        for request in asked():
            pictures.append(engine.submit(request).result().images[0].data)
            residency = settled(engine)
            held.append((residency.num_bytes, residency.sizes().get("(adapters)", 0)))
        controls = len(engine.service.provider.adapters._controls)
    return pictures, held, controls


def test_adapters_count_under_the_bound_and_change_nothing_when_they_went(home):
    with_room, held, controls = drawn(home, 0)
    model, control = held[0][0], held[1][1]
    assert control == sum(
        4 * p.numel() for p in adapters_tiny.controlnet(tiny.build("sd1"), seed=41).parameters()
    )
    assert held[-1][1] > 2 * control  # of two ControlNets, each counted once, and of the others
    assert controls == 2
    budget = model + int(1.9 * control)
    bounded, held, controls = drawn(home, budget)
    assert bounded == with_room
    assert max(total for total, _ in held) <= budget
    assert controls == 1


def test_an_upscaler_counts_under_the_bound_and_goes_when_it_was_used_longest_ago(
    home, monkeypatch
):
    class Fourfold:
        num_bytes = 1000

        def __call__(self, pixels):
            return pixels.repeat(4, axis=0).repeat(4, axis=1)

    loaded = []
    monkeypatch.setattr(
        model_provider, "load_upscaler", lambda name: loaded.append(name) or Fourfold()
    )
    for module in (model_provider, upscalers):
        monkeypatch.setattr(module, "upscaler_digest", lambda name: "d" * 64)
    plain = next(asked())
    with Engine(device="cpu", home=home, backend="torch", max_bytes=1 << 40) as engine:
        large = GenerationRequest(
            model=plain.model, prompt="a pear", seed=1, num_inference_steps=1,
            upscale=Upscale(factor=4, model="real-esrgan"),
        )  # fmt: skip
        image = engine.submit(large).result().images[0]
        residency = settled(engine)
        sizes = residency.sizes()
        assert sizes["(upscaler real-esrgan)"] == 1000
        assert image.pixels.shape[0] % 4 == 0
        engine.submit(plain).result()
        residency = settled(engine)
        residency._max_bytes = residency.num_bytes - 1
        engine.submit(replace(plain, seed=6)).result()
        assert "(upscaler real-esrgan)" not in settled(engine).sizes()
    assert loaded == ["real-esrgan"]


@pytest.mark.parametrize("shape", [(40, 60), (300, 217), (32, 32), (33, 900)])
def test_a_picture_cropped_early_is_read_as_if_it_had_come_whole(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    cropped = crop_picture(pixels, 32)
    assert cropped.shape == (32, 32, 3)
    assert torch.equal(prepare_picture(cropped, 32), prepare_picture(pixels, 32))


def test_a_picture_of_one_row_is_not_enlarged_as_a_whole():
    pixels = np.zeros((1, 16_384, 3), np.uint8)
    pixels[:, 8_192:] = 255
    cropped = crop_picture(pixels, 224)
    assert cropped.shape == (224, 224, 3)
    assert cropped[:, 0].max() < 128 < cropped[:, -1].min()
