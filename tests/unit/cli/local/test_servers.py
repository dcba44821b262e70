import subprocess
import sys
from pathlib import Path

import pytest
from tests.serving import running_server

import mezzotint as mz
from mezzotint.cli.local.servers import find_server, suits
from mezzotint.service.jobs.ownership import FolderOwner, server_of

KEY = "alice-has-a-long-key"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def owned(server, tmp_path):
    """A home that a running server has."""
    (tmp_path / "home").mkdir()
    owner = FolderOwner(tmp_path / "home", "home")
    owner.tell(server.url)
    yield tmp_path / "home"
    owner.release()


def test_a_home_tells_its_server_as_long_as_it_lives(tmp_path):
    assert server_of(tmp_path) == ""
    code = (
        "import sys, pathlib, time\n"
        "from mezzotint.service.jobs.ownership import FolderOwner\n"
        "owner = FolderOwner(pathlib.Path(sys.argv[1]), 'home')\n"
        "owner.tell('http://127.0.0.1:1')\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert server_of(tmp_path) == "http://127.0.0.1:1"
        assert find_server(tmp_path) == ""  # nobody answers there
        other.kill()
    assert server_of(tmp_path) == ""


@pytest.mark.parametrize("url", ["", "https://127.0.0.1:1", "http://10.0.0.1:8080", "http://a.b"])
def test_only_loopback_is_asked(tmp_path, url):
    owner = FolderOwner(tmp_path, "home")
    owner.tell(url)
    assert find_server(tmp_path) == ""
    owner.release()


def test_a_request_that_names_paths_is_for_this_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert suits(mz.GenerationRequest(prompt="a/b"))
    assert not suits(mz.GenerationRequest(model="./own"))
    assert not suits(mz.GenerationRequest(loras=(mz.Lora(name="runs/style"),)))
    (tmp_path / "own").mkdir()
    assert not suits(mz.GenerationRequest(model="own"))


def test_generate_draws_at_the_server_of_its_home_and_says_so(cli, service, server, owned):
    done = cli("generate", "a pear", "--seed", 3, "--width", 64, "--height", 64)
    assert done.code == 0, done.err
    assert done.err.count(f"the server at {server.url} draws; --server none draws here") == 1
    assert service.made == []
    with mz.Client(server.url) as client:
        made = client.generate("a pear", seed=3, width=64, height=64)
    assert Path(done.out.strip()).read_bytes() == made.images[0].bytes


@pytest.mark.parametrize("flags", [["--server", "none"], ["--device", "cpu"], ["-i"]])
def test_this_process_draws_where_it_is_told_to(cli, service, owned, flags, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(EOFError))
    done = cli("generate", "a pear", "--seed", 3, "-q", *flags)
    assert done.code == 0, done.err
    assert len(service.made) == 1


def test_a_server_is_named_by_its_address(cli, service, server):
    done = cli("generate", "a pear", "--seed", 3, "--server", server.url, "--json", "-q")
    assert done.code == 0, done.err
    assert service.made == []
    assert cli("generate", "x", "--server", "here").code == 2
    assert "no connection" in cli("generate", "x", "--server", "http://127.0.0.1:1").err
