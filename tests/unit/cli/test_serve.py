import json
import os
import socket
import time

import pytest

from mezzotint.cli import main
from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.serve import parse_models
from mezzotint.plain import read
from mezzotint.serve.run import _place
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.config import JobsConfig
from mezzotint.service.jobs.store import JobStore
from mezzotint.settings import load


@pytest.fixture
def started(monkeypatch):
    """Catch what the server would be started with."""
    calls = []

    def run(config, jobs, worker, **options):
        calls.append((config, jobs, worker, options))
        return 0

    monkeypatch.setattr("mezzotint.serve.run.run", run)
    return calls


def test_flags_reach_listeners_jobs_and_the_worker(cli, started, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    (tmp_path / "store").mkdir()
    done = cli(
        "serve", "--host", "0.0.0.0", "--port", 9000, "--management-port", 9001,
        "--metrics-port", 9002, "--api-keys", "keys", "--model-store", "store",
        "--models", "plate,mine=some/folder", "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    config, jobs, worker, _ = started[0]
    assert (config.host, config.port, config.management_port, config.metrics_port) == (
        "0.0.0.0", 9000, 9001, 9002,
    )  # fmt: skip
    assert config.api_keys == "keys"
    assert jobs.folder == str(tmp_path / "home" / "jobs")
    made_of = read(ServiceConfig, json.loads(json.dumps(worker.options)))  # by another process
    assert made_of.models.home == str(tmp_path / "home")
    assert made_of.ready == ("plate", "mine=some/folder")
    assert made_of.model_store == "store"
    assert made_of.models.placement.device == "cpu"


def test_runs_are_started_only_where_the_operator_wants_it(cli, started, tmp_path):
    cli("serve", "--metrics-port", 9102)
    config, _, worker, options = started[0]
    assert (config.runs, options["training"]) == ("", None)
    cli("serve", "--metrics-port", 9102, "--training")
    config, _, worker, options = started[1]
    assert config.runs == str(tmp_path / "home" / "runs")
    assert options["training"].folder == tmp_path / "home" / "runs"
    assert read(ServiceConfig, json.loads(json.dumps(worker.options))).runs == config.runs
    (tmp_path / "mine").mkdir()
    cli("serve", "--metrics-port", 9102, "--training", "--runs", "mine")
    assert started[2][3]["training"].folder == tmp_path / "mine"


def test_a_run_keeps_to_the_settings_of_its_server(cli, started, tmp_path):
    (tmp_path / "s.toml").write_text("[models]\nallow_downloads = false\n")
    ports = ("--metrics-port", 9102)
    cli("serve", "--config", "s.toml", *ports, "--training", "--device", "cpu")
    given = started[0][3]["training"].environment
    assert given == {
        "MEZZOTINT_CONFIG": os.devnull,
        "MEZZOTINT_HOME": str(tmp_path / "home"),
        "MEZZOTINT_MODELS__ALLOW_DOWNLOADS": "false",
        "MEZZOTINT_MODELS__PLACEMENT__DEVICE": "cpu",
    }
    read_back = load(environment=given).settings
    assert read_back.models.allow_downloads is False
    assert read_back.models.placement.device == "cpu"


def test_a_settings_file_is_read(cli, started, tmp_path):
    (tmp_path / "s.toml").write_text("[serve]\nport = 9100\n[serve.limits]\nsteps = 10\n")
    cli("serve", "--config", "s.toml", "--metrics-port", 9102)
    config = started[0][0]
    assert (config.port, config.metrics_port, config.limits.steps) == (9100, 9102, 10)


def test_another_factory_gets_only_its_own_options(cli, started, monkeypatch):
    monkeypatch.setenv("MEZZOTINT_WORKER__FACTORY", "mezzotint.service.fake:create_fake")
    monkeypatch.setenv("MEZZOTINT_WORKER__OPTIONS", '{"step_s": 0.1}')
    cli("serve")
    assert started[0][2].options == {"step_s": 0.1}


def test_the_workers_options_are_what_the_service_takes(cli, started, tmp_path, monkeypatch):
    monkeypatch.setenv("MEZZOTINT_MODELS__PLACEMENT__VAE_SLICING", "true")
    monkeypatch.setenv("MEZZOTINT_WORKER__OPTIONS", '{"models": {"backend": "torch"}}')
    cli("serve", "--models", "plate")
    config = read(ServiceConfig, started[0][2].options)
    assert config.models.home == str(tmp_path / "home")
    assert config.models.placement.vae_slicing
    assert config.models.backend == "torch"  # an option of the worker exchanges nothing else
    assert config.ready == ("plate",)


def test_models_are_names_with_or_without_paths():
    assert parse_models(["a, b=/x", "c@2", "a"]) == ["a", "b=/x", "c@2"]
    with pytest.raises(WrongFlag, match="nothing at nowhere"):
        parse_models(["a=nowhere"])
    for wrong in ("", "a,,b", "a=", "=x"):
        with pytest.raises(WrongFlag, match="must look like"):
            parse_models([wrong])


def test_models_are_spelt_as_torchserve_spells_them(tmp_path):
    (tmp_path / "shout.mar").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    stored = tmp_path / "shout.mar"
    assert parse_models(["shout.mar"], tmp_path) == [f"={stored}"]
    assert parse_models([str(stored)]) == [f"={stored}"]
    assert parse_models(["loud=shout.mar,folder"], tmp_path) == [f"loud={stored}", "folder"]
    assert parse_models(["ALL"], tmp_path) == ["ALL"]
    with pytest.raises(WrongFlag, match="--model-store"):
        parse_models(["all"])
    with pytest.raises(WrongFlag, match=r"nothing at gone\.mar"):
        parse_models(["gone.mar"], tmp_path)


def test_a_path_is_looked_for_in_the_model_store_first(cli, started, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "digits.mar").write_bytes(b"")
    (tmp_path / "here.mar").write_bytes(b"")
    done = cli("serve", "--model-store", "store", "--models", "digits=digits.mar,other=here.mar")
    assert done.code == 0, done.err
    stored = tmp_path / "store" / "digits.mar"
    assert started[0][2].options["ready"] == [f"digits={stored}", "other=here.mar"]
    with pytest.raises(WrongFlag, match="nothing at gone"):
        parse_models(["a=gone.mar"], tmp_path / "store")


def test_the_home_folder_may_be_a_flag(cli, started, tmp_path):
    done = cli("--home", "elsewhere", "serve")  # which beats the environment
    assert done.code == 0, done.err
    assert started[0][1].folder == str(tmp_path / "elsewhere" / "jobs")
    assert started[0][2].options["models"]["home"] == str(tmp_path / "elsewhere")
    shown = cli("--home", tmp_path / "elsewhere", "config", "show")
    assert str(tmp_path / "elsewhere") in shown.out.replace("\n", "")


def test_a_new_key_fits_the_keys_file(cli):
    from mezzotint.serve.auth import read_keys
    from mezzotint.serve.config import Limits

    answer = json.loads(cli("keys", "new", "--name", "ann", "--scopes", "generate", "--json").out)
    (caller,) = read_keys(answer["line"], Limits()).values()
    assert caller.name == "ann"
    assert set(caller.scopes) == {"generate"}
    assert answer["key"] not in answer["line"]


def test_config_show_has_value_origin_and_meaning(cli, monkeypatch):
    monkeypatch.setenv("MEZZOTINT_SERVE__PORT", "9000")
    line = next(x for x in cli("config", "show").out.splitlines() if x.startswith("serve.port "))
    assert "9000  [env MEZZOTINT_SERVE__PORT]" in line
    rows = json.loads(cli("config", "show", "--json").out)
    assert all(set(row) == {"name", "value", "origin", "doc", "allowed"} for row in rows)


def test_a_new_key_is_put_into_the_keys_file(cli, tmp_path):
    from mezzotint.serve.auth import read_keys
    from mezzotint.serve.config import Limits

    (tmp_path / "keys.txt").write_text("# the team")  # without an end of the line
    first = cli("keys", "new", "--name", "ann", "--scopes", "generate", "--file", "keys.txt")
    assert "its line was put into keys.txt" in first.out
    key = json.loads(cli("keys", "new", "--file", "keys.txt", "--json").out)
    callers = read_keys((tmp_path / "keys.txt").read_text(), Limits())
    assert next(iter(callers.values())).name == "ann"
    assert len(callers) == 2
    assert key["key"] not in (tmp_path / "keys.txt").read_text()
    again = cli("keys", "new", "--name", "ann", "--file", "keys.txt")
    assert (again.code, again.out) == (2, "")
    assert "the name 'ann' stands in line 2 too" in again.err
    cli("keys", "new", "--file", "own.txt")
    assert (tmp_path / "own.txt").stat().st_mode & 0o777 == 0o600
    assert cli("keys", "new", "--file", "no/where.txt").code == 2


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["serve.port"], ["serve.port"]),
        (["port"], ["serve.port"]),
        (["limits.adapters", "PORT"], ["serve.port", "serve.limits.adapters"]),
        (["log"], ["log.level", "log.format", "log.prompts"]),
    ],
)
def test_config_show_shows_what_is_named(cli, names, shown):
    rows = json.loads(cli("config", "show", *names, "--json").out)
    assert sorted(row["name"] for row in rows) == sorted(shown)
    lines = cli("config", "show", *names).out.splitlines()
    assert [line.split()[0] for line in lines] == [row["name"] for row in rows]


