import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.images.codec import to_images
from mezzotint.models.base import Conditioning
from mezzotint.models.families.whole_calls import WholeCall
from mezzotint.models.families.whole_pictures import (
    pack_pictures,
    picture_arguments,
    strength_of,
)
from mezzotint.types import Size

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def call(**fields):
    common = {"names": frozenset(), "steps": 1, "guidance": None, "guidance_scale": 1.0}
    return WholeCall(**common, tells_steps=None, takes_negative=False, **fields)


def row(**pictures):
    text = {"text": torch.zeros(1, 3, dtype=torch.uint8)}
    return Conditioning({**text, **pack_pictures(**pictures)})


def test_a_start_picture_and_its_mask_come_out_as_they_went_in():
    mask = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    found = picture_arguments(
        call(start="masked"),
        row(image=to_images(PICTURE), mask=mask, strength=0.25),
        Size(6, 4),
    )
    assert np.array_equal(found["image"], PICTURE)
    assert np.array_equal(found["mask_image"], np.rint(mask * 255).astype(np.uint8))
    assert found["strength"] == 0.25


def test_a_request_without_pictures_adds_no_argument():
    assert picture_arguments(call(), row(), Size(6, 4)) == {}
    assert strength_of(row()) == 1.0


@pytest.mark.parametrize(
    ("most", "name", "expected"), [(1, "image", "one"), (3, "input_images", "list")]
)
def test_references_are_handed_over_in_order_alone_or_as_a_list(most, name, expected):
    pictures = [PICTURE, PICTURE[::-1].copy()][: 1 if most == 1 else 2]
    taking = call(references=(0, most), reference_name=name)
    found = picture_arguments(taking, row(references=pictures), Size(8, 8))
    handed = [found[name]] if expected == "one" else found[name]
    assert all(isinstance(picture, Image.Image) for picture in handed)
    assert all(np.array_equal(a, b) for a, b in zip(handed, pictures, strict=True))


def test_a_pipeline_that_draws_at_the_size_of_its_picture_gets_it_at_the_size_asked_for():
    taking = call(references=(1, 1), reference_name="image", sized_by_picture=True)
    found = picture_arguments(taking, row(references=[PICTURE]), Size(16, 8))
    assert found["image"].size == (16, 8)
