"""Weights on disk: the bits of a network in memory, in the memory of a few layers."""

import contextlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny

from mezzotint.errors import WeightsError
from mezzotint.models.backends.on_disk import OffloadToDisk
from mezzotint.models.backends.openvino_backend import use_openvino
from mezzotint.models.backends.placement import place
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.config import PlacementConfig
from mezzotint.models.networks import ALIGNMENT, TorchNetwork
from mezzotint.models.store.loading import load_path
from mezzotint.types import Size

SIZE = Size(64, 64)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run(model):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *model.latent_shape(SIZE), generator=generator)
    conditioning = Conditioning.stack(model.encode([Prompt(text="a cat", size=SIZE)] * 2))
    denoised = model.denoiser(latents, torch.tensor([2.0, 0.5]), conditioning)
    return [denoised, model.decode(denoised)]


def halved(folder):
    """Store a network's weights in float16."""
    for file in (folder / "unet").glob("*.safetensors"):
        weights = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_answers_have_the_bits_of_a_network_in_memory(tmp_path, stored):
    folder = tiny.copy_of("sd1", tmp_path / "sd1")
    if stored == "float16":
        halved(folder)
    expected = run(load_path(folder, name="sd"))
    model = place(load_path(folder, name="sd"), PlacementConfig(offload="disk"))
    disk = model.networks["denoiser"].offload
    assert isinstance(disk, OffloadToDisk)
    disk.folder = tmp_path / "weights"
    for found, known in zip(run(model), expected, strict=True):
        assert torch.equal(found, known)
    kept = sorted((tmp_path / "weights").iterdir())
    assert len(kept) == 2  # denoiser and text encoder; the autoencoder is in memory
    weights = list(model.networks["denoiser"].module.parameters())
    assert all(w.dtype == torch.float32 and w.data_ptr() % ALIGNMENT == 0 for w in weights)
    assert model.networks["denoiser"].num_bytes == 0
    times = [file.stat().st_mtime_ns for file in kept]
    again = place(load_path(folder, name="sd"), PlacementConfig(offload="disk"))
    again.networks["denoiser"].offload.folder = tmp_path / "weights"
    assert torch.equal(run(again)[0], expected[0])
    assert [file.stat().st_mtime_ns for file in kept] == times  # written once


def test_who_writes_to_the_models_files_changes_nothing(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "sd1")
    model = place(load_path(folder, name="sd"), PlacementConfig(offload="disk"))
    expected = run(model)
    (file,) = (folder / "unet").glob("*.safetensors")
    with file.open("r+b") as stream:
        stream.seek(-4096, 2)
        stream.write(b"\xff" * 4096)
    assert torch.equal(run(model)[0], expected[0])
    with pytest.raises(WeightsError, match="was changed since it was read"):
        fresh = place(load_path(folder, name="sd"), PlacementConfig(offload="disk"))
        shutil.rmtree(folder / "scheduler")  # anything: what was pinned is the old digest
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
        run(fresh)


def test_openvino_leaves_such_networks_to_torch(tmp_path):
    model = place(load_path(tiny.folder("sd1"), name="sd"), PlacementConfig(offload="disk"))
    use_openvino(model, cache=tmp_path)
    assert isinstance(model.networks["denoiser"], TorchNetwork)
    assert not isinstance(model.networks["decoder"], TorchNetwork)


def test_what_cannot_be_mapped_says_so():
    model = load_path(tiny.folder("sd1"), name="sd")
    for network in model.networks.values():
        network.mapped = None
    placed = place(model, PlacementConfig(offload="disk", channels_last=True))
    assert [note.partition(" has")[0] for note in placed.notes] == ["channels_last", "offload disk"]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    model = place(load_path(tiny.folder("sd1"), name="sd"), PlacementConfig(offload="disk"))
    model.networks["denoiser"].offload.folder = tmp_path
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WeightsError, match=r"GB in .*, and 0\.0 GB are free there"):
        run(model)
    assert list(tmp_path.iterdir()) == []


LARGE = """
import contextlib, json, sys, torch
from pathlib import Path
from safetensors import safe_open
from mezzotint.models.backends.on_disk import OffloadToDisk
from mezzotint.models.networks import TorchNetwork
from torch import nn

def peak_mb():
    lines = dict(l.split(':', 1) for l in open('/proc/self/status') if ':' in l)
    return int(lines['VmHWM'].split()[0]) / 1024

@contextlib.contextmanager
def mapped(dtype):
    with torch.device('meta'):
        module = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(24)))
    with safe_open(sys.argv[1], framework='pt') as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
    module.load_state_dict(state, assign=True)
    yield module

disk = OffloadToDisk(Path(sys.argv[2]))
network = TorchNetwork(None, lambda m, i: (m(i['x']),), num_bytes=24 << 24, digest='d')
network.mapped = mapped
disk.take(network)
torch.set_num_threads(1)
before = peak_mb()
for _ in range(2):
    answer = network(x=torch.ones(8, 2048))[0]
print(json.dumps({'before': before, 'peak': peak_mb(), 'sum': float(answer.double().sum())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux")
def test_400_mb_of_weights_take_the_memory_of_some(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{k}.weight": (torch.randn(2048, 2048, generator=generator) / 2048**0.5).half()
        for k in range(24)
    }
    save_file(weights, tmp_path / "w.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "w.safetensors"), str(tmp_path / "kept")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    x = torch.ones(8, 2048)
    for k in range(24):
        x = torch.nn.functional.linear(x, weights[f"{k}.weight"].float())
    assert found["sum"] == pytest.approx(float(x.double().sum()), rel=1e-3, abs=1e-2)
    assert found["peak"] - found["before"] < 300  # of 403 MB, and 201 MB of what was stored
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(tmp_path / "kept")
