from mezzotint.images.codec import decode_image
from mezzotint.models.spec import ModelSpec
from mezzotint.observe.stages import stage
from mezzotint.service.provision.warm_up import WarmUp


def test_a_model_that_is_loaded_says_what_is_done_just_now():
    spec = ModelSpec(name="big", digest="", family="sd")
    drawn = []
    warm_up = WarmUp(
        None,
        0.0,
        spec=lambda name: spec,
        draw=lambda request, sink, request_id: drawn.append(request.model),
        resolve=None,
        learn=lambda lesson: lesson.study(),
        executor=None,
    )
    warm_up.start(["big"])
    assert drawn == ["big"]
    assert warm_up.waiting == {"big": "is being loaded"}
    with stage("compiling", "denoiser", 3_438_000_000):
        assert warm_up.waiting == {"big": "is being loaded (compiling denoiser, 3438 MB)"}
        assert warm_up.failed == {}


def test_a_model_that_needs_pictures_is_warmed_up_on_white_ones():
    needs = {
        "edit": {"min_references": 2, "max_references": 4},
        "fill": {"needs_image": True, "needs_mask": True},
        "text": {},
    }
    drawn = {}
    warm_up = WarmUp(
        None,
        0.0,
        spec=lambda name: ModelSpec(name=name, digest="", family="foreign", **needs[name]),
        draw=lambda request, sink, request_id: drawn.update({request.model: request}),
        resolve=None,
        learn=lambda lesson: lesson.study(),
        executor=None,
    )
    warm_up.start(list(needs))
    assert {k: len(r.image_references) for k, r in drawn.items()} == {
        "edit": 2, "fill": 0, "text": 0,
    }  # fmt: skip
    assert [k for k, r in drawn.items() if r.image and r.mask] == ["fill"]
    picture = drawn["edit"].image_references[0]
    assert decode_image(picture.data).min() == 255
