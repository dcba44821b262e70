"""Accounts: what each client is owed of the device, kept for a while after it has gone.

A token bucket for each client, in seconds of the device: it fills with an equal share of the
time that passes, and the seconds that its own rows take are paid from it, without end where
nobody else wants them. Full buckets are level with each other. Who asks for less than its
share in all finds a full bucket and is served at once, before one that never stops asking; who
asks for more waits behind all who do not (max-min fairness). A full bucket stands above the
emptiest one present by three of the requests that are usual, three minutes at most, so that
nobody is held back for long by another who takes to asking without end.

Who leaves in debt still has it when it comes back; after a minute away a client is forgotten,
and new again. Pictures of nobody, such as a warm-up's, are forgotten at once: nobody comes back
for more. One that is new stands where those present do on average, and gets half of its first
image's cost in advance, divided by them: beside one long request that lets a short one pass;
among many clients a stream of new ones would otherwise hold those back who came before.
"""

import math
from collections.abc import Mapping, Set

__all__ = ["Accounts", "Credits"]

Credits = Mapping[str, float]
"""Seconds owed to each client, at most 0; only differences mean anything."""

_NEWCOMER_SHARE = 0.5  # of its own cost, in advance, divided by its rivals
_SPREAD = 3.0  # requests between a full bucket and the emptiest one
_LONGEST_S = 60.0  # of a request, as far as that goes
_REMEMBERED_S = 60.0  # for which a client that is away is known
_MOST_AWAY = 256  # clients; those longest away are forgotten first


class Accounts:
    """What clients are owed.

    Attributes:
        credits: Seconds owed to every client that is known, present or away.
    """

    def __init__(self) -> None:
        self.credits: dict[str, float] = {}
        self._left_at: dict[str, float] = {}  # who is away, longest first
        self._request: dict[str, tuple[str, float]] = {}  # the latest one and its seconds
        self._settled_at: float | None = None

    @property
    def away(self) -> dict[str, float]:
        """Seconds that a request takes of those who are away."""
        return {client: self._seconds(client) for client in self._left_at}

    def welcome(self, client: str, request: str, cost_s: float, limit_s: float) -> None:
        """Note that an image of a client starts to run.

        Args:
            client: Whose it is.
            request: Which request it belongs to.
            cost_s: Seconds that the image takes alone.
            limit_s: Seconds of an advance for a new client, at most.
        """
        if client not in self.credits:
            present = [owed for c, owed in self.credits.items() if c not in self._left_at]
            advance = min(_NEWCOMER_SHARE * cost_s, limit_s)
            level = (sum(present) + advance) / len(present) if present else 0.0
            self.credits = {c: owed - max(level, 0.0) for c, owed in self.credits.items()}
            self.credits[client] = min(level, 0.0)
        self._left_at.pop(client, None)
        latest, seconds = self._request.get(client, ("", 0.0))
        self._request[client] = (request, cost_s + (seconds if latest == request else 0.0))

    def settle(self, present: Set[str], paid: Mapping[str, float], now_s: float) -> None:
        """Book one piece of work.

        Args:
            present: Clients of whom the engine held anything while it was done; those of
                whom nothing has run yet have no account, and pay and get nothing.
            paid: Seconds that each client's rows took.
            now_s: Clock time.
        """
        for client in self._left_at.keys() & present:  # back, though its turn has not come
            del self._left_at[client]
        here = (self.credits.keys() & present) | paid.keys()
        if not here:  # whatever it was, it has ended, and nobody else is known
            return
        for client in here - self.credits.keys():
            self.credits[client] = 0.0
        for client in self.credits:
            if client not in here:
                self._left_at.setdefault(client, now_s if client else -math.inf)
        self._forget(now_s)
        before = now_s if self._settled_at is None else self._settled_at
        self._settled_at = now_s
        share = (now_s - before) / len(self.credits)
        levels = {c: owed + share - paid.get(c, 0.0) for c, owed in self.credits.items()}
        last = min(here, key=levels.__getitem__)
        usual_s = max((self._seconds(c) for c in levels if c != last), default=0.0)
        full = min(levels[last] + _SPREAD * min(usual_s, _LONGEST_S), 0.0)
        self.credits = {client: min(level - full, 0.0) for client, level in levels.items()}

    def _seconds(self, client: str) -> float:
        """Return the seconds that a client's latest request takes."""
        return self._request.get(client, ("", 0.0))[1]

    def _forget(self, now_s: float) -> None:
        gone = [c for c, left in self._left_at.items() if now_s - left > _REMEMBERED_S]
        gone += [c for c in self._left_at if c not in gone][:-_MOST_AWAY]
        for client in gone:
            del self._left_at[client], self.credits[client]
            self._request.pop(client, None)
