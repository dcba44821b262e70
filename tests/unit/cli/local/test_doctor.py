import json
import socket

from mezzotint.cli.local import doctor as module
from mezzotint.cli.local.doctor import examine
from mezzotint.settings import load


def findings(tmp_path, **flags):
    settings = load(environment={"MEZZOTINT_HOME": str(tmp_path)}, flags=flags).settings
    return {found.about: found for found in examine(settings)}


def test_everything_is_told_in_lines_and_in_json(cli):
    told = cli("doctor")
    for word in ("python", "libraries", "processor", "memory", "home", "ports"):
        assert word in told.out
    answer = json.loads(cli("doctor", "--json").out)
    assert answer["well"] is (told.code == 0)
    assert {"about", "status", "told", "advice"} == set(answer["findings"][0])


def test_a_library_that_is_missing_or_too_old_is_wrong_and_exits_1(cli, monkeypatch):
    real = module._version
    older = {"diffusers": "0.1.0", "peft": ""}
    monkeypatch.setattr(module, "_version", lambda name: older.get(name, real(name)))
    done = cli("doctor")
    assert done.code == 1
    assert "diffusers 0.1.0 is not <0.43,>=0.42" in done.out
    assert "peft is missing" in done.out
    assert done.out.splitlines()[-1].startswith("1 wrong (X)")


def test_a_home_that_cannot_be_written_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    assert findings(tmp_path / "file")["home"].status == "wrong"


def test_a_gpu_that_torch_cannot_use_is_told_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_gpus", lambda: ["H200, 140 GiB"])
    monkeypatch.setattr(module, "_version", lambda name: "2.13.0+cpu")
    found = findings(tmp_path)["gpu"]
    assert (found.status, "CUDA build" in found.advice) == ("advice", True)
    monkeypatch.setattr(module, "_version", lambda name: "2.13.0+cu130")
    assert findings(tmp_path)["gpu"].status == "ok"


def test_a_gpu_that_is_asked_for_and_not_there_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_gpus", list)
    found = findings(tmp_path, **{"models.placement.device": "cuda"})["gpu"]
    assert found.status == "wrong"


def test_fewer_threads_than_cores_are_advised_about(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert findings(tmp_path)["threads"].advice.startswith("unset it")


def test_a_port_that_another_program_has_is_named(tmp_path):
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        port = own.getsockname()[1]
        found = findings(tmp_path, **{"serve.port": port})["ports"]
    assert f"port {port}" in found.told
    assert "--port 0" in found.advice


def test_what_is_kept_is_counted(tmp_path):
    (tmp_path / "cache" / "results").mkdir(parents=True)
    (tmp_path / "cache" / "results" / "a").write_bytes(b"x" * 3_000_000)
    assert findings(tmp_path)["disk"].told == "cache/results 3 MB"
