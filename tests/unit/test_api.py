import io

import pytest
from PIL import Image

import mezzotint as mz
from mezzotint import api
from mezzotint.settings import load


@pytest.fixture
def asked(monkeypatch):
    """Catch the requests that reach the shared engine."""
    requests = []

    class Engine:
        def generate(self, request):
            requests.append(request)
            return mz.GenerationResult(id="a", images=())

    monkeypatch.setattr(api, "shared_engine", Engine)
    return requests


def test_words_and_keywords_make_a_request(asked):
    mz.generate("a red apple", seed=7, guidance_scale={"schedule": "linear", "start": 8, "end": 2})
    assert asked[0] == mz.GenerationRequest(
        prompt="a red apple",
        seed=7,
        guidance_scale=mz.GuidanceSchedule(schedule="linear", start=8, end=2),
    )


def test_a_whole_request_goes_as_it_is_and_keywords_replace_its_fields(asked):
    request = mz.GenerationRequest(model="plate", prompt="a red apple", num_images=4, seed=7)
    mz.generate(request)
    mz.generate(request, seed=8)
    assert asked[0] is request
    assert (asked[1].seed, asked[1].num_images) == (8, 4)


def test_an_unknown_keyword_names_the_nearest(asked):
    with pytest.raises(mz.UnknownName, match="did you mean 'seed'"):
        mz.generate("x", sed=7)
    assert asked == []


def test_the_prompt_cannot_be_given_twice(asked):
    with pytest.raises(mz.InvalidRequest, match="prompt was given twice"):
        mz.generate("x", prompt="y")


def test_the_shared_engine_has_every_setting_that_the_command_line_has(monkeypatch, tmp_path):
    monkeypatch.setattr(api, "_engines", [])
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path))
    monkeypatch.setenv("MEZZOTINT_IMAGES__MAX_PIXELS", "4096")
    file = tmp_path / "config.toml"
    file.write_text("[models]\nmax_bytes = 7\nallow_paths = false\nplacement.vae_slicing = true\n")
    engine = api.shared_engine()
    try:
        assert engine.service.config == load().settings.service_config()
        assert engine.service.provider.store.config.max_bytes == 7
        assert engine.service.provider.store.config.placement.vae_slicing
        with pytest.raises(mz.ModelNotAllowed):
            mz.generate("x", model=str(tmp_path))
        with pytest.raises(mz.ImageError, match="4096"):
            mz.generate("x", image=Image.new("RGB", (128, 64)))
    finally:
        engine.close()


def test_pictures_come_as_paths_bytes_or_pil(asked, tmp_path):
    picture = Image.new("RGB", (8, 8), "red")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), stream.getvalue(), picture):
        mz.generate("x", image=image)
    assert {request.image.data for request in asked} == {stream.getvalue()}


def test_a_picture_that_is_not_there_is_named(asked, tmp_path):
    with pytest.raises(mz.ImageError, match=r"none\.png"):
        mz.generate("x", image=tmp_path / "none.png")
