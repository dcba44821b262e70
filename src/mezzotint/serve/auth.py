"""Keys: who may call, for what, how often.

A keys file has one key a line: the key itself or ``sha256:`` and its digest,
then optionally a name, scopes and limits of its own::

    sha256:5f2c...  alice  generate  rate=60 concurrency=4
    sha256:91ab...  ops    generate,manage,metrics

A line with the key alone may do everything. Keys are held as digests only and
compared in constant time; the file is read again when it changes.
"""

import asyncio
import base64
import binascii
import contextlib
import functools
import hashlib
import hmac
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mezzotint.errors import InvalidRequest, NotReady
from mezzotint.observe import log
from mezzotint.serve.config import Limits
from mezzotint.serve.errors import Forbidden, TooManyRequests, Unauthorized

__all__ = [
    "SCOPES",
    "Caller",
    "KeyRing",
    "Meter",
    "SharedMeter",
    "new_key",
    "presented_key",
    "read_keys",
]

SCOPES = ("generate", "manage", "metrics")
_RELOAD_S = 2.0
_AWAY_S = 5.0  # for which nobody asks other servers' counts that could not be reached
_T = TypeVar("_T")
_SCHEMES = ("bearer", "key", "token")  # fal says Key, older clients of Replicate Token
_HIGHEST = 100  # priority, see GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: one key of the file, or an address where there are no keys.

    Args:
        name: For logs, fairness and the ownership of jobs.
        scopes: What the caller may do.
        requests_per_minute: 0 is no limit.
        concurrency: Generations at once, 0 is no limit.
        priority: The highest ``priority`` of a request: above 0 it goes before the
            work of everybody else.
    """

    name: str
    scopes: frozenset[str] = frozenset(SCOPES)
    requests_per_minute: int = 0
    concurrency: int = 0
    priority: int = _HIGHEST

    @property
    def manages(self) -> bool:
        """Whether the caller may manage the server."""
        return "manage" in self.scopes

    def require(self, scope: str) -> None:
        """Refuse a caller without ``scope``.

        Raises:
            Forbidden: If the key lacks it.
        """
        if scope not in self.scopes:
            raise Forbidden(
                f"this key may not {scope}: its scopes are {', '.join(sorted(self.scopes))}"
            )


def new_key(name: str = "", scopes: Iterable[str] = SCOPES) -> tuple[str, str]:
    """Make an API key.

    Returns:
        The key (to give away once) and the line for the keys file (its digest).

    Raises:
        InvalidRequest: If a scope does not exist or the name has spaces.
    """
    scopes = _scopes(tuple(scopes), "scopes")
    if name.split() != ([name] if name else []) or "=" in name or name in SCOPES:
        raise InvalidRequest(
            f"name must be one word that is no scope, got {name!r}", field="name", value=name
        )
    key = "mz-" + secrets.token_urlsafe(32)
    parts = [f"sha256:{_digest(key)}", name or f"key-{_digest(key)[:8]}", ",".join(sorted(scopes))]
    return key, " ".join(parts)


def read_keys(text: str, limits: Limits) -> dict[str, Caller]:
    """Read a keys file.

    Returns:
        Callers by the hex digest of their key.

    Raises:
        InvalidRequest: If a line cannot be understood, or two keys have one name; keys
            are not repeated in the message.
    """
    callers: dict[str, Caller] = {}
    names: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        where = f"keys file, line {number}"
        digest = _line_digest(words[0], where)
        options: dict[str, str] = {}
        for word in words[1:]:
            name, equals, value = word.partition("=")
            if equals:
                options[name] = value
            elif set(word.split(",")) <= set(SCOPES):
                options["scopes"] = word
            elif "name" not in options:
                options["name"] = word
            else:
                raise InvalidRequest(f"{where}: {word!r} is no scope; scopes: {', '.join(SCOPES)}")
        caller = _caller(digest, options, limits, where)
        if digest in callers:
            raise InvalidRequest(f"{where}: this key stands in the file twice")
        if caller.name in names:
            raise InvalidRequest(
                f"{where}: the name {caller.name!r} stands in line {names[caller.name]} too; two "
                "keys of one name would see each other's jobs and share each other's limits"
            )
        names[caller.name] = number
        callers[digest] = caller
    if not callers:
        raise InvalidRequest("the keys file holds no key; `mezzotint keys new` makes one")
    return callers


def _line_digest(word: str, where: str) -> str:
    if not word.startswith("sha256:"):
        if len(word) < 16:
            raise InvalidRequest(f"{where}: a key needs at least 16 characters")
        return _digest(word)
    digest = word.removeprefix("sha256:").lower()
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise InvalidRequest(f"{where}: sha256: must be followed by 64 hex digits")
    return digest


def _caller(digest: str, options: Mapping[str, str], limits: Limits, where: str) -> Caller:
    known = {"name", "scopes", "rate", "concurrency", "priority"}
    if unknown := sorted(set(options) - known):
        raise InvalidRequest(
            f"{where}: unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}"
        )
    scopes = tuple(options["scopes"].split(",")) if "scopes" in options else SCOPES
    numbers = {
        "rate": limits.requests_per_minute,
        "concurrency": limits.concurrency,
        "priority": _HIGHEST if "manage" in scopes else 0,
    }
    for name in numbers:
        if name in options:
            if not options[name].isdecimal():
                raise InvalidRequest(f"{where}: {name} must be a whole number")
            numbers[name] = int(options[name])
    return Caller(
        name=options.get("name", f"key-{digest[:8]}"),
        scopes=frozenset(_scopes(scopes, where)),
        requests_per_minute=numbers["rate"],
        concurrency=numbers["concurrency"],
        priority=numbers["priority"],
    )


def _scopes(scopes: tuple[str, ...], where: str) -> tuple[str, ...]:
    for scope in scopes:
        if scope not in SCOPES:
            raise InvalidRequest(
                f"{where}: unknown scope {scope!r}; scopes: {', '.join(SCOPES)}",
                field="scopes",
                value=scope,
                allowed=", ".join(SCOPES),
            )
    return scopes


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def presented_key(headers: Mapping[str, str]) -> str | None:
    """Return the key a request carries: Bearer, Key, X-API-Key, or the Basic password."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() in _SCHEMES and value.strip():
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, ValueError):
            return None
    return headers.get("x-api-key") or None


