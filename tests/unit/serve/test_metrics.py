"""What goes through the doors is counted by what happened, not by how it was put."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving import open_door

METRICS = "metrics-key-of-16-char"
ALL = "manage-key-of-16-chars"


def samples(door, headers=None):
    text = door.metrics.get("/metrics", headers=headers or {}).text
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k != "hostname"))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys").write_text(f"{ALL} ops generate,manage\n{METRICS} met metrics\n")
    with open_door(folder, api_keys=str(folder / "keys")) as opened:
        yield opened


class TestRefusedKeys:
    def failures(self, door, which):
        name = ("mezzotint_auth_failures_total", (("door", which),))
        return samples(door, bearer(METRICS)).get(name, 0)

    @pytest.mark.parametrize(
        ("listener", "path", "which", "status"),
        [
            ("http", "/v1/generations", "native", 401),
            ("http", "/sdapi/v1/txt2img", "a1111", 401),
            ("http", "/predictions/plate", "torchserve", 400),
            ("management", "/models", "torchserve", 400),
        ],
    )
    @pytest.mark.parametrize("headers", [{}, bearer("wrong-key-of-16-chars")])
    def test_each_counts_whatever_its_status(self, locked, listener, path, which, status, headers):
        before = self.failures(locked, which)
        answer = getattr(locked, listener).post(path, json={}, headers=headers)
        assert answer.status_code == status
        assert self.failures(locked, which) == before + 1

    def test_the_metrics_listener_counts_its_own(self, locked):
        before = self.failures(locked, "torchserve")
        assert locked.metrics.get("/metrics").status_code == 400
        assert self.failures(locked, "torchserve") == before + 1

    @pytest.mark.parametrize(
        ("path", "content", "status"),
        [("/models", b"{broken", 400), ("/models", b"{}", 400), ("/nothing", b"", 404)],
    )
    def test_other_refusals_do_not(self, locked, path, content, status):
        before = self.failures(locked, "torchserve")
        headers = {**bearer(ALL), "content-type": "application/json"}
        answer = locked.management.post(path, content=content, headers=headers)
        assert answer.status_code == status
        assert self.failures(locked, "torchserve") == before

    def test_a_key_without_the_scope_is_no_wrong_key(self, locked):
        before = self.failures(locked, "torchserve")
        assert locked.metrics.get("/metrics", headers=bearer(ALL)).status_code == 403
        assert self.failures(locked, "torchserve") == before


def test_predictions_of_handler_code_are_inferences():
    with open_door() as door:
        door.management.post("/models", params={"url": "x.mar", "initial_workers": 1})
        for word, status in (("fine", 200), ("fine", 200), ("died", 507)):
            answer = door.http.post("/predictions/x", content=word.encode())
            assert answer.status_code == status
        body = {"instances": [{"a": 1}, {"a": 2}]}
        assert door.http.post("/v1/models/x:predict", json=body).status_code == 200
        assert door.http.post("/predictions/plate", json={"prompt": "x"}).status_code == 200
        found = samples(door)
    labels = (("model_name", "x"), ("model_version", "default"))
    assert found["ts_inference_requests_total", labels] == 3
    assert found["ts_inference_latency_microseconds_total", labels] > 0
    # nobody tells how long a call of handler code waited, so nothing is said of it
    assert ("ts_queue_latency_microseconds_total", labels) not in found
    drawn = (("model_name", "plate"), ("model_version", "default"))
    assert found["ts_inference_requests_total", drawn] == 1
    assert found["ts_queue_latency_microseconds_total", drawn] >= 0
