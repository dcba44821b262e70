"""Pictures in a bucket: as in a folder, and what is said where it cannot be used.

Tests :mod:`mezzotint.service.buckets` and :mod:`mezzotint.service.objects`.
"""

import asyncio
import contextlib
import http.server
import threading
from pathlib import Path
from typing import ClassVar

import obstore
import pytest
from obstore.exceptions import BaseError

from mezzotint import errors
from mezzotint.request import GenerationRequest
from mezzotint.service.buckets import open_objects
from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeService
from mezzotint.service.jobs.cluster import OtherCluster
from mezzotint.service.jobs.jobs import Jobs
from mezzotint.service.jobs.results import NoRoom, PictureGone, ResultFiles


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")


def test_objects_are_kept_exchanged_listed_and_removed_in_a_folder_and_in_a_bucket(place):
    objects = open_objects(place, "jobs.results_url")
    assert objects.get("a/b") is None
    objects.put("a/b", b"first")
    objects.put("a/b", b"second")
    objects.put("a/c/d", b"")
    assert (objects.get("a/b"), objects.get("a/c/d")) == (b"second", b"")
    assert objects.names("a/") == ["a/b", "a/c/d"]
    objects.remove("a/b")
    objects.remove("a/b")
    assert (objects.get("a/b"), objects.get("a/c/d")) == (None, b"")
    assert objects.names("a/") == ["a/c/d"]


def test_pictures_of_jobs_are_in_the_bucket_and_damage_is_found(tmp_path, bucket):
    async def main() -> None:
        jobs = Jobs(FakeService(), JobsConfig(folder=str(tmp_path), results_url=bucket))
        await jobs.start()
        try:
            request = GenerationRequest(prompt="a", seed=1)
            job = await jobs.wait((await jobs.submit(request)).id)
            digest = job.images[0].digest
            objects = open_objects(bucket, "jobs.results_url")
            name = f"{digest[:2]}/{digest}"
            assert objects.get(name) == await jobs.image(job, 0)
            objects.put(name, b"damaged")
            with pytest.raises(PictureGone):
                await jobs.image(job, 0)
            assert not (tmp_path / "results").exists()
        finally:
            await jobs.stop()

    asyncio.run(main())


