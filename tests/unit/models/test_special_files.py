"""What is no file is refused at once, wherever a model or an adapter would read it.

Of mezzotint.models.reading.
"""

import os
import shutil
import socket
import threading
from pathlib import Path

import pytest
from tests import tiny

from mezzotint.errors import WeightsError
from mezzotint.models.adapters.lora import read_lora
from mezzotint.models.families.gan import GanConfig, build_generator, write_gan
from mezzotint.models.store.loading import load_path

AT_ONCE_S = 20.0
"""What a refusal may take on a loaded machine; one that waits takes for ever."""


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # the address of a socket is short
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def device(path):
    path.symlink_to("/dev/zero")


def refusal(read, *given):
    """Return what a reader raises, and fail if it waits."""
    raised = []

    def body():
        try:
            read(*given)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(AT_ONCE_S)
    assert not thread.is_alive(), "it waits for bytes that never come, or never end"
    (error,) = raised or [None]
    return error


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of each layout and a LoRA, whole."""
    root = tmp_path_factory.mktemp("models")
    tiny.copy_of("sd1", root / "sd")
    config = GanConfig(latent_size=4, image_size=8, channels=(4,))
    write_gan(root / "gan", config, build_generator(config).state_dict())
    (root / "files").mkdir()
    for name in ("ink.safetensors", "whole.safetensors"):
        shutil.copy(root / "gan" / "generator.safetensors", root / "files" / name)
    return root


@pytest.mark.parametrize(
    ("make", "told"), [(pipe, "a named pipe"), (unix_socket, "a socket"), (device, "a device")]
)
@pytest.mark.parametrize(
    ("model", "name", "read"),
    [
        ("sd", "unet/diffusion_pytorch_model.safetensors", load_path),
        ("sd", "unet/config.json", load_path),
        ("sd", "tokenizer/tokenizer.json", load_path),
        ("sd", "model_index.json", load_path),
        ("gan", "generator.safetensors", load_path),
        ("gan", "config.json", load_path),
        ("files", "whole.safetensors", lambda folder: load_path(folder / "whole.safetensors")),
        ("files", "ink.safetensors", lambda folder: read_lora(folder / "ink.safetensors")),
    ],
)
def test_a_pipe_a_socket_or_a_device_in_place_of_a_file_is_refused_at_once(
    models, tmp_path, model, name, read, make, told
):
    folder = Path(shutil.copytree(models / model, tmp_path / model))
    (folder / name).unlink()
    make(folder / name)
    error = refusal(read, folder)
    assert isinstance(error, WeightsError), error
    assert f"{name} is {told}" in str(error)
