import dataclasses
import json
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.errors import ImageError, InvalidField, InvalidRequest, UnknownName
from mezzotint.plain import bounds_of, field_docs, field_hints, field_types, read
from mezzotint.request import (
    GenerationRequest,
    GuidanceSchedule,
    LatentInput,
    Output,
    Region,
    Upscale,
    Walk,
)
from mezzotint.types import MAX_SEED, ImageInput

PICTURE = "aGVsbG8="


def test_from_dict_and_to_dict_are_inverse_for_every_kind_of_field():
    data = {
        "model": "plate@1",
        "prompt": "a red apple",
        "width": 128,
        "seed": 7,
        "guidance_scale": {"schedule": "interval", "start": 5.0, "from": 0.25, "until": 0.75},
        "image": PICTURE,
        "strength": 0.5,
        "mask": PICTURE,
        "controls": [{"model": "canny", "image": PICTURE, "scale": 0.5}],
        "loras": [{"name": "ink", "scale": 0.5}],
        "regions": [{"prompt": "a sun", "box": [0.0, 0.0, 0.5, 0.5], "weight": 2.0}],
        "ensemble": [{"model": "a", "weights": [1.0, 0.0]}, {"model": "b"}],
        "walk": {"to": "a pear", "frames": 5},
        "latent": {"truncation": 0.7, "class_label": 3},
        "gates": {"nsfw": {"threshold": 0.5}, "quality": {}, "max_attempts": 3, "keep": "best"},
        "upscale": {"factor": 4.0},
        "output": {"format": "webp", "quality": 80},
        "reproducibility": "turbo",
    }
    request = GenerationRequest.from_dict(data)
    assert request.to_dict() == data
    assert GenerationRequest.from_dict(json.loads(request.canonical())) == request


def test_python_and_json_give_one_digest_whatever_the_number_type():
    digests = {
        GenerationRequest(guidance_scale=7).digest,
        GenerationRequest(guidance_scale=7.0).digest,
        GenerationRequest.from_dict({"guidance_scale": 7}).digest,
    }
    assert len(digests) == 1
    assert GenerationRequest(seed=3.0).digest == GenerationRequest(seed="3").digest


def test_gate_order_is_kept_because_the_policy_is_ordered():
    first = GenerationRequest.from_dict({"gates": {"nsfw": {}, "quality": {}}})
    second = GenerationRequest.from_dict({"gates": {"quality": {}, "nsfw": {}}})
    assert first.digest != second.digest


def test_parts_can_be_given_as_objects_or_plain_data():
    plain = GenerationRequest(regions=[{"prompt": "a", "box": [0, 0, 1, 1]}])
    assert plain.regions == (Region(prompt="a", box=(0.0, 0.0, 1.0, 1.0)),)
    assert hash(plain) == hash(GenerationRequest(regions=[Region(prompt="a", box=(0, 0, 1, 1))]))


def test_a_seed_beyond_javascript_integers_may_come_as_text():
    assert GenerationRequest.from_dict({"seed": str(MAX_SEED)}).seed == MAX_SEED


