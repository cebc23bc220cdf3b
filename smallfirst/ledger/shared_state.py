"""Small values that processes over one ledger share beside its rows, such as counts and accepted credentials.

A value is JSON under a name. It is replaced only if nobody has replaced it meanwhile (compare and set), so no process
waits for another that is frozen. Times are the database's, so clocks of machines need not agree.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, func, literal, select

from smallfirst.ledger.database import SHARED, Database, LedgerAway, unavailable

_MOST_TRIES = 100
R = TypeVar("R")
Change = Callable[[Any, float], tuple[Any, R]]
"""From a value (None: there is none) and the time in seconds to the value after and a result; it may run again, and
must leave the value that it gets as it is."""


class SharedState:
    """The values of a ledger's database. Any thread may use it. Raise LedgerAway."""

    def __init__(self, database: Database) -> None:
        self.place, self._database = database.place, database

    def version(self, name: str) -> int:
        """Return how often a value was replaced; 0 if there is none."""
        return self._look(SHARED.c.version, name) or 0

    def get(self, name: str) -> Any:
        text = self._look(SHARED.c.value, name)
        return None if text is None else json.loads(text)

    def under(self, prefix: str) -> dict[str, Any]:
        """Return the values whose names begin with `prefix`, by what follows it."""
        t = SHARED.c
        with self._database.short_read() as connection:
            found = connection.execute(select(t.name, t.value).where(t.name.startswith(prefix, autoescape=True))).all()
        return {name[len(prefix) :]: json.loads(text) for name, text in found if name.startswith(prefix)}

    async def update(self, name: str, change: Change[R]) -> R:
        """Replace a value by what `change` makes of it, in a thread, and return the result."""
        return await asyncio.to_thread(self.replace, name, change)

    def replace(self, name: str, change: Change[R]) -> R:
        """Replace a value by what `change` makes of it, and return the result; nothing is written if it is the same."""
        for _ in range(_MOST_TRIES):
            with self._database.short_write() as connection:
                done, result = self._try(connection, name, change)
            if done:
                return result
        error = TimeoutError(f"{name}: others replace it all the time")
        raise unavailable(self.place, "takes no value", error, LedgerAway)

    def _try(self, connection: Connection, name: str, change: Change[R]) -> tuple[bool, R]:
        t, is_file = SHARED.c, self._database.path is not None
        now = literal(time.time()) if is_file else func.extract("epoch", func.clock_timestamp())
        known = [select(column).where(t.name == name).scalar_subquery() for column in (t.version, t.value)]
        at, version, text = connection.execute(select(now, *known)).one()
        before = None if text is None else json.loads(text)
        after, result = change(before, float(at))
        if after is before:
            return True, result
        value = json.dumps(after, ensure_ascii=False, separators=(",", ":"))
        if version is None:
            row = self._database.insert(SHARED).values(name=name, version=1, value=value)
            done = row.on_conflict_do_nothing().returning(t.version)
            return connection.execute(done).first() is not None, result
        replaced = SHARED.update().where(t.name == name, t.version == version)
        return connection.execute(replaced.values(version=version + 1, value=value)).rowcount == 1, result

    def _look(self, column: Any, name: str) -> Any:
        with self._database.short_read() as connection:
            return connection.execute(select(column).where(SHARED.c.name == name)).scalar()
