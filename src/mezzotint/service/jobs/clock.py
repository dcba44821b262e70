"""Clock: the time that leases and ages go by is the database's, whatever a server's own says."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["now"]


class now(FunctionElement[float]):
    """Seconds since 1970 on the database's clock, while the statement runs."""

    type = sa.Float()
    inherit_cache = True


@compiles(now, "postgresql")
def _in_postgresql(_element: Any, _compiler: Any, **_: Any) -> str:
    return "CAST(extract(epoch from clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(now, "sqlite")
def _in_sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
