"""LoRAs that come with the package: names of :mod:`mezzotint.service.provision.adapter_files`."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import mezzotint as mz
from mezzotint.errors import InvalidRequest, Refused, UnknownName
from mezzotint.service.provision.adapter_files import AdapterFiles
from mezzotint.service.provision.own_adapters import OwnAdapters

STYLES = ("plate-ink", "plate-pastel")


def test_they_have_names_in_an_empty_home_and_none_removes_them(tmp_path):
    files = AdapterFiles(tmp_path, allow_paths=False)
    assert files.names("lora") == ()
    assert files.usable("lora") == STYLES
    assert files.usable("control") == files.usable("embedding") == ()
    assert files.path("lora", "plate-ink").stat().st_size < 300_000
    with pytest.raises(InvalidRequest, match="comes with the package"):
        files.remove("lora", "plate-ink")
    with pytest.raises(UnknownName, match="plate-ink"):
        files.path("lora", "plate-inc")


def test_one_of_the_home_folder_takes_the_place_of_one_that_ships(tmp_path):
    files = AdapterFiles(tmp_path, allow_paths=False)
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "mine.safetensors")
    shipped = files.path("lora", "plate-ink")
    own = files.add("lora", "plate-ink", tmp_path / "mine.safetensors")
    assert files.path("lora", "plate-ink") == own == tmp_path / "loras" / "plate-ink.safetensors"
    assert files.usable("lora") == STYLES
    files.remove("lora", "plate-ink")
    assert files.path("lora", "plate-ink") == shipped


def test_no_key_brings_along_what_everybody_calls_by_that_name(tmp_path):
    with pytest.raises(InvalidRequest, match="exists already"):
        OwnAdapters(tmp_path).check_free("plate-ink", "somebody", most=0)


def test_a_server_lists_them_to_every_key_and_lets_none_drop_them(tmp_path):
    own = OwnAdapters(tmp_path)
    listed = own.listed("somebody", sees_all=False)
    assert [(one["name"], one["owner"], one["ranks"]) for one in listed] == [
        (name, "", [4]) for name in STYLES
    ]
    assert [one["error"] for one in listed] == ["", ""]
    assert own.show("plate-ink", "somebody", sees_all=False) == listed[0]
    with pytest.raises(Refused, match="comes with the package"):
        own.drop("plate-ink", "ops", sees_all=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two captions, alone, with each style, and with one at scale 0. Shape (N, 128, 128, 3)."""
    home = tmp_path_factory.mktemp("home")
    worn = {name: (mz.Lora(name=name),) for name in STYLES}
    worn |= {"alone": (), "none": (mz.Lora(name="plate-ink", scale=0.0),)}
    with mz.Engine(["plate"], home=home) as engine:
        jobs = {
            name: [
                engine.submit(
                    mz.GenerationRequest(
                        model="plate", prompt=text, seed=3, num_inference_steps=10, loras=loras
                    )
                )
                for text in ("a strawberry", "a yellow sun")
            ]
            for name, loras in worn.items()
        }
        return {
            name: np.stack([np.asarray(job.result(timeout_s=600).images[0].pixels) for job in some])
            for name, some in jobs.items()
        }


def colourfulness(pictures):
    """The mean distance of a pixel's highest and lowest channel, 0 to 255."""
    return float((pictures.max(axis=3).astype(float) - pictures.min(axis=3)).mean())


def darkest(pictures):
    """The brightness below which a fiftieth of the pixels lies, 0 to 255."""
    return float(np.percentile(pictures.mean(axis=3), 2))


def test_a_style_at_scale_0_is_the_model_alone(pictures):
    np.testing.assert_array_equal(pictures["none"], pictures["alone"])


def test_ink_has_darker_lines_and_hardly_a_colour(pictures):
    assert colourfulness(pictures["alone"]) > 50
    assert colourfulness(pictures["plate-ink"]) < 25
    assert darkest(pictures["plate-ink"]) < darkest(pictures["alone"]) - 10


def test_pastel_is_pale_and_keeps_colour(pictures):
    assert darkest(pictures["plate-pastel"]) > darkest(pictures["alone"]) + 40
    half = colourfulness(pictures["alone"]) / 2
    assert 0.5 * half < colourfulness(pictures["plate-pastel"]) < 1.4 * half