class KeyRing:
    """The keys that open this server; without a file everybody may do everything.

    Args:
        path: The keys file, or None where all listeners are on loopback.
        limits: Defaults of the limits per key.

    Raises:
        InvalidRequest: If the file cannot be read or understood.
    """

    def __init__(self, path: Path | None, limits: Limits) -> None:
        self._path = path
        self._limits = limits
        self._checked = time.monotonic()
        self._stamp = self._stat()
        self._callers = self._read()

    @property
    def is_open(self) -> bool:
        """Whether there are no keys at all."""
        return self._path is None

    def callers(self) -> tuple[Caller, ...]:
        """Return who has a key, in the order of the file."""
        return tuple(self._callers.values())

    def identify(self, headers: Mapping[str, str], address: str) -> Caller:
        """Find out who asks.

        Raises:
            Unauthorized: If there are keys and the request carries none of them.
        """
        if self._path is None:
            return Caller(
                name=f"address:{address}",
                requests_per_minute=self._limits.requests_per_minute,
                concurrency=self._limits.concurrency,
            )
        self._reload()
        key = presented_key(headers)
        if key is None:
            raise Unauthorized("an API key is needed: send Authorization: Bearer KEY")
        digest = _digest(key)
        found: Caller | None = None
        for known, caller in self._callers.items():  # every key is compared, found or not
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise Unauthorized("the API key is not known here")
        return found

    def _stat(self) -> tuple[int, int] | None:
        try:
            stat = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size) if stat is not None else None

    def _read(self) -> dict[str, Caller]:
        if self._path is None:
            return {}
        try:
            return read_keys(self._path.read_text(encoding="utf-8"), self._limits)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(
                f"cannot read the keys file {self._path}: {error}", field="api_keys"
            ) from None

    def _reload(self) -> None:
        """Read a changed file again; a broken or missing one leaves the keys as they were.

        Each change is told in the log once, by the file's path and never by its keys.
        """
        now = time.monotonic()
        if now - self._checked < _RELOAD_S:
            return
        self._checked = now
        stamp = self._stat()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._callers = self._read()
            except InvalidRequest as error:
                log.warning("keys.unchanged", file=str(self._path), error=str(error))
                return
            log.info("keys.read_again", file=str(self._path), keys=len(self._callers))


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float
    held: "Counter[str]" = field(default_factory=Counter)


