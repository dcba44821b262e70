"""The controller without a Ray: what it refuses, and in which words.

Tests :mod:`mezzotint.service.cluster.controller`.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import mezzotint
from mezzotint.errors import InvalidRequest
from mezzotint.service.cluster import ray_link
from mezzotint.service.cluster.controller import Controller
from mezzotint.service.cluster.messages import DeploymentSpec, Outcome, encode, unpack
from mezzotint.service.descriptions import read_error

SPEC = DeploymentSpec(
    name="default", version=mezzotint.__version__, factory="f", options={}, least=0
)


def answers(monkeypatch: pytest.MonkeyPatch, body: Callable[[Controller], Awaitable[None]]) -> None:
    """Run a body on a controller that finds no replica, and starts none."""
    monkeypatch.setattr(ray_link, "names_of_replicas", list)
    monkeypatch.setattr(Controller, "_start", lambda self, there: None)

    async def main() -> None:
        await body(Controller(mezzotint.__version__))
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(main())


async def refusal(controller: Controller, spec: DeploymentSpec) -> InvalidRequest:
    outcome: Outcome = unpack(await controller.deploy(encode(spec), False), Outcome)
    error = read_error(outcome.error)
    assert isinstance(error, InvalidRequest)  # which a command ends with 2 for
    return error


def test_a_front_of_another_version_other_settings_or_taken_models_is_refused(monkeypatch):
    import msgspec

    def changed(**fields: object) -> DeploymentSpec:
        return msgspec.structs.replace(SPEC, **fields)

    async def body(controller: Controller) -> None:
        skew = await refusal(controller, changed(version="99"))
        assert str(skew) == (
            f"the cluster runs Mezzotint {mezzotint.__version__} and this is 99: install the same "
            "version on every machine, or take the cluster down first"
        )
        first: Outcome = unpack(
            await controller.deploy(encode(changed(models=["plate"])), False), Outcome
        )
        assert not first.error
        other = await refusal(controller, changed(models=["plate"], most=7))
        assert "the deployment default stands with other settings" in str(other)
        taken = await refusal(controller, changed(name="large", models=["plate", "x"]))
        assert str(taken) == "plate is served by the deployment default already"

    answers(monkeypatch, body)
