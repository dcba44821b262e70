"""Databases for tests of jobs: SQLite, and PostgreSQL where Debian's is installed."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from tests.postgres import Postgres, find_postgres

from mezzotint.service.jobs.schema import META


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a PostgreSQL server of our own, on a socket in a folder of our own."""
    pytest.importorskip("psycopg")
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed")
    with Postgres() as server:
        yield server.url


@pytest.fixture
def fresh_postgres(postgres: str) -> str:
    """The same with nothing in it."""
    engine = sa.create_engine(postgres)
    META.drop_all(engine)
    engine.dispose()
    return postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Value of ``jobs.url`` for a database with nothing in it."""
    return "" if request.param == "sqlite" else request.getfixturevalue("fresh_postgres")