@dataclass(slots=True)
class Meter:
    """Counts what each caller does: a token bucket a minute, and what it holds at once.

    Args:
        clock: Seconds, rising.
        most: Callers remembered; the longest silent ones are forgotten.
    """

    clock: Callable[[], float] = time.monotonic
    most: int = 10_000
    _buckets: "OrderedDict[str, _Bucket]" = field(default_factory=OrderedDict)

    def count(self, caller: Caller) -> None:
        """Take one request from the caller's bucket.

        Raises:
            TooManyRequests: If the bucket is empty.
        """
        if not caller.requests_per_minute:
            return
        bucket = self._bucket(caller)
        rate = caller.requests_per_minute / 60
        now = self.clock()
        full = float(caller.requests_per_minute)
        bucket.tokens = min(full, bucket.tokens + (now - bucket.filled) * rate)
        bucket.filled = now
        if bucket.tokens < 1:
            raise _too_often(caller, (1 - bucket.tokens) / rate)
        bucket.tokens -= 1

    def enter(self, caller: Caller) -> None:
        """Count one generation that begins.

        Raises:
            TooManyRequests: If the caller has as many as it may have.
        """
        self.take(caller, "generations", caller.concurrency)

    def leave(self, caller: Caller) -> None:
        """Count one generation that ended."""
        self.give(caller, "generations")

    def take(self, caller: Caller, what: str, most: int) -> None:
        """Count one more thing that the caller holds.

        Args:
            caller: Who.
            what: The things, in the plural.
            most: How many it may hold at once; 0 is no limit.

        Raises:
            TooManyRequests: If the caller has as many as it may have.
        """
        held = self._bucket(caller).held
        if most and held[what] >= most:
            raise _too_many(what, most)
        held[what] += 1

    def give(self, caller: Caller, what: str) -> None:
        """Count one thing less that the caller holds."""
        self._bucket(caller).held[what] -= 1

    def generations(self, caller: Caller) -> int:
        """Return how many generations the caller has at once."""
        return self._bucket(caller).held["generations"]

    def held(self) -> dict[str, dict[str, int]]:
        """Return what every remembered caller holds, by name."""
        return {name: dict(bucket.held) for name, bucket in self._buckets.items()}

    def _bucket(self, caller: Caller) -> _Bucket:
        bucket = self._buckets.get(caller.name)
        if bucket is None:
            bucket = _Bucket(float(caller.requests_per_minute), self.clock())
            self._buckets[caller.name] = bucket
            idle = [n for n, b in self._buckets.items() if not b.held.total()]
            for name in idle[: max(0, len(self._buckets) - self.most)]:
                del self._buckets[name]
        self._buckets.move_to_end(caller.name)
        return bucket


class SharedCounts(Protocol):
    """Counts that several servers share; each call raises NotReady where they cannot be."""

    @property
    def counts_for_all(self) -> bool:
        """Whether there are other servers."""
        ...

    async def spend(self, client: str, per_minute: int) -> float:
        """Take one request; seconds until there is one, 0 if it was taken."""
        ...

    async def hold(self, client: str, most: int, own: Callable[[], int]) -> bool:
        """Count one more generation; False if all servers together have too many."""
        ...

    async def tell_held(self, client: str, own: Callable[[], int]) -> None:
        """Say how many generations there are here."""
        ...


class SharedMeter:
    """Counts requests and generations of keys, over all servers that share their counts.

    A key without limits costs nothing. While those cannot be reached each server counts
    for itself.

    Args:
        meter: What is counted here.
        counts: What is counted with others; None where there are none.
    """

    def __init__(self, meter: Meter, counts: SharedCounts | None) -> None:
        self._meter = meter
        self._counts = counts if counts is not None and counts.counts_for_all else None
        self._away_until = 0.0
        self._telling: set[asyncio.Task[None]] = set()

    async def count(self, caller: Caller) -> None:
        """Take one request from the caller's bucket.

        Raises:
            TooManyRequests: If the bucket is empty.
        """
        self._meter.count(caller)
        most, shared = caller.requests_per_minute, self._counts
        if most and shared is not None:
            wait_s = await self._ask(shared.spend(caller.name, most), 0.0)
            if wait_s:
                raise _too_often(caller, wait_s)

    @contextlib.asynccontextmanager
    async def generation(self, caller: Caller) -> AsyncGenerator[None]:
        """Count one generation while the block runs.

        Raises:
            TooManyRequests: If the caller has as many as it may have.
        """
        self._meter.enter(caller)
        most, shared = caller.concurrency, self._counts
        try:
            if most and shared is not None:
                own = functools.partial(self._meter.generations, caller)
                if not await self._ask(shared.hold(caller.name, most, own), True):
                    raise _too_many("generations", most)
            yield
        finally:
            self._meter.leave(caller)
            if most and shared is not None:
                own = functools.partial(self._meter.generations, caller)
                task = asyncio.ensure_future(shared.tell_held(caller.name, own))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)

    async def _ask(self, question: Coroutine[Any, Any, _T], otherwise: _T) -> _T:
        """Ask for what is shared; where that does not answer, leave it alone for a while."""
        if time.monotonic() < self._away_until:
            question.close()
            return otherwise
        try:
            return await question
        except NotReady as error:
            self._away_until = time.monotonic() + _AWAY_S
            log.warning("meter.alone", reason=str(error))
            return otherwise


def _too_often(caller: Caller, wait_s: float) -> TooManyRequests:
    return TooManyRequests(
        f"at most {caller.requests_per_minute} requests a minute for this key",
        retry_after_s=wait_s,
    )


def _too_many(what: str, most: int) -> TooManyRequests:
    return TooManyRequests(f"at most {most} {what} at once for this key", retry_after_s=1.0)