def test_config_show_of_no_setting_names_the_nearest(cli):
    done = cli("config", "show", "serve.prot")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "NAME: no setting is called 'serve.prot'; did you mean serve.port?" in done.err
    assert "config show lists all" in cli("config", "show", "zzz").err


@pytest.mark.parametrize(
    "rest", ["me:hunter2@db/jobs", "db/jobs?user=me&password=hunter2", "/jobs?sslPassword=hunter2"]
)
def test_neither_config_show_nor_the_first_lines_have_a_password(cli, monkeypatch, rest):
    url = f"postgresql+psycopg://{rest}"
    monkeypatch.setenv("MEZZOTINT_JOBS__URL", url)
    shown = cli("config", "show").out
    assert "postgresql+psycopg://" in shown
    assert "hunter2" not in shown
    assert "hunter2" not in _place(JobsConfig(url=url))


def test_bench_lists_what_the_checkout_has(cli):
    done = cli("bench")
    assert done.code == 0


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        (["jobs.url=postgresql+psycopg://mz@127.0.0.1:{silent}/x"], 1,
         "the job store cannot be opened: connection timeout expired"),
        (["jobs.url=postgresql+psycopg://mz@127.0.0.1:{closed}/x"], 1, "Connection refused"),
        (["jobs.cluster=south"], 2,
         "belongs to the cluster 'north', and jobs.cluster of this server is 'south'"),
        (["jobs.results_url=s3://pictures/x"], 1,
         "no picture can be kept in jobs.results_url"),
        (["worker.ray=127.0.0.1:{closed}"], 1, "no Ray head answers at 127.0.0.1:{closed} ("),
    ],
    ids=["silent", "closed", "another-cluster", "bucket", "head"],
)  # fmt: skip
def test_a_database_bucket_or_head_that_is_away_or_anothers_is_one_sentence_in_seconds(
    tmp_path, capfd, monkeypatch, settings, code, said
):
    monkeypatch.setattr("mezzotint.service.jobs.store._ANSWER_S", 2)
    folder = tmp_path / "jobs"
    folder.mkdir()
    JobStore(f"sqlite:///{folder / 'jobs.sqlite3'}", "me", cluster="north").close()
    with socket.socket() as silent, socket.socket() as closed:
        for one in (silent, closed):
            one.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and says nothing
        ports = {"silent": silent.getsockname()[1], "closed": closed.getsockname()[1]}
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports['closed']}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        given = [f"--set={text.format(**ports)}" for text in settings]
        given += [f"--set=jobs.folder={folder}", "--home", str(tmp_path / "home"), "serve"]
        ports_of_ours = ["--port", "0", "--management-port", "0", "--metrics-port", "0"]
        began = time.monotonic()
        assert main._run([*given, *ports_of_ours]) == code
        assert time.monotonic() - began < 15
    told = capfd.readouterr().err
    assert said.format(**ports) in told
    assert told.count("\n") == 1
