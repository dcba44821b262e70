import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from tests import tiny

from mezzotint.models.backends.openvino_backend import OpenVINONetwork, use_openvino
from mezzotint.models.base import Prompt
from mezzotint.models.families.flows.z_image import rounded_length
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.networks import TorchNetwork
from mezzotint.observe.interruption import Interrupted, interruptible


@pytest.fixture(
    scope="module",
    params=[
        "ddpm",
        *(
            pytest.param(f, marks=pytest.mark.slow)
            for f in (
                "bert_sd",
                "sd1",
                "sdxl",
                "dit",
                "sd3",
                "flux",
                "chroma",
                "flux2_klein",
                "z_image",
            )
        ),
    ],
)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    tiny.build(request.param).save_pretrained(path)
    return path


def rows(model, count):
    """Random rows with their own words, noise levels and latents."""
    size = model.spec.default_size
    generator = torch.Generator().manual_seed(5)
    words = ["a red apple", "two cats", "", "on the table", "blue", "big", "a", "green leaf"]
    has_text, has_classes = model.spec.takes_prompt, model.spec.num_classes > 0
    prompts = [
        Prompt(text=words[k] if has_text else "", size=size, class_label=k if has_classes else None)
        for k in range(count)
    ]
    conditioning = type(model.encode(prompts)[0]).stack(model.encode(prompts))
    latents = torch.randn((count, *model.latent_shape(size)), generator=generator)
    sigma = torch.linspace(0.9, 0.1, count)
    return latents, sigma, conditioning


def test_lengths_of_texts_are_rounded_up_as_in_torch():
    lengths = torch.tensor([1, 17, 31, 32, 33, 48, 49, 64])
    mask = torch.arange(128)[None] < lengths[:, None]
    wanted = torch.tensor([32, 32, 32, 32, 64, 64, 64, 64])
    assert torch.equal(rounded_length(mask), wanted)
    source = TorchNetwork(
        lambda dtype: torch.nn.Identity(),
        lambda module, inputs: (rounded_length(inputs["mask"]).float(),),
    )
    (found,) = OpenVINONetwork(source, role="denoiser")(mask=mask)
    assert torch.equal(found, wanted.float())


def test_every_network_is_within_1e5_of_torch_and_independent_of_its_batch(folder, tmp_path):
    oracle, model = load_pipeline(folder), load_pipeline(folder)
    use_openvino(model, cache=tmp_path)
    latents, sigma, conditioning = rows(oracle, 8)
    expected = oracle.denoiser(latents, sigma, conditioning)
    found = model.denoiser(latents, sigma, conditioning)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert all(network.notes == () for network in model.networks.values())
    for count, start in ((1, 3), (2, 5), (4, 1), (7, 0)):
        part = slice(start, start + count)
        rows_alone = [conditioning.row(k) for k in range(start, start + count)]
        again = model.denoiser(latents[part], sigma[part], type(conditioning).stack(rows_alone))
        assert torch.equal(again, found[part])
    if "decoder" in model.networks:
        pictures = model.decode(latents[:3])
        assert (
            float((pictures - oracle.decode(latents[:3])).abs().max()) <= 4e-4
        )  # a twentieth of a level
        assert torch.equal(model.decode(latents[1:2]), pictures[1:2])


def test_a_model_larger_than_its_bound_is_kept_whole_and_what_was_there_goes(tmp_path):
    """It would else be converted at every start."""
    older = tmp_path / "older.xml"
    older.touch()
    with older.with_suffix(".bin").open("wb") as file:
        file.truncate(1 << 30)  # takes no room
    os.utime(older, (0, 0))
    model = load_pipeline(tiny.folder("sd1"))
    use_openvino(model, cache=tmp_path, cache_bytes=1)
    latents, sigma, conditioning = rows(model, 1)
    model.denoiser(latents, sigma, conditioning)
    model.decode(latents)
    assert len(list(tmp_path.glob("*.xml"))) == len(list(tmp_path.glob("*.bin"))) == 3
    assert not older.exists()


