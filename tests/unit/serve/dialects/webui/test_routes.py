"""The routes of :mod:`mezzotint.serve.dialects.a1111_lists`, as A1111's own API lists them."""

import pytest
from tests.serving import open_door

READ = (
    "samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-models", "sd-vae",
    "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "embeddings", "loras",
    "scripts", "script-info", "extensions", "memory", "cmd-flags", "options", "progress",
)  # fmt: skip
DONE = (
    "refresh-checkpoints", "refresh-vae", "refresh-embeddings", "refresh-loras", "interrupt",
    "skip", "unload-checkpoint", "reload-checkpoint",
)  # fmt: skip
REFUSED = (
    "create/embedding", "create/hypernetwork", "train/embedding", "train/hypernetwork",
    "server-kill", "server-restart", "server-stop", "interrogate",
)  # fmt: skip


@pytest.fixture(scope="module")
def http():
    with open_door() as door:
        yield door.http


@pytest.mark.parametrize("path", READ)
def test_a_list_is_answered(http, path):
    assert http.get(f"/sdapi/v1/{path}").status_code == 200


@pytest.mark.parametrize("path", DONE)
def test_a_command_is_taken(http, path):
    assert http.post(f"/sdapi/v1/{path}").status_code == 200


@pytest.mark.parametrize("path", REFUSED)
def test_what_is_not_offered_is_refused_by_its_name(http, path):
    answer = http.post(f"/sdapi/v1/{path}", json={})
    assert answer.status_code == (404 if path == "interrogate" else 501)  # as A1111 has it
    assert path in answer.json()["detail"]
