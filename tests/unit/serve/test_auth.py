"""Keys: the file, the callers, the limits."""

import hashlib
import io
import json
import os

import pytest
from tests.serving import open_door

from mezzotint.errors import InvalidRequest
from mezzotint.observe import log
from mezzotint.observe.config import LogConfig
from mezzotint.serve.auth import Caller, KeyRing, Meter, new_key, presented_key, read_keys
from mezzotint.serve.config import Limits, ServeConfig, is_loopback
from mezzotint.serve.errors import Forbidden, TooManyRequests, Unauthorized

LIMITS = Limits()


def test_new_key_opens_the_door_its_line_describes():
    key, line = new_key("alice", ["generate"])
    callers = read_keys(line, LIMITS)
    caller = callers[hashlib.sha256(key.encode()).hexdigest()]
    assert (caller.name, caller.scopes) == ("alice", {"generate"})
    assert key not in line
    assert new_key()[0] != new_key()[0]
    assert len(key) >= 40


def test_a_line_with_the_key_alone_may_do_everything():
    (caller,) = read_keys("a-key-of-16-chars-and-more", LIMITS).values()
    assert caller.scopes == {"generate", "manage", "metrics"}


def test_names_scopes_and_limits_are_read_and_comments_skipped():
    text = "# keys\n\na-key-of-16-chars-x bob generate,metrics rate=60 concurrency=2 # his\n"
    (caller,) = read_keys(text, LIMITS).values()
    assert caller == Caller(
        name="bob",
        scopes=frozenset({"generate", "metrics"}),
        requests_per_minute=60,
        concurrency=2,
        priority=0,
    )


@pytest.mark.parametrize(
    ("line", "most"),
    [
        ("", 100),
        (" generate", 0),
        (" manage", 100),
        (" generate priority=7", 7),
        (" priority=7", 7),
    ],
)
def test_who_may_go_before_others_is_in_the_keys_file(line, most):
    (caller,) = read_keys(f"a-key-of-16-chars-x{line}", LIMITS).values()
    assert caller.priority == most


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("short", "line 1: a key needs at least 16"),
        ("sha256:12", "line 1: sha256: must be followed by 64 hex"),
        ("a-key-of-16-chars-x bob fly", "'fly' is no scope"),
        ("a-key-of-16-chars-x rate=fast", "rate must be a whole number"),
        ("a-key-of-16-chars-x colour=1", "unknown option 'colour'"),
        ("", "holds no key"),
    ],
)
def test_bad_lines_are_refused_without_repeating_keys(line, message):
    with pytest.raises(InvalidRequest, match=message) as error:
        read_keys(line, LIMITS)
    assert "a-key-of-16-chars-x" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "scopes"), [("two words", ["generate"]), ("x", ["fly"]), ("generate", ["generate"])]
)
def test_new_key_refuses_names_and_scopes_that_a_line_could_not_hold(name, scopes):
    with pytest.raises(InvalidRequest):
        new_key(name, scopes)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer k1"}, "k1"),
        ({"authorization": "bearer  k1 "}, "k1"),
        ({"authorization": "Basic dXNlcjprMQ=="}, "k1"),
        ({"authorization": "Basic %%%"}, None),
        ({"x-api-key": "k1"}, "k1"),
        ({}, None),
    ],
)
def test_key_is_found_where_clients_put_it(headers, expected):
    assert presented_key(headers) == expected


def test_key_ring_reads_a_changed_file_again_and_survives_a_broken_one(tmp_path, monkeypatch):
    monkeypatch.setattr("mezzotint.serve.auth._RELOAD_S", 0.0)
    path = tmp_path / "keys"
    path.write_text("first-key-of-16-chars\n")
    ring = KeyRing(path, LIMITS)
    good = {"authorization": "Bearer first-key-of-16-chars"}
    ring.identify(good, "")
    path.write_text("broken\n")
    os.utime(path, (1, 1))
    ring.identify(good, "")
    path.write_text("second-key-of-16-chars\n")
    os.utime(path, (2, 2))
    with pytest.raises(Unauthorized):
        ring.identify(good, "")


def test_key_ring_without_a_file_names_callers_by_address():
    caller = KeyRing(None, Limits(concurrency=3)).identify({}, "127.0.0.1")
    assert (caller.name, caller.concurrency) == ("address:127.0.0.1", 3)


def test_caller_without_the_scope_is_refused():
    with pytest.raises(Forbidden, match="may not manage"):
        Caller(name="a", scopes=frozenset({"generate"})).require("manage")


def test_meter_refills_a_bucket_over_a_minute():
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    caller = Caller(name="a", requests_per_minute=2)
    meter.count(caller)
    meter.count(caller)
    with pytest.raises(TooManyRequests) as error:
        meter.count(caller)
    assert error.value.retry_after_s == pytest.approx(30.0)
    now[0] = 30.0
    meter.count(caller)


def test_meter_bounds_generations_at_once():
    meter = Meter()
    caller = Caller(name="a", concurrency=1)
    meter.enter(caller)
    with pytest.raises(TooManyRequests):
        meter.enter(caller)
    meter.leave(caller)
    meter.enter(caller)


