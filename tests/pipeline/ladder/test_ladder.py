"""Fitting candidates within a time: candidates and a clock of the test's own, and nothing is really fitted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from smallfirst.errors import ConfigError, WeightsNotFound
from smallfirst.pipeline.ladder import ladder as module
from smallfirst.pipeline.ladder.ladder import Ladder
from smallfirst.pipeline.ladder.plan import TimeBudget
from smallfirst.pipeline.ladder.times import TimeNeeded
from smallfirst.progress import Progress
from smallfirst.project.candidates import Candidate, get_candidate
from smallfirst.project.project import Project
from smallfirst.project.task_file import TaskFile

TIMES: dict[str, TimeNeeded | None] = {
    "blend": None,
    "words": TimeNeeded(10, after_s=5),
    "encoder": TimeNeeded(20, after_s=10),
    "tuned": TimeNeeded(30, 20, 6, after_s=10),
    "small": TimeNeeded(20, 100, 5, after_s=30),
}


class Desk:
    """A run whose candidates take `factor` times what was estimated."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, minutes: float, *, factor: float = 1.0, **settings: Any
    ) -> None:
        self.now, self.factor, self.fitted = 0.0, factor, dict[str, int]()
        file = TaskFile.model_validate({"name": "desk", "data": {"train": "t.jsonl"}, "minutes": minutes, **settings})
        progress = Progress(quiet=True, clock=lambda: self.now)
        self.project = Project(file, cast(Any, SimpleNamespace(selection=())), cast(Any, None), progress)
        monkeypatch.setattr(module, "time_needed", self.time_needed)

    def time_needed(self, project: Project, candidate: Candidate) -> TimeNeeded | None:
        if candidate.name not in TIMES:
            raise WeightsNotFound(f"{candidate.name} is not here")
        return TIMES[candidate.name]

    def fit(self, project: Project, candidate: Candidate) -> None:
        """Let the time of the candidate pass, epoch by epoch until it is told to stop."""
        needed = TIMES[candidate.name] or TimeNeeded(0.0)
        self.now += self.factor * needed.begin_s
        self.fitted[candidate.name] = 0
        config = getattr(project.file.small, candidate.training_setting or "training")
        for epoch in range(1, 1 + int(config.duration.removesuffix("ep")) if needed.epochs else 1):
            self.now += self.factor * needed.epoch_s
            self.fitted[candidate.name] = epoch
            if project.on_epoch(epoch, 0.5):
                break

    def run(self, *names: str) -> Ladder:
        ladder = Ladder(
            self.project,
            [get_candidate(name) for name in names or ("words", "encoder", "tuned", "small")],
            TimeBudget(self.project),
        )
        ladder.fit(self.fit)
        return ladder


def test_all_are_fitted_quickest_first_in_ample_time(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, 20)
    assert desk.run().left_out == {}
    assert list(desk.fitted.items()) == [("words", 0), ("encoder", 0), ("tuned", 6), ("small", 5)]


def test_what_does_not_end_in_time_is_never_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, 5)
    why = desk.run().left_out["small"]
    assert list(desk.fitted) == ["words", "encoder", "tuned"]
    # Of 300 s 25 are kept, 180 went on fitting and 25 on measuring: 70 are left of the 633 that it takes.
    assert why == "about 11 minutes, 70 seconds were left; --minutes 15 would include it"


def test_a_slow_machine_ends_a_fine_tune_at_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, 5, factor=1.5)
    desk.run()
    # 275 s for candidates: 45 to fit the linear ones, 25 to measure; 45 and 30 an epoch leave room for 5 epochs.
    assert list(desk.fitted.items()) == [("words", 0), ("encoder", 0), ("tuned", 5)]
    assert desk.now <= 275


def test_time_is_kept_for_what_combines_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both and the blend take 1.15 × (30 + 2.5 × 15) = 78 of the 81 s that are for candidates.
    desk = Desk(monkeypatch, 1.6)
    assert desk.run("blend", "encoder", "words").left_out == {}
    assert list(desk.fitted) == ["words", "encoder", "blend"]
    shorter = Desk(monkeypatch, 1.4)
    assert list(shorter.run("blend", "encoder", "words").left_out) == ["words"]
    assert Desk(monkeypatch, 1.4).run("encoder", "words").left_out == {}


def test_what_cannot_be_used_here_is_left_out_unless_the_task_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, 20)
    assert desk.run("words", "larger_encoder").left_out == {"larger_encoder": "larger_encoder is not here"}
    named = Desk(monkeypatch, 20, ladder=["words", "larger_encoder"])
    with pytest.raises(WeightsNotFound):
        named.run("words", "larger_encoder")


def test_a_candidate_that_routing_needs_is_fitted_first_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, 11.7, routing={"small": "small"})
    desk.run("tuned", "small")
    assert list(desk.fitted) == ["small"]
    with pytest.raises(ConfigError, match=r"routing needs small.*--minutes 12 would include it"):
        Desk(monkeypatch, 5, routing={"small": "small"}).run()
