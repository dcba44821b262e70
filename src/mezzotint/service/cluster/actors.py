"""Actors: the cluster's controller, found or started."""

from typing import Any

import mezzotint
from mezzotint.errors import WorkFailed
from mezzotint.service.cluster import ray_link
from mezzotint.service.cluster.controller import Controller

__all__ = ["controller"]


def controller() -> Any:
    """Return the cluster's controller, which is started if there is none.

    Raises:
        WorkFailed: If it cannot be started.
    """
    ray = ray_link.ray_module()
    try:
        return (
            ray.remote(Controller)
            .options(
                name=ray_link.CONTROLLER,
                namespace=ray_link.NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=10_000,
            )
            .remote(mezzotint.__version__)
        )
    except Exception as error:  # Ray's own are of many kinds
        raise WorkFailed(f"the cluster's controller cannot be started: {error}") from None
