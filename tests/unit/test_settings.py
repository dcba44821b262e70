import dataclasses

import pytest

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.settings import Settings, known_settings, load, terminal_pictures

EMPTY: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _no_user_settings(monkeypatch, tmp_path):
    monkeypatch.delenv("MEZZOTINT_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nothing"))


def test_defaults_hold_where_nobody_says_anything():
    loaded = load(environment=EMPTY)
    home = loaded.settings.home_path
    assert home.is_absolute()
    assert loaded.settings.models.home == str(home)
    assert loaded.settings.jobs.folder == str(home / "jobs")
    assert loaded.settings.engine == Settings().engine
    assert loaded.settings.serve == Settings().serve
    assert set(loaded.origins.values()) == {"default"}


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('[serve]\nport = 1\nmanagement_port = 2\nmetrics_port = 3\nhost = "::1"\n')
    environment = {"MEZZOTINT_SERVE__PORT": "11", "MEZZOTINT_SERVE__MANAGEMENT_PORT": "12"}
    loaded = load(file=file, environment=environment, flags={"serve.port": 21})
    serve = loaded.settings.serve
    assert (serve.port, serve.management_port, serve.metrics_port) == (21, 12, 3)
    assert loaded.origins["serve.port"] == "flag --port"
    assert loaded.origins["serve.management_port"] == "env MEZZOTINT_SERVE__MANAGEMENT_PORT"
    assert loaded.origins["serve.metrics_port"] == f"file {file}"
    assert loaded.origins["serve.limits.steps"] == "default"


def test_a_flag_that_was_not_given_changes_nothing():
    loaded = load(
        environment={"MEZZOTINT_MODELS__PLACEMENT__DEVICE": "cpu"},
        flags={"models.placement.device": None},
    )
    assert loaded.settings.models.placement.device == "cpu"


def test_the_file_is_found_in_the_environment_and_in_the_home_folder(tmp_path):
    (tmp_path / "config.toml").write_text("engine.max_rows = 8")
    other = tmp_path / "other.toml"
    other.write_text("engine.max_rows = 9")
    home = {"MEZZOTINT_HOME": str(tmp_path)}
    assert load(environment=home).settings.engine.max_rows == 8
    assert load(environment={**home, "MEZZOTINT_CONFIG": str(other)}).settings.engine.max_rows == 9
    assert load(flags={"home": str(tmp_path)}, environment=EMPTY).settings.engine.max_rows == 8


@pytest.mark.parametrize(
    ("variable", "text", "path", "value"),
    [
        ("MEZZOTINT_ENGINE__BUCKETS", "2, 4,8", "engine.buckets", (2, 4, 8)),
        ("MEZZOTINT_ENGINE__BUCKETS", "[2, 4]", "engine.buckets", (2, 4)),
        ("MEZZOTINT_ENGINE__CERTIFY", "false", "engine.certify", False),
        ("MEZZOTINT_ENGINE__QUANTUM_S", "0.5", "engine.quantum_s", 0.5),
        ("MEZZOTINT_SERVE__LIMITS__PIXELS", "65536", "serve.limits.pixels", 65536),
        ("MEZZOTINT_SERVE__GRPC_PORT", "7070", "serve.grpc_port", 7070),
        ("MEZZOTINT_SERVE__GRPC_PORT", "", "serve.grpc_port", None),
        ("MEZZOTINT_WORKER__OPTIONS", '{"a": 1}', "worker.options", {"a": 1}),
        ("MEZZOTINT_SERVE__CORS_ORIGINS", "https://a", "serve.cors_origins", ("https://a",)),
    ],
)
def test_the_text_of_a_variable_becomes_the_type_of_the_setting(variable, text, path, value):
    rows = {row.name: row for row in load(environment={**EMPTY, variable: text}).rows()}
    assert rows[path].value == value
    assert rows[path].origin == f"env {variable}"


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("MEZZOTINT_SERVE__PORT", "many", "MEZZOTINT_SERVE__PORT must be a whole number"),
        ("MEZZOTINT_SERVE__PORT", "70000", "port must be 0 to 65535, got 70000"),
        ("MEZZOTINT_ENGINE__CERTIFY", "perhaps", "must be true or false, got 'perhaps'"),
        ("MEZZOTINT_ENGINE__QUANTUM_S", "nan", "quantum_s must be 0.001 to 3600 s, got nan"),
        ("MEZZOTINT_LOG__LEVEL", "loud", "must be one of 'debug'"),
        ("MEZZOTINT_WORKER__OPTIONS", "{", "must be JSON"),
        ("MEZZOTINT_MODELS__PLACEMENT__DEVICE", "toaster", "device must be auto, cpu"),
    ],
)
def test_a_variable_that_cannot_be_is_refused(variable, text, message):
    with pytest.raises(InvalidRequest, match=message):
        load(environment={**EMPTY, variable: text})


def test_the_refusal_names_where_the_value_came_from():
    with pytest.raises(InvalidRequest, match=r"serve.port, from env MEZZOTINT_SERVE__PORT"):
        load(environment={**EMPTY, "MEZZOTINT_SERVE__PORT": "70000"})


def test_an_unknown_key_names_the_nearest_wherever_it_stands(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'MEZZOTINT_SERVE__PORT'"):
        load(environment={**EMPTY, "MEZZOTINT_SERVE__PROT": "1"})
    file = tmp_path / "a.toml"
    file.write_text("[serve]\nprot = 1\n")
    with pytest.raises(UnknownName, match=r"did you mean 'serve.port'"):
        load(file=file, environment=EMPTY)
    with pytest.raises(UnknownName, match=r"did you mean 'serve.port'"):
        load(flags={"serve.prot": 1}, environment=EMPTY)


@pytest.mark.parametrize(
    ("text", "message"), [("port = ", "is not TOML"), ("[serve]\nport = '1'", "a whole number")]
)
def test_a_file_that_cannot_be_understood_is_refused(tmp_path, text, message):
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        load(file=file, environment=EMPTY)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match=r"cannot read .*: No such file"):
        load(file=tmp_path / "none.toml", environment=EMPTY)


def test_a_listener_for_others_needs_keys_before_anything_starts():
    with pytest.raises(InvalidRequest, match="mezzotint keys new"):
        load(environment={**EMPTY, "MEZZOTINT_SERVE__HOST": "0.0.0.0"})


def test_every_setting_has_a_doc_line_and_a_value():
    rows = load(environment=EMPTY).rows()
    assert [row.name for row in rows] == list(known_settings())
    assert [row.name for row in rows if not row.doc] == []


def test_passwords_are_not_shown():
    url = "postgresql+psycopg://me:hunter2@db/jobs"
    rows = load(environment={**EMPTY, "MEZZOTINT_JOBS__URL": url}).rows()
    shown = next(row.value for row in rows if row.name == "jobs.url")
    assert shown == "postgresql+psycopg://me:********@db/jobs"
    hidden = load(environment={**EMPTY, "MEZZOTINT_WORKER__OPTIONS": '{"api_token": "x"}'}).rows()
    assert next(r.value for r in hidden if r.name == "worker.options") == {"api_token": "********"}


def test_home_is_absolute_and_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load(environment={"MEZZOTINT_HOME": "~/m"}).settings
    assert settings.home_path == tmp_path / "m"


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "iTerm.app", "TMUX": "x"}, "blocks"),
        ({}, "blocks"),
    ],
)
def test_terminals_that_show_pictures_are_known(environment, answer):
    assert terminal_pictures(environment) == answer


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().home = "x"
