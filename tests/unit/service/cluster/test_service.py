"""A front of a cluster: when it leaves its process to connect again."""

import asyncio

import pytest

from mezzotint.errors import NotReady
from mezzotint.service.cluster import service
from mezzotint.service.cluster.deployments import spec_of
from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.supervisor import LEFT


class Left(BaseException):
    """The process was left."""


def leave(code):
    raise Left(code)


@pytest.mark.parametrize("answers", [False, True])
def test_a_front_that_finds_no_controller_for_long_connects_again(monkeypatch, answers):
    asked = []

    async def sync(_self, _wait_s):
        asked.append(0)
        if not answers or len(asked) % 5:
            raise NotReady("the cluster's controller does not answer: it is unavailable")

    monkeypatch.setattr(service, "_SYNC_S", 0.02)
    monkeypatch.setattr(service, "_CONTROLLER_AWAY_S", 0.5)
    monkeypatch.setattr(service.ray_link, "list_nodes", list)
    monkeypatch.setattr(service.RayService, "_sync_once", sync)
    monkeypatch.setattr(service, "controller", object)
    monkeypatch.setattr(service.os, "_exit", leave)
    front = service.RayService(WorkerConfig(), spec_of(WorkerConfig()))
    with pytest.raises(TimeoutError if answers else Left) as ended:
        asyncio.run(asyncio.wait_for(front._follow(), 2.0))
    assert answers or ended.value.args == (LEFT,)
