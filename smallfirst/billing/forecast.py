"""What a task will cost and save a month, from its traffic so far: break-even, ranges, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import computed_field
from scipy import special

from smallfirst.billing.saved import Amount, Basis
from smallfirst.billing.traffic import TaskPeriod
from smallfirst.pricing.money import format_usd
from smallfirst.records import Record
from smallfirst.report.economics import break_even_requests
from smallfirst.report.formats import count, percent
from smallfirst.stats.intervals import Estimate, ratio_interval

DAYS = 30
_PART = 0.975
"""Confidence of each of two ranges whose product is to hold with 95 % (Bonferroni)."""
_CAUTION: dict[Basis, str] = {
    "escalated": "A rough guide: the large model's price is that of the requests that it answered, not of those that "
    "stayed small; audits measure it (routing.monitor.audit_share).",
    "evaluation": "A rough guide: the large model's price is that of the last run's rows; audits of live answers "
    "measure it (routing.monitor.audit_share).",
}
_WIDER = 1.15
"""How much wider such a range is than one of 95 %, for many units."""


class Forecast(Record):
    """A month of 30 days at the traffic seen. Ranges hold with 95 %; a range without an end has no data for it yet."""

    n_days: int
    """Whole days of traffic that it rests on."""
    requests: Estimate | None
    """Requests in the month, with the range in which it will be; None before there are two whole days."""
    growth: float | None
    """Part by which requests grew from the first to the second half of these days; None if by no more than chance."""
    pace: float
    """Requests of a month at the mean rate so far, nights and weekends or not."""
    share_small: Estimate
    gain_usd: Amount
    """USD saved a request, before rent: what the large model would bill, less what small answers, drafts and audits
    cost."""
    priced_usd: float
    """Part of `gain_usd` that moves with the large model's price and the share that stays small."""
    rent_usd: float
    """Rent of the machines for the month; 0 where it is in `gain_usd`, since the ledger has no uptime."""
    utilisation: float
    """Busy part of these machines, in [0, 1]; 0 if unknown."""
    once_usd: float
    """Spent once: training, labelling, evaluation."""
    basis: Basis
    """What the large model's price of a request rests on, as in `Saving`; ranges hold for `audits` alone."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def saved_usd(self) -> Amount | None:
        """USD saved in the month, rent paid; negative: a loss. None without a forecast of requests."""
        if (v := self.requests) is None:
            return None
        low, high = self.gain_usd.low_usd, self.gain_usd.high_usd
        return Amount(
            usd=self.saved_at(),
            low_usd=None if low is None else low * (v.low if low > 0 else v.high) - self.rent_usd,
            high_usd=None if high is None else high * (v.high if high > 0 else v.low) - self.rent_usd,
            n=self.gain_usd.n,
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def pays_from(self) -> int | None:
        """Requests a month that earn the rent; None: it does not at any volume."""
        return break_even_requests(self.rent_usd, 0.0, 1000 * self.gain_usd.usd)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def paid_back_after(self) -> int | None:
        """Requests after which the saving has paid what was spent once; None: never at this traffic."""
        if self.requests is None or not self.requests.value:
            return None
        return break_even_requests(self.once_usd, 0.0, 1000 * self.saved_at() / self.requests.value)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def max_price_cut(self) -> float | None:
        """Fall of the large model's price, in [0, 1], that ends the saving; None without a saving."""
        v = self.requests.value if self.requests else 0.0
        return self.saved_at() / (v * self.priced_usd) if v and self.priced_usd > 0 and self.saved_at() > 0 else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def sensitivity(self) -> dict[str, float]:
        """USD that the month would save if one thing were different, by what that is."""
        if self.requests is None:
            return {}
        most = 1 / self.share_small.value if self.share_small.value else 1.0
        return {
            **{f"requests × {by:g}": self.saved_at(by) for by in (0.1, 0.5, 2, 10)},
            **{f"the large model's price −{1 - by:.0%}": self.saved_at(1, by) for by in (0.5, 0.2, 0.1)},
            **{f"share that stays small × {by:.2g}": self.saved_at(1, by) for by in (0.5, 0.8, most) if by <= most},
        }

    def saved_at(self, volume: float = 1.0, priced: float = 1.0) -> float:
        """Return USD saved in the month at so many times the requests, and the large model's price or the share small.

        More work than the machines can do takes more of them.
        """
        gain = self.gain_usd.usd + (priced - 1) * self.priced_usd
        machines = max(1, math.ceil(volume * self.utilisation))
        return volume * (self.requests.value if self.requests else self.pace) * gain - machines * self.rent_usd

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """Whether the small model pays, in plain words."""
        sentences = (self._answer, self._volume, self._price, self._once, self._growth, _CAUTION.get(self.basis))
        return " ".join(filter(None, sentences))

    @property
    def _answer(self) -> str:
        if (saved := self.saved_usd) is None:
            rent = f", with the rent of its machines ({format_usd(self.rent_usd)}) paid" if self.rent_usd else ""
            usd = self.saved_at()
            month = f"saves about {format_usd(usd)}" if usd >= 0 else f"costs about {format_usd(-usd)} more"
            return (
                f"Too early to say: a forecast needs two whole days of traffic, there are {self.n_days}. At the pace "
                f"so far a month has {count(round(self.pace))} requests and {month}{rent}."
            )
        if saved.low_usd is not None and saved.low_usd > 0:
            return f"The small model pays: it saves {saved} a month."
        if saved.high_usd is not None and saved.high_usd < 0:
            more = Amount(usd=-saved.usd, low_usd=-saved.high_usd, high_usd=-(saved.low_usd or 0.0), n=saved.n)
            return f"Keep the API: with the small model a month costs more, by {more}."
        if saved.low_usd is None:
            return f"Not decided: {saved} a month by the figures so far, which are too few for a range."
        return f"Not decided: the month saves {saved}, which can be a loss or a saving."

    @property
    def _growth(self) -> str:
        if self.growth is None:
            return ""
        how = f"{'grew' if self.growth > 0 else 'fell'} by {percent(abs(self.growth), digits=0)}"
        return f"Requests {how} from the first to the second half of these days: the forecast does not go on with that."

    @property
    def _volume(self) -> str:
        if self.requests is None or not self.rent_usd:
            return ""
        machines = f"Its machines ({format_usd(self.rent_usd)} a month)"
        if self.pays_from is None:
            return f"{machines} are earned at no number of requests."
        now = count(round(self.requests.value))
        return f"{machines} are earned from {count(self.pays_from)} requests a month; now there are {now}."

    @property
    def _price(self) -> str:
        cut = self.max_price_cut
        if cut is None or cut >= 1:
            return ""
        return f"If the large model's price falls by {percent(cut, digits=0)}, the saving is gone."

    @property
    def _once(self) -> str:
        after, saved = self.paid_back_after, self.saved_usd
        if not self.once_usd or saved is None:
            return ""
        spent = f"What was spent once ({format_usd(self.once_usd)})"
        if after is None or self.requests is None:
            return f"{spent} is never paid back at this traffic."
        days = math.ceil(after / self.requests.value * DAYS)
        return f"{spent} is paid back after {count(after)} requests, about {count(days)} day{'s' * (days > 1)}."


