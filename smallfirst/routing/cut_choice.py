"""Choose cuts and the number of labels: what labels above each cut would probably show, simulated before one is bought.

Rows that were labelled before give the error by rank of confidence: a logistic curve, in as many versions as those rows
make likely (the Bayesian bootstrap, Rubin 1981, of the rows and one wrong answer more). Each version labels the traffic
from the most confident request down to a cut, and is tested as the labels of a person will be.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from smallfirst.records import Record
from smallfirst.stats.low_rate import low_rate_evidence

BANDS = 20
"""Cuts are considered at so many equal shares of the traffic."""
SIZES = (40, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500, 600, 800, 1000)
"""Numbers of labels that are considered."""
DOUBT = 0.3
"""Wrong answers that are added to the rows that were labelled before, at a confidence of chance."""
WORLDS = 100
CHANCE = 0.8
"""A number of labels is advised if as many show the wanted share this often."""
ENOUGH = 0.9
"""Without a wanted share, labels are added until this part of what SIZES[-1] bring is reached."""


class CutOption(Record):
    """Labels above the loosest of some cuts, and what they probably bring."""

    n_labels: int
    """Labels above the loosest cut."""
    bands: tuple[int, ...]
    """The cuts in the order of testing, each as the number of bands above it."""
    expected_share: float
    """Mean share of the traffic above the loosest cut that is shown, in [0, 1]."""
    likely_share: float
    """Share that is shown, or more, with a probability of CHANCE."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The cuts as shares of the traffic."""
        return tuple(band / BANDS for band in self.bands)


class CutChooser:
    """What labels above each cut probably show."""

    def __init__(self, rank: np.ndarray, right: np.ndarray, *, limit: float, level: float, seed: int = 0) -> None:
        """Take pilot rows: the share of traffic that is more confident than each, in [0, 1], and whether it is right.

        `limit` is the promised error in (0, 1), `level` the probability with which it may be broken.
        """
        self.limit, self.level = limit, level
        self._draw = np.random.default_rng(seed)
        self._rates = self._curves(np.asarray(rank, dtype=float), np.asarray(right, dtype=bool))
        above = self._rates.cumsum(axis=1) / np.arange(1, BANDS + 1)
        inside = np.minimum(above, limit)
        self._growth = (special.rel_entr(inside, limit) + special.rel_entr(1 - inside, 1 - limit)).mean(axis=0)
        self._shown = {band: self._simulate(band) for band in range(1, BANDS + 1)}

    def best(self, n_labels: int, *, n_traffic: int) -> CutOption:
        """Return the cuts with the largest expected share for so many labels."""
        n_labels = min(n_labels, n_traffic)
        place = max(i for i, n in enumerate(SIZES) if n <= max(n_labels, SIZES[0]))
        options = [self._option(band, place, n_labels) for band in range(1, BANDS + 1)]
        fitting = [one for one in options if band_size(one.bands[-1], n_traffic) >= n_labels] or options[-1:]
        return max(fitting, key=lambda one: (one.expected_share, self._shown[one.bands[-1]].mean()))

    def for_share(self, share: float, *, n_traffic: int) -> CutOption:
        """Return the cuts that show `share` with the fewest labels at CHANCE; with the best chance if none does."""
        first = min(BANDS, max(1, math.ceil(share * BANDS - 1e-9)))
        chances = {b: (self._shown[b] >= first).mean(axis=0) for b in range(first, BANDS + 1)}
        for place, n in enumerate(SIZES):
            enough = [b for b in chances if chances[b][place] >= CHANCE and band_size(b, n_traffic) >= n]
            if enough:
                return self._option(enough[0], place, n)
        best = max(chances, key=lambda b: chances[b][-1])
        return self._option(best, len(SIZES) - 1, min(SIZES[-1], band_size(best, n_traffic)))

    def usual(self, *, n_traffic: int) -> CutOption:
        """Return the fewest labels that bring most of what many would."""
        options = [self.best(n, n_traffic=n_traffic) for n in SIZES if n <= max(n_traffic, SIZES[0])]
        enough = ENOUGH * max(one.expected_share for one in options)
        return next(one for one in options if one.expected_share >= enough)

    def _option(self, band: int, place: int, n_labels: int) -> CutOption:
        bands, shown = self._sequence(band), self._shown[band][:, place]
        likely = float(np.quantile(shown, 1 - CHANCE, method="lower"))
        expected = float(shown.mean()) / BANDS
        return CutOption(n_labels=n_labels, bands=bands, expected_share=expected, likely_share=likely / BANDS)

    def _sequence(self, band: int) -> tuple[int, ...]:
        """Return the cuts tested on the way to one: from half of it, or where evidence grows fastest."""
        growth = self._growth[:band] * np.arange(1, band + 1)
        return tuple(range(max(int(growth.argmax()) + 1, (band + 1) // 2), band + 1))

    def _simulate(self, band: int) -> np.ndarray:
        """Return, by world and size, the loosest cut that labels above `band` show; 0 for none."""
        sizes = np.array(SIZES)
        drawn = self._draw.integers(band, size=(WORLDS, SIZES[-1]))
        wrong = self._draw.random(drawn.shape) < np.take_along_axis(self._rates, drawn, axis=1)
        passed, found = np.ones((WORLDS, len(SIZES)), dtype=bool), np.zeros((WORLDS, len(SIZES)), dtype=int)
        for cut in self._sequence(band):
            inside = drawn < cut
            n, errors = (c.cumsum(axis=1)[:, sizes - 1] for c in (inside, inside & wrong))
            evidence = low_rate_evidence(errors, n, self.limit)
            passed &= np.maximum.accumulate(evidence, axis=1) * self.level >= 1
            found = np.where(passed, cut, found)
        return found

    def _curves(self, rank: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the error rate by world and band: weighted logistic curves of the rank, with a ridge on the slope."""
        worlds, n = WORLDS, len(rank)
        weights = self._draw.gamma(np.append(np.ones(n), DOUBT), size=(worlds, n + 1))
        extra = rank[self._draw.integers(n, size=worlds)] if n else np.full(worlds, 0.5)
        x = np.concatenate([np.broadcast_to(rank, (worlds, n)), extra[:, None]], axis=1) - 0.5
        wrong = np.append(~right, True).astype(float)
        slope = intercept = np.zeros(worlds)
        for _ in range(30):  # Newton's method on both parameters of every world at once
            rate = special.expit(intercept[:, None] + slope[:, None] * x)
            left, curved = weights * (wrong - rate), weights * rate * (1 - rate) + 1e-9
            g0, g1 = left.sum(axis=1) - 0.01 * intercept, (left * x).sum(axis=1) - 0.05 * slope
            h00, h01 = curved.sum(axis=1) + 0.01, (curved * x).sum(axis=1)
            h11 = (curved * x * x).sum(axis=1) + 0.05
            det = h00 * h11 - h01**2
            step0, step1 = (h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det
            intercept, slope = intercept + np.clip(step0, -2, 2), slope + np.clip(step1, -4, 4)
        middle = (np.arange(BANDS) + 0.5) / BANDS - 0.5
        return np.asarray(special.expit(intercept[:, None] + slope[:, None] * middle))


def band_size(band: int, n_traffic: int) -> int:
    """Return how many of the traffic's requests are above a cut."""
    return math.floor(band * n_traffic / BANDS)
