"""Pages of other origins in a real browser, against a running server without keys."""

import http.server
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from tests.browser import CHROMIUM, open_page
from tests.serving import RunningServer, running_server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

# Everything a page can send without asking first, and one request that asks.
PAGE = """<!doctype html><title>foreign</title>
<img src="{url}/predictions/plate?prompt=img&seed=1" onerror="done('img')">
<iframe name="inner"></iframe>
<form id="form" method="post" enctype="text/plain" target="inner"
 action="{url}/predictions/plate"><input name="prompt" value="form"></form>
<iframe src="{url}/predictions/plate?prompt=frame"></iframe>
<script>
const over = new Set(); const done = (name) => over.add(name);
form.submit();
const send = (name, path, more) => fetch("{url}" + path, more).then(
  (answer) => done(name + ":" + answer.type), () => done(name));
send("simple", "/predictions/plate", {{method: "POST", body: "simple", mode: "no-cors"}});
send("get", "/predictions/plate?prompt=get", {{mode: "no-cors"}});
send("read", "/v1/models", {{}});
send("json", "/v1/generations", {{method: "POST", body: "{{}}",
  headers: {{"content-type": "application/json"}}}});
navigator.sendBeacon("{url}/predictions/plate", "beacon");
</script>"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("foreign")) as running:
        yield running


@pytest.fixture(scope="module")
def foreign(server: RunningServer) -> Iterator[int]:
    """Serve the page of somebody else; the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = PAGE.format(url=server.url).encode()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        yield pages.server_address[1]
        pages.shutdown()


def drawn(server: RunningServer) -> int:
    """Return how many requests reached the service."""
    text = httpx.get(f"{server.metrics}/metrics").text
    return int(float(next(x for x in text.splitlines() if x.startswith("fake_req")).split()[1]))


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])  # cross-site, and same-site
def test_no_foreign_page_draws_or_reads(server, foreign, tmp_path, name):
    before = drawn(server)
    with open_page(f"http://{name}:{foreign}/", tmp_path) as page:
        page.wait(
            "typeof over === 'object' && ['img', 'read', 'json'].every((x) => over.has(x)) && over.size >= 5"
        )
        answers = set(page.run("[...over]"))
    time.sleep(0.3)  # a beacon tells nobody how it went
    assert answers <= {"img", "read", "json", "simple", "get", "simple:opaque", "get:opaque"}
    assert drawn(server) == before


def test_the_table_is_not_green_because_the_server_is_dead(server):
    before = drawn(server)
    assert httpx.get(f"{server.url}/predictions/plate?prompt=a").status_code == 200
    assert httpx.post(f"{server.url}/predictions/plate", content="a").status_code == 200
    assert drawn(server) == before + 2


def test_a_rebound_name_shows_no_page(server, tmp_path):
    flag = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with open_page(f"http://evil.example:{server.port}/", tmp_path, flag) as page:
        page.wait("document.body && document.body.textContent.includes('loopback names only')")
        page.run("fetch('/v1/generations', {method: 'POST', body: '{}'}).then((a) => "
                 "{document.title = a.status})")  # fmt: skip
        page.wait("document.title === '403'")


def test_the_own_page_is_served(server, tmp_path):
    with open_page(server.url, tmp_path) as page:
        page.wait("document.getElementById('state')?.textContent === 'ready'")
        page.run("fetch('/predictions/plate?prompt=a').then((a) => {document.title = a.status})")
        page.wait("document.title === '405'")
        page.run("fetch('/predictions/plate', {method: 'POST', body: 'a'}).then((a) => "
                 "{document.title = a.status})")  # fmt: skip
        page.wait("document.title === '200'")
