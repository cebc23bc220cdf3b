"""What shows for nothing that a task is no longer what it was: another wording, or drafts that differ more often."""

from __future__ import annotations

from collections import OrderedDict, deque

from smallfirst.stats.intervals import upper_bound
from smallfirst.stats.sequential import GuaranteeTest

N_RECENT = 40
"""Requests of a task, or like it, that are looked back on."""
NEAR_ENOUGH = 0.9
"""Share of these that follow no known wording, from which on the wording counts as changed."""
N_SAME = 12
"""Different cases in a row that begin or end alike, from which on the common part counts as wording."""
MIN_SAME = 16
"""Characters that they have in common."""
_KEPT = 64
"""Characters of a case's beginning and of its end that are kept."""
MAX_TENANTS = 1_000
"""Tenants that are watched; of more, those that asked last."""
N_USUAL = 400
"""Compared drafts from which their usual share of differences is taken."""
FALSE_ALARMS = 0.025
"""Probability that the usual share is taken for smaller than it is, and that of an alarm while it stays."""


class WordingWatch:
    """The wordings of one task's recent requests that were answered."""

    def __init__(self) -> None:
        self._missed: deque[bool] = deque(maxlen=N_RECENT)
        self._cases: deque[tuple[int, str, str]] = deque(maxlen=N_SAME)

    def followed(self, text: str) -> str:
        """Add a request that follows a wording; return what is wrong, in a sentence, or nothing.

        `text` is its case. Cases that all begin or end alike mean that the prompt has grown where a slot was.
        """
        self._missed.append(False)
        case = (hash(text), text[:_KEPT], text[-_KEPT:])
        if case not in self._cases:
            self._cases.append(case)
        if len(self._cases) < N_SAME:
            return ""
        begins = _common_beginning([begin for _, begin, _ in self._cases])
        ends = _common_beginning([end[::-1] for _, _, end in self._cases])[::-1]
        same, where = max((begins, "begin"), (ends, "end"), key=lambda found: len(found[0]))
        if len(same.strip()) < MIN_SAME:
            return ""
        return f"the application's prompt has changed: the last {N_SAME} cases all {where} with {same[:60]!r}"

    def missed(self) -> str:
        """Add a request that resembles a wording and follows none; return what is wrong, in a sentence, or nothing."""
        self._missed.append(True)
        n = sum(self._missed)
        if len(self._missed) < N_RECENT or n < NEAR_ENOUGH * N_RECENT:
            return ""
        return f"the application's prompt has changed: {n} of the last {N_RECENT} requests follow no known wording"


class DraftWatch:
    """How often drafts that were not sure enough differ from the upstream's answer, which is there anyway.

    The first N_USUAL say what is usual. More differences than their upper bound mean another model behind the same
    name, or other cases; a test that may be looked at after each one decides.
    """

    def __init__(self) -> None:
        self._n = self._n_different = 0
        self._test: GuaranteeTest | None = None
        self._usual = 0.0

    def compared(self, differs: bool) -> str:
        """Add a draft; return what is wrong, in a sentence, or nothing."""
        if self._test is None:
            self._n, self._n_different = self._n + 1, self._n_different + differs
            if self._n == N_USUAL:
                self._usual = upper_bound(self._n_different, self._n, confidence=1 - FALSE_ALARMS)
                self._test = GuaranteeTest(min(self._usual, 0.999), 1 - FALSE_ALARMS)
            return ""
        self._test.update(differs)
        if not self._test.rejected:
            return ""
        found, usual = f"{self._test.losses:.0f} of {self._test.n}", f"{100 * self._usual:.3g} % at most were usual"
        why = f"{found} drafts that were not sure enough differ from them, {usual}"
        return f"the upstream's answers have changed: {why}; evidence {self._test.e_value:.0f} to 1"


class TenantWatch:
    """What is watched of one tenant: nobody's requests are evidence against another's."""

    def __init__(self) -> None:
        self.wording, self.drafts = WordingWatch(), DraftWatch()


class Watches:
    """The tenants of a task that asked last."""

    def __init__(self) -> None:
        self._by_tenant: OrderedDict[str, TenantWatch] = OrderedDict()

    def of(self, tenant: str) -> TenantWatch:
        watch = self._by_tenant.get(tenant)
        if watch is None:
            watch = self._by_tenant[tenant] = TenantWatch()
        self._by_tenant.move_to_end(tenant)
        if len(self._by_tenant) > MAX_TENANTS:
            self._by_tenant.popitem(last=False)
        return watch


def _common_beginning(texts: list[str]) -> str:
    first, last = min(texts), max(texts)  # all others stand between these two
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:n]
