"""A bucket for tests of what is kept in one."""

import secrets
from collections.abc import Iterator

import pytest
from tests.bucket import Bucket


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[Bucket]:
    """An S3 server with a bucket."""
    pytest.importorskip("obstore")
    with Bucket() as server:
        yield server


@pytest.fixture
def bucket(bucket_server: Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in the bucket with nothing in it, as ``jobs.results_url`` takes it."""
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{Bucket.url}/{secrets.token_hex(4)}"
