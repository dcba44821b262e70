"""The doorway: headers, limits, browsers, streams, jobs over HTTP."""

import io
import json
import threading
import time

import pytest
from PIL import Image
from tests.serving import open_door

from mezzotint.errors import InvalidRequest
from mezzotint.serve.config import Limits, ServeConfig
from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeConfig


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    limits = {"steps": 50, "images": 4, "pixels": 512 * 512, "body_bytes": 4096}
    with open_door(tmp_path_factory.mktemp("app"), limits=limits) as opened:
        yield opened


def sse(text):
    """Read server-sent events into (id, kind, data)."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return events


class TestHeaders:
    def test_every_answer_has_id_timing_and_cache(self, door):
        for path in ("/v1/capabilities", "/nothing", "/ping", "/sdapi/v1/options"):
            headers = door.http.get(path).headers
            assert headers["x-request-id"]
            assert headers["x-cache"] == "miss"
            stages = [part.split(";")[0] for part in headers["server-timing"].split(", ")]
            assert stages == ["queue", "encode", "denoise", "decode", "gate", "write"]

    def test_request_id_is_kept_if_it_is_harmless(self, door):
        good = door.http.get("/ping", headers={"x-request-id": "abc-1.2:3"})
        assert good.headers["x-request-id"] == "abc-1.2:3"
        bad = door.http.get("/ping", headers={"x-request-id": "x" * 200})
        assert bad.headers["x-request-id"].startswith("req-")

    def test_cache_hit_is_said_and_no_cache_skips_it(self, door):
        body = {"prompt": "cached", "seed": 1}
        first = door.http.post("/v1/generations", json=body)
        second = door.http.post("/v1/images/generations", json=body)
        third = door.http.post("/v1/generations", json=body, headers={"cache-control": "no-cache"})
        assert [r.headers["x-cache"] for r in (first, second, third)] == ["miss", "hit", "miss"]
        assert third.json()["cache"] == "miss"

    def test_secure_headers_stand_on_every_answer(self, door):
        for path in ("/", "/nothing", "/v1/models"):
            headers = door.http.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "server" not in headers

    def test_page_allows_only_its_own_script(self, door):
        policy = door.http.get("/").headers["content-security-policy"]
        assert "unsafe-inline" not in policy
        assert "script-src 'self';" in policy


class TestBrowsers:
    @pytest.mark.parametrize("host", ["evil.example", "10.0.0.1:8080", "localhost.evil.example"])
    def test_a_rebound_name_is_refused(self, door, host):
        assert door.http.get("/v1/models", headers={"host": host}).status_code == 403

    @pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080"])
    def test_loopback_names_are_served(self, door, host):
        assert door.http.get("/v1/models", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9999"])
    def test_pages_of_other_origins_are_refused(self, door, origin):
        answer = door.http.post("/v1/generations", json={}, headers={"origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers

    def test_own_page_is_served(self, door):
        headers = {"origin": "http://127.0.0.1:8080"}
        assert door.http.post("/v1/generations", json={}, headers=headers).status_code == 200

    def test_listed_origins_get_cors(self):
        with open_door(cors_origins=("http://app.example",)) as door:
            headers = {"origin": "http://app.example", "access-control-request-method": "POST"}
            preflight = door.http.options("/v1/generations", headers=headers)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == "http://app.example"


class TestLimits:
    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"num_inference_steps": 51}, "num_inference_steps"),
            ({"num_images": 5}, "num_images"),
            ({"walk": {"to": "b", "frames": 5}}, "walk.frames"),
            ({"width": 1024, "height": 1024}, "width"),
            ({"width": 256, "height": 256, "upscale": {"factor": 4}}, "width"),
            ({"hires": {"num_inference_steps": 51}}, "hires.num_inference_steps"),
            ({"hires": {"width": 1024, "height": 1024}}, "hires.width"),
            ({"width": 256, "height": 256, "hires": {"scale": 4}}, "hires.scale"),
        ],
    )
    def test_too_much_is_a_413_before_any_work(self, door, body, field):
        before = len(door.service.requests)
        for path in ("/v1/generations", "/v1/jobs", "/v1/plan"):
            answer = door.http.post(path, json=body)
            assert answer.status_code == 413
            assert answer.json()["field"] == field
            assert "at most" in answer.json()["allowed"]
        assert len(door.service.requests) == before

    def test_a_long_body_is_a_413_whether_or_not_it_says_so(self, door):
        body = json.dumps({"prompt": "x" * 5000}).encode()
        said = door.http.post(
            "/v1/generations", content=body, headers={"content-type": "application/json"}
        )
        unsaid = door.http.post(
            "/v1/generations",
            content=iter([body[:100], body[100:]]),
            headers={"content-type": "application/json"},
        )
        assert (said.status_code, unsaid.status_code) == (413, 413)
        assert said.headers["connection"] == "close"

    def test_torchserves_rows_are_counted_together(self, door):
        body = {"instances": ["a"] * 5}
        assert door.http.post("/v1/models/plate:predict", json=body).status_code == 413

    def test_paths_are_names_only_where_others_can_reach_the_server(self, tmp_path):
        (tmp_path / "keys").write_text("a-key-of-16-chars-x\n")
        keys = {"authorization": "Bearer a-key-of-16-chars-x"}
        with open_door(host="0.0.0.0", api_keys=str(tmp_path / "keys")) as door:
            for body in (
                {"model": "/etc/passwd"},
                {"model": "../plate"},
                {"loras": [{"name": "/x/y"}]},
                {"ensemble": [{"model": "a/b"}]},
                {"upscale": {"model": "./m"}},
            ):
                answer = door.http.post("/v1/generations", json=body, headers=keys)
                assert (answer.status_code, answer.json()["title"]) == (403, "model not allowed")
            answer = door.management.post("/models?url=/etc/x.mar", headers=keys)
            assert answer.json()["type"] == "IllegalArgumentException"

    def test_a_dead_line_shorter_than_the_work_is_a_504(self):
        limits = Limits(wait_s=0.1)
        with open_door(fake=FakeConfig(step_s=0.2), limits=limits) as door:
            assert door.http.post("/v1/generations", json={}).status_code == 504

    def test_config_refuses_values_out_of_range(self):
        with pytest.raises(InvalidRequest, match="port"):
            ServeConfig(port=70000)
        with pytest.raises(InvalidRequest, match="belong together"):
            ServeConfig(certificate="x.pem")


class TestNativeAnswers:
    def test_accept_image_answers_the_bytes_with_the_seed(self, door):
        answer = door.http.post(
            "/v1/generations", json={"seed": 5}, headers={"accept": "image/jpeg"}
        )
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["x-seed"] == "5"
        assert answer.content.startswith(b"\xff\xd8")

    @pytest.mark.parametrize(
        "body",
        [{"num_images": 2}, {"output": {"format": "webp"}}, {"walk": {"to": "b", "frames": 3}}],
    )
    def test_accept_image_that_cannot_be_honoured_is_a_422(self, door, body):
        answer = door.http.post("/v1/generations", json=body, headers={"accept": "image/png"})
        assert answer.status_code == 422

    def test_accept_event_stream_answers_events_with_rising_ids(self, door):
        answer = door.http.post(
            "/v1/generations",
            json={"num_images": 2, "seed": 1, "num_inference_steps": 2},
            headers={"accept": "text/event-stream"},
        )
        events = sse(answer.text)
        assert [e[0] for e in events] == list(range(1, len(events) + 1))
        assert [e[1] for e in events] == [
            "queued", "started", "step", "step", "image", "step", "step", "image", "finished",
        ]  # fmt: skip
        assert events[2][2]["preview"]
        assert len(events[-1][2]["images"]) == 2

    def test_upload_takes_fields_and_files(self, door):
        answer = door.http.post(
            "/v1/generations",
            data={"request": '{"seed": 4}', "prompt": "a", "strength": "0.5"},
            files={"image": ("a.png", b"\x89PNG", "image/png")},
        )
        assert answer.status_code == 200
        request = door.service.requests[-1]
        assert (request.seed, request.prompt, request.strength) == (4, "a", 0.5)
        assert request.image.data == b"\x89PNG"

    def test_plan_runs_nothing(self, door):
        before = len(door.service.requests)
        plan = door.http.post("/v1/plan", json={"num_inference_steps": 9}).json()
        assert plan["plan"]["num_inference_steps"] == 9
        assert len(door.service.requests) == before

    def test_capabilities_describe_the_request_and_the_limits(self, door):
        body = door.http.get("/v1/capabilities").json()
        assert body["limits"]["num_inference_steps"] == 50
        assert "euler" in body["schedulers"]
        assert body["request"]["properties"]["strength"] == {
            "type": "number", "minimum": 0, "maximum": 1,
            "description": "Share of the steps that are run on ``image``.",
        }  # fmt: skip

    def test_inspect_reads_a_picture_back(self, door):
        picture = door.http.post(
            "/v1/generations", json={"prompt": "a cat"}, headers={"accept": "image/png"}
        ).content
        found = door.http.post(
            "/v1/inspect", content=picture, headers={"content-type": "image/png"}
        ).json()
        assert found["request"] == {"prompt": "a cat"}


class TestJobs:
    def finished(self, door, id_):
        until = time.monotonic() + 5
        while time.monotonic() < until:
            job = door.http.get(f"/v1/jobs/{id_}").json()
            if job["status"] not in ("queued", "running"):
                return job
            time.sleep(0.01)
        raise AssertionError(job)

    def test_a_job_is_accepted_followed_and_fetched(self, door):
        accepted = door.http.post("/v1/jobs", json={"prompt": "a", "seed": 3, "num_images": 2})
        assert accepted.status_code == 202
        assert {"id", "status", "position", "eta_s"} <= accepted.json().keys()
        id_ = accepted.json()["id"]
        assert accepted.headers["location"] == f"/v1/jobs/{id_}"
        events = sse(door.http.get(f"/v1/jobs/{id_}/events").text)
        ids = [e[0] for e in events]
        assert ids == sorted(set(ids))
        assert [e[1] for e in events if e[1] != "step"] == [
            "queued", "started", "image", "image", "finished",
        ]  # fmt: skip
        job = self.finished(door, id_)
        assert job["status"] == "succeeded"
        assert [i["seed"] for i in job["images"]] == [3, 4]
        image = door.http.get(job["images"][1]["url"])
        direct = door.http.post(
            "/v1/generations", json={"prompt": "a", "seed": 4}, headers={"accept": "image/png"}
        )
        assert image.content == direct.content
        etag = {"if-none-match": image.headers["etag"]}
        assert door.http.get(job["images"][1]["url"], headers=etag).status_code == 304
        assert door.http.get(f"/v1/jobs/{id_}/images/2").status_code == 404

    def test_a_picture_whose_file_is_missing_is_a_410(self, door):
        id_ = door.http.post("/v1/jobs", json={"prompt": "lost", "seed": 3}).json()["id"]
        url = self.finished(door, id_)["images"][0]["url"]
        digest = door.http.get(url).headers["etag"].strip('"')
        door.front.jobs.results.remove(digest)
        answer = door.http.get(url)
        assert answer.status_code == 410
        assert f"picture {digest} is not kept any more" in answer.json()["detail"]

    def test_last_event_id_resumes_after_it(self, door):
        id_ = door.http.post("/v1/jobs", json={"prompt": "resume"}).json()["id"]
        self.finished(door, id_)
        events = sse(door.http.get(f"/v1/jobs/{id_}/events").text)
        seen = events[1][0]
        rest = sse(
            door.http.get(f"/v1/jobs/{id_}/events", headers={"last-event-id": str(seen)}).text
        )
        assert rest == events[2:]
        bad = door.http.get(f"/v1/jobs/{id_}/events", headers={"last-event-id": "x"})
        assert bad.status_code == 400

    def test_idempotency_key_returns_the_same_job_or_a_409(self, door):
        headers = {"idempotency-key": "k-1"}
        first = door.http.post("/v1/jobs", json={"prompt": "once"}, headers=headers)
        again = door.http.post("/v1/jobs", json={"prompt": "once"}, headers=headers)
        other = door.http.post("/v1/jobs", json={"prompt": "other"}, headers=headers)
        assert first.json()["id"] == again.json()["id"]
        assert other.status_code == 409
        waited = door.http.post("/v1/generations", json={"prompt": "once"}, headers=headers)
        assert waited.json()["id"] == first.json()["id"]
        assert waited.json()["images"][0]["b64"]

    def test_jobs_are_listed_newest_first_and_paged(self, door):
        made = [door.http.post("/v1/jobs", json={"seed": k}).json()["id"] for k in range(3)]
        page = door.http.get("/v1/jobs", params={"limit": 2}).json()
        assert [j["id"] for j in page["jobs"]] == made[:0:-1]
        rest = door.http.get("/v1/jobs", params={"limit": 1, "after": page["next"]}).json()
        assert rest["jobs"][0]["id"] == made[0]
        self.finished(door, made[2])
        queued = door.http.get("/v1/jobs", params={"status": "queued"}).json()["jobs"]
        assert made[2] not in [j["id"] for j in queued]
        assert door.http.get("/v1/jobs", params={"status": "nope"}).status_code == 422
        assert door.http.get("/v1/jobs", params={"limit": "0"}).status_code == 422
        assert door.http.get("/v1/jobs", params={"after": "nope"}).status_code == 404

    def test_a_refused_request_never_becomes_a_job(self, door):
        assert door.http.post("/v1/jobs", json={"width": 65}).status_code == 422
        assert door.http.post("/v1/jobs", json={"model": "nope"}).status_code == 404
        assert door.http.get("/v1/jobs/job-nope").status_code == 404

    def test_delete_cancels_a_waiting_and_a_running_job(self, tmp_path):
        config = JobsConfig(folder=str(tmp_path), max_running=1)
        with open_door(tmp_path, fake=FakeConfig(step_s=0.02), jobs=config) as door:
            long = {"prompt": "long", "num_inference_steps": 150}
            running, waiting = (
                door.http.post("/v1/jobs", json={**long, "seed": k}).json()["id"] for k in range(2)
            )
            while door.http.get(f"/v1/jobs/{running}").json()["progress"]["step"] == 0:
                time.sleep(0.01)
            assert door.http.get(f"/v1/jobs/{waiting}").json()["status"] == "queued"
            assert door.http.delete(f"/v1/jobs/{waiting}").json()["status"] == "cancelled"
            assert door.http.delete(f"/v1/jobs/{running}").json()["status"] == "cancelled"
            events = sse(door.http.get(f"/v1/jobs/{running}/events").text)
            assert [e[1] for e in events][-1] == "cancelled"
            assert door.http.delete(f"/v1/jobs/{running}").json()["status"] == "cancelled"

    def test_a_failed_job_keeps_its_error(self, tmp_path):
        fake = FakeConfig(failures={"bad": "WorkFailed"})
        with open_door(tmp_path, fake=fake) as door:
            id_ = door.http.post("/v1/jobs", json={"prompt": "bad"}).json()["id"]
            job = self.finished(door, id_)
            assert job["status"] == "failed"
            assert job["error"]["detail"] == "the fake was told to fail"
            kinds = [e[1] for e in sse(door.http.get(f"/v1/jobs/{id_}/events").text)]
            assert kinds[-1] == "failed"

    def test_a_full_queue_is_a_429(self, tmp_path):
        config = JobsConfig(folder=str(tmp_path), max_running=1, max_waiting=1)
        with open_door(tmp_path, fake=FakeConfig(step_s=0.05), jobs=config) as door:
            answers = [
                door.http.post("/v1/jobs", json={"seed": k, "num_inference_steps": 40})
                for k in range(4)
            ]
            full = [a for a in answers if a.status_code == 429]
            assert full
            assert int(full[0].headers["retry-after"]) >= 1


class TestDrain:
    def test_draining_refuses_new_work_and_is_not_ready(self):
        with open_door() as door:
            assert door.http.get("/health/ready").status_code == 200
            door.front.draining = True
            assert door.http.get("/health/ready").status_code == 503
            assert door.http.get("/v2/health/ready").status_code == 503
            assert door.http.get("/ping").json() == {"status": "Unhealthy"}
            answer = door.http.post("/v1/generations", json={})
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert door.http.get("/health/live").status_code == 200


def test_concurrency_limit_answers_429(tmp_path):
    limits = {"concurrency": 1}
    with open_door(fake=FakeConfig(step_s=0.1), limits=limits) as door:
        codes = []
        threads = [
            threading.Thread(
                target=lambda k=k: codes.append(
                    door.http.post("/v1/generations", json={"seed": k}).status_code
                )
            )
            for k in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes) == [200, 429]


def test_predictions_share_one_look_at_the_models_and_a_removed_one_is_gone_at_once():
    with open_door() as door:
        looks, models = [], door.service.models

        async def counted():
            looks.append(1)
            return await models()

        door.service.models = counted
        for seed in range(4):
            body = {"prompt": "x", "seed": seed}
            assert door.http.post("/predictions/plate", json=body).status_code == 200
        assert len(looks) == 1
        assert door.http.post("/predictions/nobody", json={}).status_code == 404
        assert door.http.post("/predictions/plate-gan", json={}).status_code == 200
        assert door.management.delete("/models/plate-gan").status_code == 200
        assert door.http.post("/predictions/plate-gan", json={}).status_code == 404


@pytest.mark.parametrize("format_", ["png", "webp"])
def test_any_picture_will_do_and_comes_in_the_format_of_the_request(format_):
    with open_door() as door:
        body = {"prompt": "x", "output": {"format": format_}}
        answer = door.http.post("/v1/generations", json=body, headers={"accept": "image/*"})
        assert answer.headers["content-type"] == f"image/{format_}"
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert picture.format == format_.upper()
