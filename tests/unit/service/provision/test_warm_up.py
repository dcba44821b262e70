from types import SimpleNamespace

from mezzotint.observe.stages import stage
from mezzotint.service.provision.warm_up import WarmUp


def test_a_model_that_is_loaded_says_what_is_done_just_now():
    spec = SimpleNamespace(name="big", takes_prompt=True, has_steps=True, family="sd")
    drawn = []
    warm_up = WarmUp(
        None,
        0.0,
        spec=lambda name: spec,
        draw=lambda request, sink, request_id: drawn.append(request.model),
        resolve=None,
        perform=lambda action: action(),
        executor=None,
    )
    warm_up.start(["big"])
    assert drawn == ["big"]
    assert warm_up.waiting == {"big": "is being loaded"}
    with stage("compiling", "denoiser", 3_438_000_000):
        assert warm_up.waiting == {"big": "is being loaded (compiling denoiser, 3438 MB)"}
        assert warm_up.failed == {}