def test_a_bucket_that_is_away_is_no_room_for_a_while_and_no_lost_picture(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    files = ResultFiles(open_objects(bucket, "jobs.results_url"))
    with pytest.raises(NoRoom, match="cannot be reached") as kept:
        files.put(b"picture")
    with pytest.raises(errors.NotReady, match="cannot be reached") as read:
        files.get("ab" * 32)
    for caught in (kept, read):
        assert "127.0.0.1" not in str(caught.value)  # where it is, is no client's business


def test_a_bucket_that_is_away_for_507_milliseconds_is_not_full(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    files = ResultFiles(open_objects("s3://StorageFull/QuotaExceeded", "jobs.results_url"))

    def get(*_):
        raise BaseError(
            "Generic S3 error: Error performing GET http://127.0.0.1:9/StorageFull/x in 507.9ms, "
            "after 3 retries, max_retries: 3, retry_timeout: 20s  - HTTP error: error sending "
            "request\n\nDebug source:"
        )

    monkeypatch.setattr(obstore, "get", get)
    with pytest.raises(errors.NotReady, match="cannot be reached"):
        files.get("ab" * 32)


class SmallBucket(http.server.BaseHTTPRequestHandler):
    """As much of S3 as keeping a picture takes; it answers as MinIO's does when it is full."""

    kept: ClassVar[dict[str, bytes]] = {}
    refusal: ClassVar[tuple[int, str] | None] = None

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refusal is not None:
            self._refuse(*self.refusal)
            return
        self.kept[self.path] = data
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _refuse(self, status: int, code: str) -> None:
        error = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(error)))
        self.end_headers()
        self.wfile.write(error)

    def do_GET(self) -> None:
        if self.refusal is not None and self.refusal[0] == 403:
            self._refuse(*self.refusal)
            return
        data = self.kept.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def small_bucket(bucket, monkeypatch):
    """A server of :class:`SmallBucket`, and a place in it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SmallBucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield bucket
    server.shutdown()
    server.server_close()


def test_a_full_bucket_delays_a_job_and_loses_none(tmp_path, small_bucket, monkeypatch):
    async def main() -> None:
        jobs = Jobs(FakeService(), JobsConfig(folder=str(tmp_path), results_url=small_bucket))
        await jobs.start()
        try:
            monkeypatch.setattr(SmallBucket, "refusal", (507, "XMinioStorageFull"))
            with pytest.raises(NoRoom, match=r"no room left .* bucket is full \(\w+\)"):
                ResultFiles(open_objects(small_bucket, "jobs.results_url")).put(b"picture")
            job = await jobs.submit(GenerationRequest(prompt="a", seed=1))
            await asyncio.sleep(3)
            assert (await jobs.get(job.id)).status in ("queued", "running")
            monkeypatch.setattr(SmallBucket, "refusal", None)
            done = await asyncio.wait_for(jobs.wait(job.id), 60)
            assert done.status == "succeeded"
            assert (await jobs.image(done, 0)).startswith(b"\x89PNG")
        finally:
            await jobs.stop()

    asyncio.run(main())


def test_a_key_that_the_bucket_does_not_know_is_said_at_the_start(
    tmp_path, small_bucket, monkeypatch
):
    monkeypatch.setattr(SmallBucket, "refusal", (403, "InvalidAccessKeyId"))

    async def main() -> None:
        jobs = Jobs(FakeService(), JobsConfig(folder=str(tmp_path), results_url=small_bucket))
        said = r"no picture can be kept in jobs\.results_url .*InvalidAccessKeyId"
        with pytest.raises(errors.NotReady, match=said):
            await jobs.start()

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
def test_a_bucket_that_cannot_be_used_is_said_at_the_start(tmp_path, bucket, monkeypatch, endpoint):
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    url = bucket if endpoint else "s3://nobodys-bucket/prefix"

    async def main() -> None:
        jobs = Jobs(FakeService(), JobsConfig(folder=str(tmp_path), results_url=url))
        with pytest.raises(errors.NotReady, match=r"no picture can be kept in jobs\.results_url"):
            await jobs.start()

    asyncio.run(main())


def test_two_clusters_do_not_share_one_place_for_pictures(tmp_path, bucket):
    async def begin(name: str) -> Jobs:
        jobs = Jobs(FakeService(), JobsConfig(folder=str(tmp_path / name), results_url=bucket))
        await jobs.start()
        return jobs

    async def main() -> None:
        first = await begin("one")
        try:
            with pytest.raises(OtherCluster, match="is another cluster's"):
                await begin("two")
        finally:
            await first.stop()
        await (await begin("one")).stop()

    asyncio.run(main())


def test_a_server_that_keeps_pictures_where_the_others_do_not_is_refused(tmp_path, fresh_postgres):
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for name in ("one", "two"):
                config = JobsConfig(folder=str(tmp_path / name), url=fresh_postgres)
                jobs = Jobs(FakeService(), config)
                if name == "two":
                    with pytest.raises(OtherCluster, match="is not where the other servers keep"):
                        await jobs.start()
                    continue
                await jobs.start()
                stack.push_async_callback(jobs.stop)
                while not jobs._store.others(60.0) and not await _is_known(jobs):
                    await asyncio.sleep(0.02)

    asyncio.run(main())


async def _is_known(jobs: Jobs) -> bool:
    """Whether a server has said that it lives."""
    with jobs._store._engine.connect() as db:
        return bool(db.exec_driver_sql("select count(*) from servers").scalar())


@pytest.mark.parametrize(
    "url",
    ["ftp://x/y", "s3://", "s3://user:secret@bucket/x", "s3://bucket/?x=1"],
)
def test_a_place_that_is_neither_a_folder_nor_a_bucket_is_refused(url):
    with pytest.raises(
        errors.InvalidRequest, match="must be a folder or s3://bucket/prefix"
    ) as said:
        open_objects(url, "jobs.results_url")
    assert "secret" not in str(said.value)
