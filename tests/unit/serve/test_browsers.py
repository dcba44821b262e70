"""Which requests of web pages are served: one table for every listener and method."""

import pytest
from tests.serving import open_door

OWN = "127.0.0.1:8080"
APP = "https://app.example"

# name, headers, whether it is served
CASES = [
    ("a plain client", {}, True),
    ("a plain client that names an origin", {"origin": "http://evil.example"}, False),
    ("the page itself", {"sec-fetch-site": "same-origin"}, True),
    ("the page itself, posting", {"sec-fetch-site": "same-origin", "origin": f"http://{OWN}"}, True),
    ("a typed address", {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, True),
    ("an img tag elsewhere", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors",
                              "sec-fetch-dest": "image"}, False),
    ("an img tag of another port", {"sec-fetch-site": "same-site", "sec-fetch-dest": "image"},
     False),
    ("a form elsewhere", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate",
                          "origin": "http://evil.example"}, False),
    ("a fetch of another port", {"sec-fetch-site": "same-site",
                                 "origin": "http://127.0.0.1:3000"}, False),
    ("a sandboxed frame", {"sec-fetch-site": "cross-site", "origin": "null"}, False),
    ("a page that says it is ours", {"sec-fetch-site": "cross-site", "origin": f"http://{OWN}"},
     False),
    ("a value nobody knows", {"sec-fetch-site": "any-site"}, False),
    ("an empty value", {"sec-fetch-site": ""}, False),
    ("a listed origin", {"sec-fetch-site": "cross-site", "origin": APP}, True),
    ("a listed origin without its name", {"sec-fetch-site": "cross-site", "referer": APP}, False),
    ("a listed origin in an old browser", {"origin": APP}, True),
    ("a rebound name", {"host": "evil.example:8080"}, False),
    ("a rebound name, same origin", {"host": "evil.example:8080", "sec-fetch-site": "same-origin",
                                     "origin": "http://evil.example:8080"}, False),
    ("a rebound address", {"host": "192.168.1.7:8080"}, False),
    ("a name that begins as ours", {"host": "localhost.evil.example"}, False),
    ("user information", {"host": "127.0.0.1@evil.example"}, False),
    ("no name at all", {"host": ""}, False),
    ("a zero address", {"host": "0.0.0.0:8080"}, False),
    ("localhost", {"host": "localhost:8080"}, True),
    ("IPv6", {"host": "[::1]:8080"}, True),
    ("a listed name", {"host": "pictures.example"}, True),
    ("a listed name in capitals", {"host": "Pictures.Example:443"}, True),
]  # fmt: skip

DOORS = [
    ("generation", "GET", "/predictions/plate?prompt=a&seed=1"),
    ("generation", "POST", "/predictions/plate"),
    ("generation", "DELETE", "/predictions/plate"),
    ("generation", "POST", "/v1/generations"),
    ("generation", "GET", "/v1/capabilities"),
    ("generation", "GET", "/health/live"),
    ("generation", "GET", "/favicon.svg"),
    ("generation", "OPTIONS", "/"),
    ("generation", "POST", "/sdapi/v1/txt2img"),
    ("generation", "GET", "/nothing"),
    ("management", "GET", "/models"),
    ("management", "PUT", "/models/plate"),
    ("metrics", "GET", "/metrics"),
]


@pytest.fixture(scope="module")
def door():
    with open_door(cors_origins=(APP,), trusted_hosts=("pictures.example",)) as opened:
        yield opened


@pytest.mark.parametrize(("listener", "method", "path"), DOORS)
@pytest.mark.parametrize(
    ("headers", "is_served"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_only_pages_of_this_server_and_listed_ones_are_served(
    door, listener, method, path, headers, is_served
):
    before = len(door.service.requests)
    body = {} if method in ("GET", "OPTIONS") else {"json": {"prompt": "a", "seed": 1}}
    answer = door.clients[listener].request(method, path, headers=headers, **body)
    if is_served:
        assert answer.status_code != 403
    else:
        assert answer.status_code == 403
        assert len(door.service.requests) == before
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_no_browser_draws_by_get(door, site):
    before = len(door.service.requests)
    for path in ("/predictions/plate?prompt=a", "/predictions/plate/1.0?prompt=a"):
        answer = door.http.get(path, headers={"sec-fetch-site": site})
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST, PUT"
    assert len(door.service.requests) == before


def test_a_plain_client_draws_by_get_as_from_torchserve(door):
    assert door.http.get("/predictions/plate?prompt=a").status_code == 200


def test_nobody_draws_by_head(door):
    before = len(door.service.requests)
    assert door.http.head("/predictions/plate?prompt=a").status_code == 405
    assert len(door.service.requests) == before


def test_a_link_from_elsewhere_opens_the_page_and_nothing_else(door):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert door.http.get("/", headers={**link, "sec-fetch-dest": "document"}).status_code == 200
    for dest in ("iframe", "object", ""):
        assert door.http.get("/", headers={**link, "sec-fetch-dest": dest}).status_code == 403
    opened = {**link, "sec-fetch-dest": "document"}
    assert door.http.get("/v1/models", headers=opened).status_code == 403


def test_each_loopback_listener_checks_names_whatever_the_others_listen_on(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-sixteen-characters ops manage,metrics\n")
    with open_door(host="0.0.0.0", management_host="127.0.0.1", api_keys=str(keys)) as door:
        rebound = {"host": "evil.example", "x-api-key": "a-key-of-sixteen-characters"}
        assert door.management.get("/models", headers=rebound).status_code == 403
        assert door.http.get("/health/live", headers=rebound).status_code == 200


class TestRegistration:
    SOURCES = ("/etc/models/a.safetensors", "../a.mar", "someone/model", "~/a.mzt", "file:///a.mar")

    @pytest.mark.parametrize("source", SOURCES)
    def test_a_path_or_hub_id_is_refused_and_the_message_says_how(self, source):
        with open_door() as door:
            answer = door.management.post("/models", params={"url": source})
            is_name = source == "../a.mar"  # of an archive in the store, and none there has it
            assert answer.status_code == (404 if is_name else 403)
            if not is_name:
                assert "serve.register_paths" in answer.json()["message"]
                assert "--model-store" in answer.json()["message"]
            assert len(door.management.get("/models").json()["models"]) == 2

    def test_a_name_of_the_model_store_is_registered(self):
        with open_door() as door:
            assert door.management.post("/models", params={"url": "new.mzt"}).status_code == 200

    def test_the_operator_may_allow_paths(self):
        with open_door(register_paths=True) as door:
            answer = door.management.post("/models", params={"url": "/models/new.mzt"})
            assert answer.status_code == 200
