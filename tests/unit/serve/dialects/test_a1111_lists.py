"""What A1111's clients ask for beside pictures, over HTTP."""

import base64
import io
import os

import pytest
from PIL import Image
from tests.serving import open_door


@pytest.fixture(scope="module")
def http():
    with open_door() as opened:
        yield opened.http


def test_the_version_of_controlnet_is_told_as_its_client_reads_it(http):
    assert http.get("/controlnet/version").json() == {"version": 3}


def test_the_memory_of_the_machine_is_told(http):
    ram = http.get("/sdapi/v1/memory").json()["ram"]
    assert ram["total"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < ram["free"] <= ram["total"]
    assert ram["free"] + ram["used"] == ram["total"]


def test_an_upscaler_that_there_is_not_is_named_as_the_caller_wrote_it(http):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    body = {"image": base64.b64encode(file.getvalue()).decode(), "upscaler_1": "R-ESRGAN 9x"}
    answer = http.post("/sdapi/v1/extra-single-image", json=body)
    assert answer.status_code == 422
    [place] = answer.json()["detail"]
    assert place["loc"] == ["body", "upscaler_1"]
    assert "'R-ESRGAN 9x'" in place["msg"]
    assert "Lanczos" in place["msg"]