def forecast(
    days: Sequence[TaskPeriod],
    units: Sequence[TaskPeriod],
    large_usd: Amount,
    *,
    basis: Basis = "audits",
    rent_usd: float = 0.0,
    utilisation: float = 0.0,
    once_usd: float = 0.0,
) -> Forecast:
    """Return the forecast from whole `days` of traffic and from `units`: these days, or the hours of a short time.

    `large_usd` is what the large model bills a request that stays small, by this `basis`. `rent_usd` is the machines'
    rent for a month; 0: machine time is charged to requests as the ledger has it.
    """
    n = [one.n for one in units]
    gains = [one.saved_usd(large_usd.usd) + (one.own_usd if rent_usd else 0.0) for one in units]
    gain, small = ratio_interval(gains, n, confidence=_PART), ratio_interval([one.n_small for one in units], n)
    half: float | None = None
    if large_usd.half_usd is not None and math.isfinite(gain.high):
        half = math.hypot(gain.high - gain.value, _WIDER * small.value * large_usd.half_usd)
    return Forecast(
        n_days=len(days),
        requests=month_of([one.n for one in days]),
        growth=growth_of([one.n for one in days]),
        pace=sum(n) / max(1, len(n)) * DAYS * (1 if units == days else 24),
        share_small=small.model_copy(update={"low": max(0.0, small.low), "high": min(1.0, small.high)}),
        gain_usd=Amount.around(gain.value, half, gain.n),
        priced_usd=sum(one.n_small * large_usd.usd - one.audit_usd for one in units) / max(1, sum(n)),
        rent_usd=rent_usd,
        utilisation=utilisation,
        once_usd=once_usd,
        basis=basis,
    )


def month_of(counts: Sequence[int], *, days: int = DAYS, confidence: float = _PART) -> Estimate | None:
    """Return the requests of the next `days` from those of past days, with a prediction interval; None below two days.

    Quasi-Poisson: the variance is a multiple of the mean, at least 1, found from the days; from three weeks on from
    whole weeks, since weekdays differ and a trend shows as variance there. `n` is the number of days used.
    """
    weeks = len(counts) // 7
    used = np.asarray(counts[-7 * weeks :] if weeks else counts, dtype=np.float64)
    if len(used) < 2 or not used.any():
        return None
    # The day after the last one has the weekday of the first one.
    value = float(np.resize(used.reshape(weeks, 7).mean(axis=0), days).sum() if weeks else used.mean() * days)
    units = used.reshape(weeks, 7).sum(axis=1) if weeks >= 3 else used
    dispersion = max(1.0, float(units.var(ddof=1) / units.mean()))
    t = float(special.stdtrit(len(units) - 1, 0.5 + confidence / 2))
    half = t * math.sqrt(dispersion * value * (1 + days / len(used)))
    return Estimate(value=value, low=max(0.0, value - half), high=value + half, n=len(used))


def growth_of(counts: Sequence[int]) -> float | None:
    """Return by what part requests grew from the first to the second half of past weeks; None if that may be chance.

    Below two whole weeks it is None. An odd week in the middle is left out.
    """
    half = len(counts) // 14 * 7
    if not half or not sum(counts[:half]):
        return None
    halves = np.array([counts[:half], counts[-half:]], dtype=np.float64)
    dispersion = max(1.0, float(halves.var(axis=1, ddof=1).mean() / halves.mean()))
    first, second = halves.sum(axis=1)
    z = (second - first) / math.sqrt(dispersion * (first + second))
    return second / first - 1 if abs(z) > special.stdtrit(2 * half - 2, 0.5 + _PART / 2) else None
