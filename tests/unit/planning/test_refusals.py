import pytest

from mezzotint.errors import InvalidRequest
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.planner import plan
from mezzotint.planning.refusals import techniques_of
from mezzotint.request import GenerationRequest, Inpaint, Outpaint
from mezzotint.types import ImageInput, Size

ONE, TWO = (ImageInput(b"\x89PNG" + bytes([k])) for k in (1, 2))
KNOWN = frozenset({"image", "mask", "outpaint", "image_references", "upscale", "hires"})
WHOLE = {
    "digest": "d", "family": "foreign", "stepwise": False, "tells_steps": True, "default_steps": 10,
    "size_multiple": 16, "default_size": Size(64, 64), "takes_guidance": False,
    "takes_distilled_guidance": True,
}  # fmt: skip
SPECS = {
    "edit": {"takes_image": False, "min_references": 1, "max_references": 2},
    "kontext": {"takes_image": False, "max_references": 1},
    "text": {"takes_image": False},
    "start": {"needs_image": True, "takes_mask": False},
    "fill": {"needs_image": True, "needs_mask": True},
}


def spec(kind):
    return ModelSpec(name=kind, **WHOLE, **SPECS[kind])


def resolve(kind, size=Size(64, 64), **fields):
    request = GenerationRequest(prompt="a cat", seed=1, **fields)
    abilities = Abilities(techniques=KNOWN)
    return plan(request, spec(kind), abilities, image_size=size).plans[0]


@pytest.mark.parametrize(
    ("kind", "fields", "field", "message"),
    [
        ("edit", {}, "image_references", "needed for edit: it edits a picture, got none"),
        ("edit", {"image_references": (ONE, TWO, ONE)}, "image_references",
         "must be at most 2 for edit, got 3"),
        ("kontext", {"image_references": (ONE, TWO)}, "image_references",
         "must be at most 1 for kontext, got 2"),
        ("text", {"image_references": (ONE,)}, "image_references", "by text: it takes none"),
        ("fill", {"image_references": (ONE,)}, "image", "image is needed for fill"),
        ("edit", {"image": ONE}, "image", "takes pictures as image_references"),
        ("text", {"image": ONE}, "image", "no picture encoder"),
        ("start", {}, "image", "needed for start"),
        ("start", {"image": ONE, "mask": TWO}, "mask", "it runs whole"),
        ("fill", {"image": ONE}, "mask", "needed for fill"),
        ("fill", {"image": ONE, "mask": TWO, "inpaint": Inpaint(fill="noise")}, "inpaint.fill",
         "original or surroundings"),
        ("start", {"image": ONE, "strength": 0.05}, "strength", "at least 0.1"),
    ],
)  # fmt: skip
def test_pictures_that_a_whole_pipeline_cannot_take_are_refused_in_one_line(
    kind, fields, field, message
):
    with pytest.raises(InvalidRequest, match=message) as caught:
        resolve(kind, **fields)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_image_and_image_references_exclude_each_other():
    with pytest.raises(InvalidRequest, match="cannot be used with image"):
        GenerationRequest(prompt="a", image=ONE, image_references=(TWO,))


def test_references_are_in_the_plan_by_digest_and_in_order():
    both = resolve("edit", image_references=(ONE, TWO))
    turned = resolve("edit", image_references=(TWO, ONE))
    assert both.techniques.image_references == (ONE.digest, TWO.digest)
    assert both.digest != turned.digest


def test_a_plan_without_references_has_the_canonical_text_that_it_had():
    assert "image_references" not in resolve("text", size=None).canonical
    assert "image_references" in resolve("kontext", image_references=(ONE,)).canonical


def test_a_picture_to_edit_gives_its_proportions_and_one_to_begin_from_its_sides():
    assert resolve("edit", Size(4000, 1000), image_references=(ONE,)).size == Size(128, 32)
    assert resolve("start", Size(96, 48), image=ONE).size == Size(96, 48)
    asked = resolve("edit", Size(4000, 1000), image_references=(ONE,), width=64, height=64)
    assert asked.size == Size(64, 64)


def test_strength_is_the_share_of_the_steps_that_are_told():
    one = resolve("fill", image=ONE, mask=TWO, strength=0.5)
    assert (one.num_inference_steps, one.steps) == (10, (1, 2, 3, 4, 5))
    assert (one.techniques.image, one.techniques.mask) == (ONE.digest, TWO.digest)
    assert one.techniques.strength == 0.5
    assert resolve("fill", image=ONE, outpaint=Outpaint(left=16)).techniques.mask == "outside"


@pytest.mark.parametrize(
    ("kind", "techniques"),
    [
        ("edit", ("image_references", "upscale")),
        ("text", ("upscale",)),
        ("start", ("image", "upscale")),
        ("fill", ("image", "mask", "outpaint", "upscale")),
    ],
)
def test_a_model_lists_the_pictures_that_it_takes(kind, techniques):
    assert techniques_of(spec(kind), KNOWN) == techniques
