import asyncio

from mezzotint.serve.config import ServeConfig
from mezzotint.serve.front import Front
from mezzotint.service.fake import FakeService


class Listing(FakeService):
    """Counts how often it is asked for its models, and takes a while."""

    asked = 0

    async def models(self):
        self.asked += 1
        await asyncio.sleep(0.05)
        return await super().models()


def test_the_list_of_models_is_written_once_for_all_who_ask_meanwhile():
    async def main():
        service = Listing()
        front = Front(service, ServeConfig())
        lists = await asyncio.gather(*(front.recent_models() for _ in range(50)))
        assert service.asked == 1
        assert all(models == lists[0] and models for models in lists)
        gone = asyncio.create_task(front.recent_models())
        front.forget_models()
        waits = asyncio.create_task(front.recent_models())
        await asyncio.sleep(0)
        gone.cancel()
        assert await waits == lists[0]
        assert service.asked == 2

    asyncio.run(main())


def test_one_who_leaves_takes_the_list_from_nobody():
    async def main():
        front = Front(Listing(), ServeConfig())
        first = asyncio.create_task(front.recent_models())
        second = asyncio.create_task(front.recent_models())
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second

    asyncio.run(main())
