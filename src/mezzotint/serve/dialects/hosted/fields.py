"""Fields that the APIs of hosted services share: pictures by address, schedulers by name."""

import contextlib
from collections.abc import Generator, Mapping
from typing import Any

from mezzotint.errors import InvalidField, UnknownName
from mezzotint.plain import field_names
from mezzotint.request import GenerationRequest
from mezzotint.schedulers import DIFFUSERS
from mezzotint.serve.errors import WrongField, describe
from mezzotint.vocabulary import A1111_SAMPLERS, match_sampler

__all__ = ["in_words_of", "native_fields", "note_of", "read_picture", "read_scheduler"]


def read_picture(value: Any, field: str) -> str:
    """Return a picture as base64 or a data address.

    Raises:
        WrongField: If it is an address that would have to be fetched.
    """
    if isinstance(value, str) and value[:8].lower().startswith(("http://", "https://")):
        raise WrongField(
            f"{field} must hold the picture itself (a data: address or base64): this server "
            "fetches nothing from addresses that clients name",
            field=field,
            value=value[:80],
            allowed="data:image/png;base64,...",
        )
    if not isinstance(value, str):
        raise WrongField(
            f"{field} must be a text, got {type(value).__name__}",
            field=field,
            value=str(value)[:80],
        )
    return value


def read_scheduler(name: Any, field: str) -> dict[str, Any]:
    """Return scheduler and sigma schedule for a name of ours, A1111's or diffusers'.

    Raises:
        UnknownName: If nobody knows the name, or there is only something near it.
    """
    text = str(name)
    for known in (text, f"{text}Scheduler", f"{text}DiscreteScheduler"):
        match = match_sampler(known)
        if match is None or not match.exact:
            continue
        if known == text or match.scheduler != known or known in DIFFUSERS:
            found = {"scheduler": match.scheduler, "sigma_schedule": match.sigma_schedule}
            return {key: value for key, value in found.items() if value is not None}
    raise UnknownName("scheduler", text[:80], A1111_SAMPLERS, field=field)


def native_fields(
    body: Mapping[str, Any], names: Mapping[str, str], ignored: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """Take fields under their names here or ours; null is as good as absent.

    Args:
        body: What came.
        names: Their name -> ours.
        ignored: What is taken and has no effect.

    Returns:
        Fields by our names, and what had no effect.

    Raises:
        UnknownName: If a field is known by neither name.
        WrongField: If two fields say the same.
    """
    ours = field_names(GenerationRequest)
    native: dict[str, Any] = {}
    lost: list[str] = []
    for name, value in body.items():
        if value is None:
            continue
        if name in ignored:
            lost.append(f"{name} has no effect here")
            continue
        key = names.get(name, name)
        if key not in ours:
            raise UnknownName("field", name, {*ours, *names, *ignored}, field=name)
        if key in native:
            raise WrongField(f"{name} and {key} say the same, give one", field=name)
        native[key] = value
    return native, lost


@contextlib.contextmanager
def in_words_of(body: Mapping[str, Any], names: Mapping[str, str]) -> Generator[None]:
    """Name a wrong field as the body does.

    Args:
        body: What came.
        names: Their name -> ours.

    Raises:
        WrongField: In place of an ``InvalidField`` whose field the body calls otherwise.
    """
    try:
        yield
    except InvalidField as error:
        said = {ours: name for name, ours in names.items() if body.get(name) is not None}
        problem = describe(error).renamed(said)
        if problem.field == error.field:
            raise
        raise WrongField(
            problem.detail, field=problem.field, value=error.value, allowed=error.allowed
        ) from None


def note_of(door: str, **kept: Any) -> dict[str, Any]:
    """Return what a door keeps with a job."""
    return {"door": door, **kept}
