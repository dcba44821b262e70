"""Native webhooks: telling the address that came with a job that the job has ended.

What is to be told is a row beside the job, so that it is told whichever server ends the job,
and after a restart. An address gets the job as ``GET /v1/jobs/{id}`` shows it, with a ``link`` for
each picture that needs no key for a week, signed with the secret of the client that left the
job; where it does not take it, it is tried again for an hour and a half. It may get a message
twice, with one id.
"""

import asyncio

import orjson

from mezzotint.errors import MezzotintError, UnknownName
from mezzotint.observe import log
from mezzotint.serve.dialects.native_jobs import describe_job, links_of
from mezzotint.serve.errors import WrongField
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import queue_of
from mezzotint.serve.webhooks import check_webhook, secret_of, send

__all__ = ["deliver"]

_LOOK_S = 1.0
_LINK_S = 7 * 86400
_AT_ONCE = 8
_PAUSES_S = (60.0, 240.0, 960.0, 3840.0)


async def deliver(front: Front) -> None:
    """Deliver what is due until cancelled."""
    under_way: set[asyncio.Task[None]] = set()
    try:
        while True:
            due = None
            if len(under_way) < _AT_ONCE:
                try:
                    due = await queue_of(front).due_webhook()
                except MezzotintError as error:
                    log.error("webhook.store_failed", reason=str(error))
            if due is None:
                await asyncio.sleep(_LOOK_S)
                continue
            task = asyncio.create_task(_deliver(front, *due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    finally:
        for task in under_way:
            task.cancel()


async def _deliver(front: Front, id_: str, url: str, tries: int) -> None:
    """Deliver one message, or say when to try again."""
    jobs = queue_of(front)
    try:
        job = await jobs.get(id_)
        check_webhook(url, front.config, "webhook")
        told = await describe_job(front, job)
        for image, link in zip(told["images"], links_of(front, job, seconds=_LINK_S), strict=True):
            image["link"] = link["url"]
        body = orjson.dumps(told)
        secret = secret_of(jobs.signing_key(), job.client)
        is_done = await send(url, body, secret, id_=f"msg_{id_.removeprefix('job-')}")
    except UnknownName:  # somebody deleted the job
        is_done = True
    except WrongField as error:  # another server of the cluster may be allowed to
        log.warning("webhook.not_allowed", reason=str(error))
        is_done = False
    except MezzotintError as error:  # it is due again when its hold is over
        log.error("webhook.store_failed", reason=str(error))
        return
    try:
        if not is_done and tries < len(_PAUSES_S):
            await jobs.settle_webhook(id_, again_s=_PAUSES_S[tries])
            return
        if not is_done:
            log.error("webhook.given_up", job=id_)
        await jobs.settle_webhook(id_, again_s=None)
    except MezzotintError as error:
        log.error("webhook.store_failed", reason=str(error))
