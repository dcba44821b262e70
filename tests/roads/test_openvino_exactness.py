"""The CPU's default backend: the same bytes alone and in a storm, close to torch."""

import random

import numpy as np
import pytest
import torch
from tests import tiny
from tests.roads.test_exactness import differing, gan, run, storm
from tests.roads.test_techniques import write_lora

from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import GenerationRequest, Lora
from mezzotint.service.engine import Engine

pytest.importorskip("openvino")


def requests():
    schedulers = ("euler_ancestral", "heun")
    drawn = [
        GenerationRequest(
            model="sd",
            prompt=prompt,
            seed=k,
            scheduler=scheduler,
            num_inference_steps=2 + k % 3,
            guidance_scale=1.0 if k % 3 == 0 else 5.0,
        )
        for k, (scheduler, prompt) in enumerate(
            (s, p) for s in schedulers for p in ("a red apple", "two cats")
        )
    ]
    return [*drawn, *(GenerationRequest(model="gan", seed=k) for k in range(3))]


@pytest.mark.filterwarnings("ignore")
def test_openvino_gives_the_same_bytes_alone_and_in_a_storm_and_the_picture_of_torch(tmp_path):
    torch.set_num_threads(1)
    asked = requests()
    models = [from_pipeline(tiny.build("sd1"), name="sd"), gan()]
    eager = {"learn_share": 100}
    with Engine(models, device="cpu", home=tmp_path, backend="openvino", engine=eager) as engine:
        solo = {k: run(engine, request) for k, request in enumerate(asked)}
        assert differing(solo, storm(engine, asked, random.Random(1), cancels=2)) == []
        certificates = engine.service._certificates.table()
        assert all(all(c["buckets"].values()) for c in certificates), certificates
        assert not any(image.warnings for r in solo.values() for image in r.images)
    models = [from_pipeline(tiny.build("sd1"), name="sd"), gan()]
    with Engine(models, device="cpu", home=tmp_path, backend="torch") as engine:
        for k, request in enumerate(asked):
            torch_pixels = engine.submit(request).result().images[0].pixels.astype(int)
            gap = np.abs(torch_pixels - solo[k].images[0].pixels.astype(int)).max()
            assert gap <= 1, k


@pytest.mark.filterwarnings("ignore")
def test_a_lora_of_scale_zero_is_no_lora_where_openvino_runs_what_has_none(tmp_path):
    torch.set_num_threads(1)
    (tmp_path / "loras").mkdir()
    pipeline = tiny.build("sd1")
    write_lora(pipeline.unet, tmp_path / "loras" / "ink.safetensors")
    asked = {"model": "sd", "prompt": "a red apple", "seed": 3, "num_inference_steps": 3}
    models = [from_pipeline(pipeline, name="sd")]
    with Engine(models, device="cpu", home=tmp_path, backend="openvino") as engine:

        def pixels(*scales):
            loras = tuple(Lora(name="ink", scale=scale) for scale in scales)
            return run(engine, GenerationRequest(**asked, loras=loras)).images[0].pixels

        plain = pixels()
        assert np.array_equal(pixels(0.0), plain)
        assert np.array_equal(pixels(0.0, 0.7), pixels(0.7))
        assert not np.array_equal(pixels(0.7), plain)
