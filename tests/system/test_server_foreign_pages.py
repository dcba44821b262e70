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
<script>const over = new Set(); const done = (name) => over.add(name);</script>
<img src="{url}/predictions/plate?prompt=img&seed=1" onerror="done('img')">
<iframe name="inner"></iframe>
<form id="form" method="post" enctype="text/plain" target="inner"
 action="{url}/predictions/plate"><input name="prompt" value="form"></form>
<iframe src="{url}/predictions/plate?prompt=frame"></iframe>
<script>
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


def drawn(server: RunningServer, *, after: int = -1) -> int:
    """Return how many requests reached the service, once they are more than ``after``."""
    until = time.monotonic() + 20
    while True:
        lines = httpx.get(f"{server.metrics}/metrics").text.splitlines()
        line = next((x for x in lines if x.startswith("fake_requests_total")), "x 0")
        count = int(float(line.split()[1]))
        if count > after:
            return count
        assert time.monotonic() < until, f"the count stays at {count}"
        time.sleep(0.1)  # the worker tells its numbers now and then


def settled(server: RunningServer) -> int:
    """Return the count when it has stopped rising."""
    count = drawn(server, after=0)
    while True:
        time.sleep(1.5)
        later = drawn(server)
        if later == count:
            return count
        count = later


def draw(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/predictions/plate?prompt=a").status_code == 200


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])  # cross-site, and same-site
def test_no_foreign_page_draws_or_reads(server, foreign, tmp_path, name):
    draw(server)
    before = settled(server)
    with open_page(f"http://{name}:{foreign}/", tmp_path) as page:
        page.wait(
            "typeof over === 'object' && ['img', 'read', 'json'].every((x) => over.has(x)) && over.size >= 5"
        )
        answers = set(page.run("[...over]"))
    time.sleep(0.3)  # a beacon tells nobody how it went
    assert answers <= {"img", "read", "json", "simple", "get", "simple:opaque", "get:opaque"}
    draw(server)  # what is counted after it was counted before it
    assert drawn(server, after=before) == before + 1


def test_a_rebound_name_shows_no_page(server, tmp_path):
    flag = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with open_page(f"http://evil.example:{server.port}/", tmp_path, flag) as page:
        page.wait("document.body && document.body.textContent.includes('loopback names only')")


def test_the_own_page_is_served(server, tmp_path):
    with open_page(server.url, tmp_path) as page:
        page.wait("document.getElementById('state')?.textContent === 'ready'")
        page.run("fetch('/predictions/plate?prompt=a').then((a) => {document.title = a.status})")
        page.wait("document.title === '405'")
        page.run("fetch('/predictions/plate', {method: 'POST', body: 'a'}).then((a) => "
                 "{document.title = a.status})")  # fmt: skip
        page.wait("document.title === '200'")