def test_equal_pictures_make_equal_requests():
    one = GenerationRequest(image=ImageInput(b"x"))
    assert one == GenerationRequest(image=b"x")
    assert one != GenerationRequest(image=b"y")


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        ({"promt": "x"}, "promt", "did you mean 'prompt'"),
        ({"prompt": 3}, "prompt", "must be a text"),
        ({"prompt": None}, "prompt", "must be a text"),
        ({"prompt": "x" * 32_001}, "prompt", "at most 32000"),
        ({"model": ""}, "model", "must name a model"),
        ({"seed": -1}, "seed", "0 to"),
        ({"seed": 2**64}, "seed", "0 to"),
        ({"seed": "12a"}, "seed", "whole number"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"seed": True}, "seed", "whole number"),
        ({"seed": "9" * 5000}, "seed", "0 to"),
        ({"num_inference_steps": 0}, "num_inference_steps", "1 to 1000"),
        ({"num_inference_steps": 10**9}, "num_inference_steps", "1 to 1000"),
        ({"num_images": 0}, "num_images", "1 to 1024"),
        ({"width": 0}, "width", "px"),
        ({"width": "512"}, "width", "whole number"),
        ({"guidance_scale": math.nan}, "guidance_scale", "0 to 1000"),
        ({"guidance_scale": math.inf}, "guidance_scale", "0 to 1000"),
        ({"guidance_scale": 10**400}, "guidance_scale", "0 to 1000"),
        ({"guidance_scale": "7"}, "guidance_scale", "a number"),
        ({"guidance_scale": {"schedule": "step"}}, "guidance_scale.schedule", "'cosine'"),
        ({"guidance_scale": {"statr": 1}}, "guidance_scale.statr", "Known:"),
        ({"guidance_scale": {"schedule": "list"}}, "guidance_scale.values", "needed"),
        ({"strength": 1.01}, "strength", "0 to 1"),
        ({"mask": PICTURE}, "mask", "needs image"),
        ({"image": "https://example.org/a.png"}, "image", "never fetched"),
        ({"image": "file:///etc/passwd"}, "image", "never fetched"),
        ({"image": "???"}, "image", "base64"),
        ({"image": ""}, None, "no bytes"),
        ({"regions": [{"prompt": "a"}]}, "regions[0].box", "either mask or box"),
        ({"regions": [{"prompt": "a", "box": [1, 0, 0, 1]}]}, "regions[0].box", "x0 < x1"),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1]}]}, "regions[0].box", "x0"),
        ({"regions": {"prompt": "a"}}, "regions", "a list"),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1], "weight": 0}]}, None, "1e-06 to 1000"),
        ({"ensemble": [{"model": "a", "weight": -1}]}, "ensemble[0].weight", "0 to 1000"),
        ({"ensemble": [{"model": "a", "box": [1, 0, 0, 1]}]}, "ensemble[0].box", "x0 < x1"),
        (
            {"ensemble": [{"model": "a", "box": [0, 0, 1, 1], "mask": PICTURE}]},
            "ensemble[0].box",
            "not both",
        ),
        ({"loras": [{"scale": 1}]}, "loras[0].name", "is needed"),
        ({"loras": [{"name": "x", "scale": 11}]}, "loras[0].scale", "-10 to 10"),
        ({"walk": {"frames": 3}}, "walk.to", "needed"),
        ({"walk": {"to": "x", "frames": 1}}, "walk.frames", "2 to"),
        ({"gates": {"max_attempts": 0}}, "gates.max_attempts", "1 to 64"),
        ({"gates": {"nsfw": {"treshold": 1}}}, "gates.nsfw.treshold", "did you mean 'threshold'"),
        ({"output": {"format": "gif"}}, "output.format", "'png'"),
        ({"output": {"quality": 0}}, "output.quality", "1 to 100"),
        ({"output": {"metadata": 1}}, "output.metadata", "true or false"),
        ({"prompt_dialect": "latin"}, "prompt_dialect", "'a1111'"),
        ({"reproducibility": True}, "reproducibility", "'exact'"),
        ({"deadline_s": -1}, "deadline_s", "0 to"),
        ({"priority": 101}, "priority", "-100 to 100"),
        ({"latent": {"truncation": math.nan}}, "latent.truncation", "0 to 10"),
        ({"latent": 3}, "latent", "an object"),
        ({"upscale": {"factor": 0.5}}, "upscale.factor", "1 to 8"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field_and_what_is_allowed(data, field, words):
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest.from_dict(data)
    assert words in str(caught.value)
    if field is not None:
        assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_a_request_that_is_not_an_object_is_refused():
    with pytest.raises(InvalidRequest, match="must be an object, got list"):
        GenerationRequest.from_dict([1])  # type: ignore[arg-type]


def test_an_unknown_field_lists_the_known_ones():
    with pytest.raises(UnknownName) as caught:
        GenerationRequest.from_dict({"cfg_scale": 7})
    assert "guidance_scale" in caught.value.known
    assert isinstance(caught.value, ValueError)


def test_a_data_url_prefix_is_read_as_the_picture_it_holds():
    assert ImageInput.from_base64("data:image/png;base64,aGVs\nbG8=").data == b"hello"
    with pytest.raises(ImageError):
        ImageInput.from_base64("data:image/png;base64,not base64 at all!")


@given(
    seed=st.none() | st.integers(0, MAX_SEED),
    steps=st.none() | st.integers(1, 1000),
    scale=st.none() | st.floats(0, 1000),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50),
    truncation=st.floats(0, 10),
    frames=st.integers(2, 20),
    factor=st.floats(1, 8),
    quality=st.integers(1, 100),
)
def test_any_valid_request_survives_json(
    seed, steps, scale, text, truncation, frames, factor, quality
):
    request = GenerationRequest(
        prompt=text,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=scale,
        latent=LatentInput(truncation=truncation),
        walk=Walk(to=text, frames=frames),
        upscale=Upscale(factor=factor),
        output=Output(quality=quality),
    )
    assert GenerationRequest.from_dict(json.loads(request.canonical())) == request


