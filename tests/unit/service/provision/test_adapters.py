"""Views with adapters, and the pictures that adapters look at, take bounded memory."""

import gc

import numpy as np
import pytest
import torch

from mezzotint.models.adapters.ip_adapter import crop_picture, prepare_picture
from mezzotint.models.networks import Placement
from mezzotint.planning.plan import Adapters
from mezzotint.service.provision.adapters import AdapterShelf


class Thing:
    """Stands for a model or a view of one."""


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    shelf = AdapterShelf(tmp_path, allow_paths=False)
    monkeypatch.setattr(shelf, "_make", lambda *_: Thing())
    return shelf


def put(shelf, model, name):
    return shelf.put_on(model, Adapters(loras=((name, "digest"),)), Placement())


def test_a_view_is_kept_and_goes_with_its_model(shelf):
    model = Thing()
    assert put(shelf, model, "ink") is put(shelf, model, "ink")
    assert put(shelf, model, "ink") is not put(shelf, model, "fog")
    assert put(shelf, model, "ink") is not put(shelf, Thing(), "ink")
    del model
    gc.collect()
    assert len(shelf._views) == 0


def test_views_are_bounded_over_all_models(shelf):
    models = [Thing(), Thing()]
    for k in range(20):
        put(shelf, models[k % 3 == 0], f"lora {k}")
    assert sum(map(len, shelf._views.values())) == 8
    assert put(shelf, models[False], "lora 19") is put(shelf, models[False], "lora 19")


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
