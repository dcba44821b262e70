"""The page's files: compressed, marked, under a policy that lets nothing else in."""

import gzip
import json
import re
from importlib import resources

import pytest
from tests.serving import open_door

WEB = resources.files("mezzotint.serve") / "web"
FIRST_VIEW_BYTES = 150_000


@pytest.fixture(scope="module")
def door():
    with open_door() as opened:
        yield opened


def first_view(door) -> dict[str, int]:
    """Return the bytes on the wire of everything the page asks for before it stands."""
    paths, sizes = ["/"], {}
    while paths:
        path = paths.pop()
        answer = door.http.get(path, headers={"accept-encoding": "gzip"})
        assert answer.status_code == 200, path
        sizes[path] = int(answer.headers["content-length"])
        named = re.findall(r'(?:src|href)="(/[^"]+)"', answer.text) if path == "/" else []
        imported = re.findall(r"""(?:from|import) ?["'`]\./([\w-]+\.js)["'`]""", answer.text)
        paths += {*named, *(f"/web/{name}" for name in imported)} - {*sizes, *paths}
    return sizes


def test_the_first_view_is_small_on_the_wire(door):
    sizes = first_view(door)
    assert {"/web/app.js", "/web/index.css"} <= set(sizes)
    assert sum(sizes.values()) < FIRST_VIEW_BYTES


def test_the_page_runs_no_script_of_its_own_text_and_asks_nobody_else(door):
    answer = door.http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"<script(?![^>]*\bsrc=)", answer.text) == []
    assert re.findall(r"<style|\son[a-z]+=|\sstyle=", answer.text) == []
    for name in ("index.html", "app.js", "index.css"):
        text = (WEB / name).read_text("utf-8")
        hosts = set(re.findall(r"https?://([\w.-]+)", text))
        assert hosts <= {"www.w3.org"}, name  # names of XML vocabularies, which nobody asks


def test_files_go_out_compressed_only_to_who_takes_that(door):
    plain = door.http.get("/web/app.js", headers={"accept-encoding": "identity"})
    packed = door.http.get("/web/app.js", headers={"accept-encoding": "gzip, br"})
    assert plain.headers.get("content-encoding") is None
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.content == packed.content == (WEB / "app.js").read_bytes()  # the client unpacks
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert packed.headers["vary"] == "Accept-Encoding"
    assert plain.headers["content-type"].startswith("text/javascript")
    assert gzip.compress(plain.content, 9, mtime=0)[:2] == b"\x1f\x8b"


def test_a_known_file_is_not_sent_again(door):
    mark = door.http.get("/web/index.css").headers["etag"]
    again = door.http.get("/web/index.css", headers={"if-none-match": mark})
    assert again.status_code == 304
    assert again.content == b""
    stale = door.http.get("/web/index.css", headers={"if-none-match": '"0"'})
    assert stale.status_code == 200


@pytest.mark.parametrize(
    "name", ["built.json", "..%2fapp.py", "app.map", "APP.JS", "nothing.js", ".hidden.js", "a/b.js"]
)
def test_nothing_but_the_built_files_is_served(door, name):
    assert door.http.get(f"/web/{name}").status_code == 404


def test_the_note_of_the_build_is_in_the_package(door):
    note = json.loads((WEB / "built.json").read_text())
    assert set(note) == {"sources", "files"}