@pytest.mark.parametrize("guidance", [{}, {"rescale": 0.7}, {"end": 3}])
def test_an_object_of_guidance_names_a_schedule_or_where_it_starts(guidance):
    with pytest.raises(InvalidField, match="schedule is needed, or start") as caught:
        GenerationRequest.from_dict({"guidance_scale": guidance})
    assert caught.value.field == "guidance_scale.schedule"


@pytest.mark.parametrize("schedule", [GuidanceSchedule(), GuidanceSchedule(rescale=0.5)])
def test_a_schedule_that_is_all_defaults_survives_json(schedule):
    request = GenerationRequest(guidance_scale=schedule)
    assert request.to_dict()["guidance_scale"]["schedule"] == "constant"
    assert GenerationRequest.from_dict(request.to_dict()) == request


def test_an_older_recipe_that_names_a_start_alone_is_constant():
    request = GenerationRequest.from_dict({"guidance_scale": {"start": 7, "rescale": 0.7}})
    assert request.guidance_scale == GuidanceSchedule(start=7.0, rescale=0.7)


@pytest.mark.parametrize("bad", ["a\0", "\ud800"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        (lambda text: {"prompt": text}, "prompt"),
        (lambda text: {"negative_prompt": text}, "negative_prompt"),
        (lambda text: {"walk": {"to": text, "frames": 2}}, "walk.to"),
        (lambda text: {"hires": {"prompt": text}}, "hires.prompt"),
        (lambda text: {"regions": [{"prompt": text, "box": [0, 0, 1, 1]}]}, "regions[0].prompt"),
    ],
)
def test_a_text_that_is_no_unicode_names_its_field(body, field, bad):
    with pytest.raises(InvalidField, match="without NUL") as caught:
        GenerationRequest.from_dict(body(bad))
    assert caught.value.field == field


def test_a_guidance_list_and_other_shapes_do_not_mix():
    assert GuidanceSchedule(schedule="list", values=(1, 2)).values == (1.0, 2.0)
    with pytest.raises(InvalidRequest, match="belongs to schedule"):
        GuidanceSchedule(schedule="linear", values=(1, 2))


def test_a_function_becomes_a_list_that_reaches_both_ends():
    curve = GuidanceSchedule.from_function(lambda done: 2 + 10 * done**2, 5, rescale=0.5)
    assert curve.values == (2.0, 2.625, 4.5, 7.625, 12.0)
    assert (curve.schedule, curve.rescale) == ("list", 0.5)
    assert GuidanceSchedule.from_function(lambda done: 3 - done, 1).values == (3.0,)
    with pytest.raises(InvalidRequest, match=r"guidance_scale\.values"):
        GuidanceSchedule.from_function(lambda done: float("nan"), 2)


