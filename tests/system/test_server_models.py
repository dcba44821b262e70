"""The real server, started as people who come from TorchServe start it."""

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests import tiny

from mezzotint.models.families.gan import GanConfig, build_generator, write_gan


@pytest.fixture
def store(tmp_path):
    """A model store with one tiny model, and one archive of handler code."""
    config = GanConfig(latent_size=4, image_size=16, channels=(8, 4))
    with tiny.seeded(5):
        write_gan(tmp_path / "store" / "tiny-gan", config, build_generator(config).state_dict())
    model = {"modelName": "shout", "modelVersion": "2.0", "handler": "h.py"}
    with zipfile.ZipFile(tmp_path / "store" / "code.mar", "w") as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        packed.writestr("h.py", "def handle(data, context):\n    return data\n")
    return tmp_path / "store"


@pytest.mark.slow
def test_models_named_with_paths_are_served(tmp_path, store):
    command = [
        str(Path(sys.executable).with_name("mezzotint")), "serve", "--port", "0",
        "--management-port", "0", "--metrics-port", "0", "--model-store", str(store),
        "--models", f"tiny={store}/tiny-gan,other=tiny-gan,code.mar", "--device", "cpu",
    ]  # fmt: skip
    environment = {
        **os.environ, "MEZZOTINT_HOME": str(tmp_path / "home"),
        "MEZZOTINT_ENGINE__CALIBRATE_S": "0", "OMP_NUM_THREADS": "1",
        "MEZZOTINT_MODELS__BACKEND": "torch",
    }  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        lines: dict[str, str] = {}
        for line in process.stdout:
            name, _, rest = line.strip().partition(" ")
            lines[name] = rest.strip()
            if name == "models":
                break
        told = (tmp_path / "log").read_text()
        assert "models" in lines, f"ended with {process.wait()}: {told}"
        assert "model.code_not_allowed" in told
        generation, management = (lines[n].split()[0] for n in ("generation", "management"))
        until = time.monotonic() + 20
        while httpx.get(f"{generation}/health/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
        listed = {m["modelName"] for m in httpx.get(f"{management}/models").json()["models"]}
        assert {"tiny", "other", "shout"} <= listed
        made = httpx.post(f"{generation}/predictions/tiny", json={"seed": 3})
        assert made.status_code == 200, made.text
        assert Image.open(io.BytesIO(made.content)).size == (16, 16)
        assert httpx.post(f"{generation}/predictions/shout", content=b"x").status_code == 403
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()
