"""A cap on what requests may cost.

The worst case of a request is reserved before it is sent and released when its cost is known. So the sum of paid and
reserved amounts never exceeds the cap, whatever the answers cost.
"""

from __future__ import annotations

import asyncio


class SpendingCap:
    """Amounts paid and reserved under a cap; None is no cap."""

    def __init__(self, cap_usd: float | None, spent_usd: float = 0.0) -> None:
        self.cap_usd = cap_usd
        self.spent_usd = spent_usd
        self.max_usd = 0.0
        self._reserved: list[float] = []
        self._changed = asyncio.Condition()

    async def reserve(self, worst_usd: float) -> float | None:
        """Return the amount reserved for a request; None if the cap leaves too little.

        Wait while other requests may still release something. Once an answer has cost more than its worst case, that
        amount is reserved for every request.
        """
        async with self._changed:
            while True:
                amount = max(worst_usd, self.max_usd)
                if self.cap_usd is None or self.spent_usd + sum(self._reserved) + amount <= self.cap_usd:
                    self._reserved.append(amount)
                    return amount
                if not self._reserved:
                    return None
                await self._changed.wait()

    async def release(self, reserved_usd: float, paid_usd: float) -> None:
        async with self._changed:
            self._reserved.remove(reserved_usd)
            self.spent_usd += paid_usd
            if paid_usd > reserved_usd:
                self.max_usd = max(self.max_usd, paid_usd)
            self._changed.notify_all()