def parts(cls=GenerationRequest, where=""):
    """Yield every part of a request with its path."""
    yield cls, where
    for name, hint in field_types(cls).items():
        for part in found_parts(hint):
            inner = f"{where}.{name}" if where else name
            yield from parts(part, where if inner == "gates.gates" else inner)


def found_parts(hint):
    if dataclasses.is_dataclass(hint):
        return [hint] if hint is not ImageInput else []
    return [part for inner in typing.get_args(hint) for part in found_parts(inner)]


@pytest.mark.parametrize(("cls", "where"), list(parts()))
def test_a_part_knows_its_path_and_says_what_each_field_means(cls, where):
    assert cls.where == where
    assert field_docs(cls).keys() == {f.name for f in dataclasses.fields(cls)}


def test_every_number_and_every_list_of_parts_has_bounds():
    def holds(hint, kinds):
        return hint in kinds or any(holds(a, kinds) for a in typing.get_args(hint))

    bare = [
        f"{where}.{name}"
        for cls, where in parts()
        for name, hint in field_hints(cls).items()
        if (holds(hint, (int, float)) or (found_parts(hint) and typing.get_origin(hint) is tuple))
        and bounds_of(hint) == ((), ())
    ]
    assert bare == ["gates.gates"]  # as many gates as there are


def test_a_default_is_within_its_bounds():
    for cls, _ in parts():
        for field in dataclasses.fields(cls):
            own, items = bounds_of(field_hints(cls)[field.name])
            if field.default is not dataclasses.MISSING:
                for bound in own:
                    bound.check(field.name, field.default)
            assert not items or field.default in ((), None, dataclasses.MISSING)


def test_one_wrong_field_is_told_from_fields_that_do_not_fit_together():
    for data in ({"width": 0}, {"prompt": 3}, {"loras": [{}]}, {"output": {"format": "gif"}}):
        with pytest.raises(InvalidField):
            GenerationRequest.from_dict(data)
    for data in ({"mask": PICTURE}, {"walk": {}}, {"regions": [{"prompt": "a"}]}):
        with pytest.raises(InvalidRequest) as caught:
            GenerationRequest.from_dict(data)
        assert not isinstance(caught.value, InvalidField)


@pytest.mark.parametrize(("text", "seed"), [(" 7\n", 7), ("0" * 30 + "7", 7), ("0", 0)])
def test_a_seed_as_text_may_have_zeros_and_space_around_it(text, seed):
    assert GenerationRequest(seed=text).seed == seed


def test_digits_of_other_scripts_are_no_seed():
    with pytest.raises(InvalidField, match="whole number"):
        GenerationRequest(seed="٧")


@given(
    st.fixed_dictionaries(
        {"seed": st.integers(0, 2**64 - 1)},
        optional={
            "model": st.sampled_from(["plate", "plate-gan"]),
            "num_images": st.sampled_from([1, 2.0, 3]),
            "width": st.sampled_from([64, 64.0, None]),
            "output": st.sampled_from([{"format": "jpeg"}, {"quality": 90}, {"quality": 90.0}]),
            "latent": st.sampled_from([{"truncation": 1}, {"truncation": 0.0}, {"class_label": 3}]),
        },
    )
)
def test_a_request_that_was_read_before_with_another_seed_is_read_alike(data):
    other = {**data, "seed": (data["seed"] + 1) % 2**64}
    for each in (data, other):
        again = GenerationRequest.from_dict(each)
        assert again == read(GenerationRequest, each)
        assert repr(again) == repr(read(GenerationRequest, each))


@pytest.mark.parametrize(("field", "value"), [("num_images", True), ("seed", True), ("seed", -1)])
def test_what_equals_a_good_value_is_refused_all_the_same(field, value):
    good = {"model": "plate-gan", "num_images": 1, "seed": 1}
    GenerationRequest.from_dict(good)
    with pytest.raises(InvalidRequest):
        GenerationRequest.from_dict({**good, field: value})