def test_a_call_that_has_begun_is_not_stopped_and_the_next_one_is_left(tmp_path):
    """OpenVINO's layers keep shapes of a stopped call; two rows after it failed, or were wrong."""
    tiny.build("ddpm").save_pretrained(tmp_path / "model")
    model = load_pipeline(tmp_path / "model")
    use_openvino(model, cache=tmp_path / "cache")
    latents, sigma, conditioning = rows(model, 2)
    expected = model.denoiser(latents, sigma, conditioning)
    many = type(conditioning).stack([conditioning.row(0)] * 128)
    for wait_s in (0.02, 0.06):
        come = threading.Event()
        timer = threading.Timer(wait_s, come.set)
        timer.start()
        with pytest.raises(Interrupted), interruptible(come):
            while True:
                model.denoiser(latents[:1].repeat(128, 1, 1, 1), sigma[:1].repeat(128), many)
        timer.join()
        assert torch.equal(model.denoiser(latents, sigma, conditioning), expected)


def test_an_exported_network_needs_neither_diffusers_nor_transformers(tmp_path):
    folder = tmp_path / "model"
    tiny.build("bert_sd").save_pretrained(folder)
    cache = tmp_path / "cache"
    model = load_pipeline(folder)
    use_openvino(model, cache=cache)
    latents, sigma, conditioning = rows(model, 2)
    expected = model.denoiser(latents, sigma, conditioning)
    torch.save(expected, tmp_path / "expected.pt")
    torch.save((latents, sigma), tmp_path / "inputs.pt")
    script = f"""
        import sys, torch
        from mezzotint.models.base import Prompt, Conditioning
        from mezzotint.models.backends.openvino_backend import use_openvino
        from mezzotint.models.formats.folders import load_pipeline
        from pathlib import Path
        model = load_pipeline({str(folder)!r})
        use_openvino(model, cache=Path({str(cache)!r}))
        latents, sigma = torch.load({str(tmp_path / "inputs.pt")!r})
        size = model.spec.default_size
        texts = ["a red apple", "two cats"]
        conditioning = Conditioning.stack(model.encode([Prompt(text=t, size=size) for t in texts]))
        found = model.denoiser(latents, sigma, conditioning)
        assert torch.equal(found, torch.load({str(tmp_path / "expected.pt")!r}))
        assert "diffusers" not in sys.modules and "transformers" not in sys.modules
        print("alone")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "alone", done.stderr[-2000:]


class _Stubborn(torch.nn.Module):
    """Has a branch on a Python object that no tracer can follow, and fails while traced."""

    def forward(self, x):
        if torch.jit.is_tracing():
            raise ValueError("this module cannot be exported")
        return x * 2


def test_what_does_not_export_is_answered_by_torch_and_says_so(tmp_path):
    source = TorchNetwork(
        lambda dtype: _Stubborn(), lambda module, inputs: (module(inputs["x"]),), digest="d"
    )
    network = OpenVINONetwork(source, role="denoiser", cache=tmp_path)
    assert torch.equal(network(x=torch.ones(2, 3))[0], torch.full((2, 3), 2.0))
    assert "the denoiser network runs in torch" in network.notes[0]


def test_another_role_or_row_shape_is_another_export(tmp_path):
    def network(role, factor):
        source = TorchNetwork(
            lambda dtype: torch.nn.Identity(),
            lambda module, inputs: (module(inputs["x"]) * factor,),
            digest="same",
        )
        return OpenVINONetwork(source, role=role, cache=tmp_path)

    assert float(network("a", 2.0)(x=torch.ones(1, 3))[0].sum()) == 6.0
    assert float(network("b", 3.0)(x=torch.ones(1, 3))[0].sum()) == 9.0
    wide = network("a", 2.0)
    assert wide(x=torch.ones(2, 5))[0].shape == (2, 5)
    assert wide(x=torch.ones(3, 3))[0].shape == (3, 3)
    assert len(list(tmp_path.glob("*.xml"))) == 3
