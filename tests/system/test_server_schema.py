"""The OpenAPI document against the server: schemathesis looks for what neither allows."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.serving import RunningServer, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    limits = {"images": 4, "pixels": 128 * 128, "steps": 50}
    with running_server(tmp_path_factory.mktemp("schema"), serve={"limits": limits}) as running:
        yield running


def test_document_names_every_generation_endpoint(server):
    from mezzotint.serve.app import endpoints

    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    for endpoint in endpoints("generation"):
        path = endpoint.path.replace(":path}", "}")
        assert endpoint.method.lower() in paths[path], endpoint.path


@pytest.mark.slow
def test_schemathesis_finds_no_server_error_and_no_violation(server, tmp_path):
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed")
    command = [
        str(program), "run", f"{server.url}/openapi.json", "--url", server.url,
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance,negative_data_rejection",
        "--max-examples", "30", "--seed", "7", "--phases", "examples,coverage,fuzzing",
        "--request-timeout", "30", "--exclude-path-regex", "events$|explain|explanations|versions/", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, cwd=tmp_path, env={**os.environ}
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    health = httpx.get(f"{server.url}/health/ready").json()
    assert (health["ready"], health["restarts"]) == (True, 0)
