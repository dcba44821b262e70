"""Views with adapters, and the pictures that adapters look at, take bounded memory."""

import gc

import numpy as np
import pytest
import torch

from mezzotint.models.adapters.ip_adapter import crop_picture, prepare_picture
from mezzotint.models.networks import Placement
from mezzotint.planning.plan import Adapters
from mezzotint.service.provision.adapters import AdapterProvider


class Thing:
    """Stands for a model or a view of one."""


@pytest.fixture
def provider(tmp_path, monkeypatch):
    provider = AdapterProvider(tmp_path, allow_paths=False)
    monkeypatch.setattr(provider, "_make", lambda *_: Thing())
    return provider


def put(provider, model, name):
    return provider.apply(model, Adapters(loras=((name, "digest"),)), Placement())


def test_a_view_is_kept_and_goes_with_its_model(provider):
    model = Thing()
    assert put(provider, model, "ink") is put(provider, model, "ink")
    assert put(provider, model, "ink") is not put(provider, model, "fog")
    assert put(provider, model, "ink") is not put(provider, Thing(), "ink")
    del model
    gc.collect()
    assert len(provider._views) == 0


def test_views_are_bounded_over_all_models(provider):
    models = [Thing(), Thing()]
    for k in range(20):
        put(provider, models[k % 3 == 0], f"lora {k}")
    assert sum(map(len, provider._views.values())) == 8
    assert put(provider, models[False], "lora 19") is put(provider, models[False], "lora 19")


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