def test_meter_forgets_the_longest_silent_callers():
    meter = Meter(most=10)
    for number in range(50):
        meter.count(Caller(name=str(number), requests_per_minute=5))
    assert len(meter._buckets) <= 10


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True),
        ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),
        ("example.com", False),
    ],
)  # fmt: skip
def test_loopback_is_what_only_this_machine_reaches(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize("field", ["host", "management_host", "metrics_host"])
def test_each_listener_beyond_loopback_needs_keys(field):
    with pytest.raises(InvalidRequest, match="mezzotint keys new"):
        ServeConfig(**{field: "0.0.0.0"})
    assert ServeConfig(**{field: "0.0.0.0"}, api_keys="keys.txt").api_keys == "keys.txt"


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    lines = [
        "generate-key-16-chars gen generate",
        "manage-key-of-16-chars man manage",
        "metrics-key-of-16-char met metrics",
        "slow-key-of-16-chars-x slow generate rate=2",
    ]
    (folder / "keys").write_text("\n".join(lines))
    with open_door(folder, api_keys=str(folder / "keys")) as opened:
        yield opened


class TestDoorWithKeys:
    def bearer(self, key):
        return {"authorization": f"Bearer {key}"}

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/v1/generations", 401), ("/v1/images/generations", 401), ("/sdapi/v1/txt2img", 401),
            ("/hf/plate", 401), ("/predictions/plate", 400),
        ],
    )  # fmt: skip
    def test_no_key_is_a_401_and_a_400_at_torchserves_door(self, door, path, status):
        for headers in ({}, self.bearer("wrong-key-of-16-chars")):
            answer = door.http.post(path, json={}, headers=headers)
            assert answer.status_code == status
        if status == 400:
            assert answer.json()["type"] == "InvalidKeyException"
        else:
            assert "bearer" in answer.headers["www-authenticate"].lower()

    def test_scopes_open_their_own_listener_only(self, door):
        gen, man, met = (
            self.bearer(k)
            for k in ("generate-key-16-chars", "manage-key-of-16-chars", "metrics-key-of-16-char")
        )
        assert door.http.post("/v1/generations", json={}, headers=gen).status_code == 200
        assert door.http.post("/v1/generations", json={}, headers=man).status_code == 403
        assert door.management.get("/models", headers=man).status_code == 200
        assert door.management.get("/models", headers=gen).status_code == 403
        assert door.management.get("/models").status_code == 400
        assert door.metrics.get("/metrics", headers=met).status_code == 200
        assert door.metrics.get("/metrics", headers=gen).status_code == 403

    @pytest.mark.parametrize(
        "path", ["/", "/ping", "/health/live", "/health/ready", "/v2/health/live"]
    )
    def test_health_and_page_need_no_key(self, door, path):
        assert door.http.get(path).status_code == 200

    def test_rate_limit_answers_429_with_retry_after(self, door):
        headers = self.bearer("slow-key-of-16-chars-x")
        codes = [door.http.get("/v1/models", headers=headers).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        answer = door.http.get("/v1/models", headers=headers)
        assert 1 <= int(answer.headers["retry-after"]) <= 30

    def test_nobody_goes_before_everybody_unless_the_operator_says_so(self, door):
        headers = self.bearer("generate-key-16-chars")
        native = {"prompt": "x", "priority": 1}
        for path, body in (
            ("/v1/generations", native),
            ("/v1/jobs", native),
            ("/v1/images/generations", {"model": "plate", **native}),
            ("/predictions/plate", native),
        ):
            answer = door.http.post(path, json=body, headers=headers)
            assert answer.status_code == 403, path
            assert "priority of 0 at most, got 1" in answer.text
        lower = door.http.post("/v1/generations", json={**native, "priority": -1}, headers=headers)
        assert lower.status_code == 200

    def test_jobs_of_others_do_not_exist_but_a_manager_sees_none_without_generate(self, door):
        mine = self.bearer("generate-key-16-chars")
        job = door.http.post("/v1/jobs", json={"prompt": "x"}, headers=mine).json()["id"]
        assert door.http.get(f"/v1/jobs/{job}", headers=mine).status_code == 200
        other = self.bearer("slow-key-of-16-chars-x")
        door.front.meter._buckets.clear()
        assert door.http.get(f"/v1/jobs/{job}", headers=other).status_code == 404
        assert door.http.delete(f"/v1/jobs/{job}", headers=other).status_code == 404


class TestChangedKeysFile:
    @pytest.fixture
    def told(self):
        stream = io.StringIO()
        log.configure(LogConfig(level="info", format="json"), stream)
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
        log.configure(LogConfig(), io.StringIO())

    @pytest.fixture
    def ring(self, tmp_path, monkeypatch):
        monkeypatch.setattr("mezzotint.serve.auth._RELOAD_S", 0.0)
        (tmp_path / "keys").write_text("first-key-of-16-chars\n")
        return KeyRing(tmp_path / "keys", LIMITS)

    def ask(self, ring, times=3):
        for _ in range(times):
            ring.identify({"authorization": "Bearer first-key-of-16-chars"}, "")

    def test_a_broken_file_is_told_once_for_each_change_and_its_keys_never(
        self, ring, told, tmp_path
    ):
        self.ask(ring)
        assert told() == []
        for moment, text in enumerate(("secret-key-of-16-chars bob fly", "short"), start=1):
            (tmp_path / "keys").write_text(text)
            os.utime(tmp_path / "keys", (moment, moment))
            self.ask(ring)
        lines = told()
        assert [(t["level"], t["event"]) for t in lines] == [("warning", "keys.unchanged")] * 2
        assert [t["file"] for t in lines] == [str(tmp_path / "keys")] * 2
        assert "'fly' is no scope" in lines[0]["error"]
        assert "secret-key" not in str(lines)

    def test_a_file_that_is_gone_is_told_once_and_read_when_it_is_back(self, ring, told, tmp_path):
        (tmp_path / "keys").unlink()
        self.ask(ring)
        assert [t["event"] for t in told()] == ["keys.unchanged"]
        (tmp_path / "keys").write_text("first-key-of-16-chars\nsecond-key-of-16-chars\n")
        self.ask(ring)
        assert [t["event"] for t in told()] == ["keys.unchanged", "keys.read_again"]
        assert told()[-1]["keys"] == 2
