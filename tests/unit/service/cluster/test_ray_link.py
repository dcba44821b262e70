"""The link to Ray: a cluster's token is shown before anything is asked of its head.

Tests :mod:`mezzotint.service.cluster.ray_link`.
"""

import os

import pytest

from mezzotint.service.cluster import ray_link


@pytest.mark.parametrize(
    ("name", "value", "file", "mode"),
    [
        ("OTHER", "", "", None),
        ("OTHER", "", ".ray/auth_token", "token"),
        ("RAY_AUTH_TOKEN", "secret", "", "token"),
        ("RAY_AUTH_TOKEN_PATH", "{home}/own", "own", "token"),
        ("RAY_AUTH_TOKEN_PATH", "{home}/missing", ".ray/auth_token", None),
        ("RAY_AUTH_MODE", "disabled", ".ray/auth_token", "disabled"),
    ],
)
def test_a_token_that_is_there_is_shown_unless_the_environment_says_otherwise(
    tmp_path, monkeypatch, name, value, file, mode
):
    pytest.importorskip("ray")
    for known in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(known, "x")
        monkeypatch.delenv(known)  # whatever is set meanwhile is gone after the test
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, value.format(home=tmp_path))
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("secret")
    ray_link.ray_module()
    assert os.environ.get("RAY_AUTH_MODE") == mode
