"""Settings: one tree, and for each value where it came from.

Precedence: default < TOML file < environment < flag. This is the only file that
reads the environment. A variable is the path of a setting in capitals with two
underscores between levels: ``MEZZOTINT_SERVE__PORT=9000`` is ``serve.port``. An
unknown key, wherever it stands, is an error that names the nearest known one.

The file is ``--config FILE``, or ``MEZZOTINT_CONFIG``, or ``config.toml`` in the
home folder if there is one.
"""

import collections.abc
import dataclasses
import json
import os
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mezzotint.engine.config import EngineConfig
from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.files import user_home
from mezzotint.images.config import ImageConfig
from mezzotint.models.config import ModelsConfig
from mezzotint.observe.config import LogConfig
from mezzotint.plain import allowed, convert, field_docs, field_hints, field_types
from mezzotint.serve.config import ServeConfig
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.config import HandlersConfig, JobsConfig, WorkerConfig

__all__ = [
    "Loaded",
    "Setting",
    "Settings",
    "as_variables",
    "known_settings",
    "load",
    "terminal_pictures",
]

_PREFIX = "MEZZOTINT_"
_CONFIG = "MEZZOTINT_CONFIG"
_FROM_HOME = "models.home"  # no setting of its own: two homes would be two installations
_SECRET = re.compile(r"(password|secret|token)$")
_CREDENTIALS = re.compile(r"(://[^:/@\s]*:)[^@/\s]+@")
_IN_QUERY = re.compile(r"([?&]\w*(?:password|secret|token)=)[^&#\s]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set.

    Args:
        home: Folder of models, jobs, results and caches; two homes are two
            installations. The platform's user data folder if empty.
        engine: How the engine shares the device.
        handlers: What handler code of TorchServe archives may take.
        images: Limits on pictures that come from outside.
        jobs: Durable jobs.
        log: What is logged.
        models: Models, where they run, and what may be loaded.
        serve: The server.
        worker: The engine's own process.
    """

    home: str = ""
    engine: EngineConfig = field(default_factory=EngineConfig)
    handlers: HandlersConfig = field(default_factory=HandlersConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    jobs: JobsConfig = field(default_factory=JobsConfig)
    log: LogConfig = field(default_factory=LogConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)

    @property
    def home_path(self) -> Path:
        """The home folder, absolute after :func:`load`; it need not exist yet."""
        return Path(self.home or user_home())

    def service_config(
        self, *, ready: Sequence[str] = (), model_store: str | Path = ""
    ) -> ServiceConfig:
        """Return what a service in one process is made of.

        Args:
            ready: Models to have ready, see :class:`~mezzotint.service.composition.ServiceConfig`.
            model_store: Folder whose models can be registered by name, "" for none.
        """
        return ServiceConfig(
            ready=tuple(ready),
            model_store=str(model_store),
            engine=self.engine,
            handlers=self.handlers,
            images=self.images,
            models=self.models,
        )


class Setting(NamedTuple):
    """One line of ``config show``: path, value for people, origin, meaning, what it may hold."""

    name: str
    value: Any
    origin: str
    doc: str
    allowed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Settings and where each came from.

    Args:
        settings: The tree.
        origins: ``default``, ``file PATH``, ``env NAME`` or ``flag --NAME`` by
            the path of the setting.
    """

    settings: Settings
    origins: Mapping[str, str]

    def rows(self) -> list[Setting]:
        """Return every setting with value, origin and doc line; secrets are masked."""
        bounds = dict(_bounds(Settings, ""))
        return [
            Setting(
                name,
                _masked(name, _lookup(self.settings, name)),
                self.origins[name],
                doc,
                bounds[name],
            )
            for name, (_, doc) in known_settings().items()
        ]


def known_settings() -> dict[str, tuple[Any, str]]:
    """Return type and doc line of every setting by its path."""
    return {name: leaf for name, leaf in _leaves(Settings, "") if name != _FROM_HOME}


def load(
    *,
    file: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Loaded:
    """Read settings from every source.

    Args:
        file: A TOML file; see the module for where it is looked for if None.
        flags: Values by path, e.g. ``{"serve.port": 9000}``; None is "not given".
        texts: Values by path as people write them, e.g. ``{"serve.cors_origins": "a,b"}``.
        environment: Variables to read in place of the process's own.

    Raises:
        UnknownName: If a key does not exist; names the nearest one.
        InvalidRequest: If a value has the wrong type or is out of range, or the
            file cannot be read.
    """
    variables = os.environ if environment is None else environment
    known = known_settings()
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    from_environment = _read_environment(variables, known)
    home = (
        (flags or {}).get("home")
        or (texts or {}).get("home")
        or from_environment.get("home", (None, ""))[0]
    )
    path = _find_file(file, variables, home)
    if path is not None:
        for name, value in _read_file(path, known).items():
            values[name], origins[name] = value, f"file {path}"
    for name, (value, variable) in from_environment.items():
        values[name], origins[name] = value, f"env {variable}"
    for name, text in (texts or {}).items():
        if name not in known:
            raise UnknownName("setting", name, known, field="--set")
        values[name] = _parse(text, known[name][0], f"--set {name}")
        origins[name] = f"flag --set {name}"
    for name, value in (flags or {}).items():
        if value is not None:
            if name not in known:
                raise UnknownName("setting", name, known, field=name)
            hint = known[name][0]
            values[name] = _converted(value, hint, name)
            origins[name] = f"flag --{name.rpartition('.')[2].replace('_', '-')}"
    home_path = Path(values.get("home") or user_home()).expanduser().absolute()
    values["home"] = values[_FROM_HOME] = str(home_path)
    values.setdefault("jobs.folder", str(home_path / "jobs"))
    return Loaded(settings=_build(Settings, "", values, origins), origins=origins)


def as_variables(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """Return settings as variables, for a process that shall have these and no file.

    Args:
        settings: The tree.
        names: Paths of texts and switches in it, e.g. ``"models.allow_downloads"``.
    """
    found = {_CONFIG: os.devnull}
    for name in names:
        value = _lookup(settings, name)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        found[_PREFIX + name.upper().replace(".", "__")] = text
    return found


def terminal_pictures(
    environment: Mapping[str, str] | None = None,
) -> Literal["kitty", "iterm", "blocks", "ask"]:
    """Tell how this terminal shows pictures.

    ``blocks`` is coloured half characters; ``ask`` says that only the terminal itself can tell.
    """
    variables = os.environ if environment is None else environment
    if variables.get("TMUX") or variables.get("TERM", "").startswith(("screen", "tmux")):
        return "blocks"  # a multiplexer swallows the picture protocols
    if variables.get("KITTY_WINDOW_ID") or variables.get("TERM") in (
        "xterm-kitty",
        "xterm-ghostty",
    ):
        return "kitty"
    if variables.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm", "mintty"):
        return "iterm"
    return "blocks" if variables.get("TERM", "dumb") in ("dumb", "linux") else "ask"


def _leaves(cls: type, prefix: str) -> collections.abc.Iterator[tuple[str, tuple[Any, str]]]:
    """Yield path, type and doc line of every setting below ``cls``."""
    docs = _argument_docs(cls)
    for name, hint in field_types(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", (hint, docs.get(name, ""))


def _bounds(cls: type, prefix: str) -> collections.abc.Iterator[tuple[str, str]]:
    """Yield path and what it may hold, for people, of every setting below ``cls``."""
    for name, hint in field_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _bounds(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", allowed(hint)


def _argument_docs(cls: type) -> dict[str, str]:
    """Return the first sentence about each argument from a Google docstring."""
    return {
        name: re.split(r"(?<=[.;])\s", text)[0].rstrip(".;")
        for name, text in field_docs(cls).items()
    }


def _read_environment(
    variables: Mapping[str, str], known: Mapping[str, tuple[Any, str]]
) -> dict[str, tuple[Any, str]]:
    """Return value and variable by setting."""
    found: dict[str, tuple[Any, str]] = {}
    for variable, text in sorted(variables.items()):
        if not variable.startswith(_PREFIX) or variable == _CONFIG:
            continue
        name = variable.removeprefix(_PREFIX).lower().replace("__", ".")
        if name not in known:
            names = [_PREFIX + n.upper().replace(".", "__") for n in known]
            raise UnknownName("environment variable", variable, names, field=variable)
        found[name] = (_parse(text, known[name][0], variable), variable)
    return found


def _find_file(
    file: str | Path | None, variables: Mapping[str, str], home: str | None
) -> Path | None:
    """Return the settings file to read, or None if nobody named one and none is there."""
    named = file or variables.get(_CONFIG)
    if named:
        return Path(named).expanduser()
    usual = Path(home or user_home()).expanduser() / "config.toml"
    return usual if usual.is_file() else None


def _read_file(path: Path, known: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """Return the values of a TOML file by setting."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}", field="config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is not TOML: {error}", field="config") from None
    found: dict[str, Any] = {}

    def walk(branch: Mapping[str, Any], prefix: str) -> None:
        for key, value in branch.items():
            name = f"{prefix}{key}"
            if name in known:
                found[name] = _converted(value, known[name][0], f"{name} in {path}")
            elif isinstance(value, Mapping) and any(k.startswith(f"{name}.") for k in known):
                walk(typing.cast("Mapping[str, Any]", value), f"{name}.")
            else:
                raise UnknownName(f"setting in {path}", name, known, field=name)

    walk(tree, "")
    return found


def _parse(text: str, hint: Any, name: str) -> Any:
    """Turn the text of a variable into a value of the setting's type; "" is None if it may be."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if type(None) in typing.get_args(hint) and len(kinds) == 1:
        return _parse(text, kinds[0], name) if text.strip() else None
    origin = typing.get_origin(hint)
    try:
        if hint is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.strip().lower()
            ]
        if hint is int:
            return int(text.replace("_", ""))
        if hint is float:
            return float(text)
        if origin is tuple and not text.lstrip().startswith("["):
            items = [item.strip() for item in text.split(",") if item.strip()]
            kind = typing.get_args(hint)[0]
            return tuple(_parse(item, kind, name) for item in items)
        if origin is tuple or _is_mapping(hint):
            return _converted(json.loads(text), hint, name)
    except (KeyError, ValueError) as error:
        if isinstance(error, InvalidRequest):
            raise
        expected = {bool: "true or false", int: "a whole number", float: "a number"}
        raise InvalidRequest(
            f"{name} must be {expected.get(hint, 'JSON')}, got {text[:80]!r}",
            field=name,
            value=text[:80],
            allowed=expected.get(hint, "JSON"),
        ) from None
    return _converted(text, hint, name)


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) in (dict, collections.abc.Mapping)


def _converted(value: Any, hint: Any, name: str) -> Any:
    """Check a value against the type of its setting."""
    if _is_mapping(hint):
        if not isinstance(value, Mapping):
            raise InvalidRequest(f"{name} must be a table, got {value!r}", field=name)
        return dict(typing.cast("Mapping[str, Any]", value))
    return convert(value, hint, name)


def _build(cls: Any, prefix: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> Any:
    """Make one branch of the tree, its branches first."""
    arguments: dict[str, Any] = {}
    for name, hint in field_types(cls).items():
        path = f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            arguments[name] = _build(hint, f"{path}.", values, origins)
        elif path in values:
            arguments[name] = values[path]
    try:
        return cls(**arguments)
    except InvalidRequest as error:
        path = _culprit(error, prefix, origins)
        if path is None:
            raise
        raise InvalidRequest(
            f"{error} ({path}, from {origins[path]})",
            field=origins[path].removeprefix("flag ") if "flag" in origins[path] else path,
            value=error.value,
            allowed=error.allowed,
        ) from None


def _culprit(error: InvalidRequest, prefix: str, origins: Mapping[str, str]) -> str | None:
    """Return the path of the setting that an error of a Config class speaks of."""
    last = (error.field or "").rpartition(".")[2].partition("[")[0]
    path = f"{prefix}{last}"
    return path if path in origins else None


def _lookup(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _masked(name: str, value: Any) -> Any:
    """Return a value for people, without passwords."""
    if isinstance(value, str):
        if _SECRET.search(name) and value:
            return "********"
        return _IN_QUERY.sub(r"\1********", _CREDENTIALS.sub(r"\1********@", value))
    if isinstance(value, Mapping):
        entries = typing.cast("Mapping[Any, Any]", value)
        return {k: _masked(str(k), v) for k, v in entries.items()}
    return value
