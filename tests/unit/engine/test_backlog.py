import random
from math import inf

import pytest

from mezzotint.engine.backlog import Backlog, Held, Load
from mezzotint.engine.state import ImageId

RANKS = [(c, d, float(due)) for c in (-1, 0, 2) for d in (5.0, inf) for due in range(4)]


def counted(held, client, rank):
    """What an image of a client and a rank meets, by a look at each."""
    above = [h for h in held if h.rank[0] < rank[0]]
    level = [h for h in held if h.rank[0] == rank[0]]
    rivals = [h for h in level if h.client != client]
    return {
        "images": len(held),
        "seconds": pytest.approx(sum(h.seconds for h in held)),
        "before_s": pytest.approx(sum(h.seconds for h in above)),
        "ahead_s": pytest.approx(
            sum(h.seconds for h in level if h.client == client and h.rank <= rank)
        ),
        "rivals": len({h.client for h in rivals}),
        "rival_s": pytest.approx(sum(h.seconds for h in rivals), abs=1e-9),
        "own_images": sum(h.client == client for h in held) if client else 0,
    }


def test_sums_are_those_of_a_look_at_each_image():
    chance, backlog, held = random.Random(3), Backlog(), {}
    for number in range(3000):
        image = ImageId(f"r{chance.randrange(60)}", chance.randrange(4))
        move = chance.random()
        if move < 0.55:
            held[image] = Held(
                client=chance.choice(("", "a", "b", "c")), seconds=chance.expovariate(1),
                rank=chance.choice(RANKS),
            )  # fmt: skip
            backlog.put(image, held[image])
        elif image in held and move < 0.75:
            seconds = chance.random()
            was = held[image]
            held[image] = Held(client=was.client, seconds=seconds, rank=was.rank)
            backlog.expect(image, seconds)
        else:
            held.pop(image, None)
            backlog.drop(image)
        assert (image in backlog) == (image in held)
        if number % 10 == 0:
            client, rank = chance.choice(("", "a", "d")), chance.choice(RANKS)
            load = backlog.before(client, rank)
            assert {k: getattr(load, k) for k in Load.__slots__} == counted(
                list(held.values()), client, rank
            )
            request = image.request
            assert backlog.of(request) == {one for one in held if one.request == request}
    for image in list(held):
        backlog.drop(image)
    assert backlog.before("a", RANKS[0]) == Load()
    assert len(backlog) == 0
