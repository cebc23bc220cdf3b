"""Few rows are answered out of fold before they are fitted together; with `minutes` made-up times, and a clock."""

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fixtures.preflight import task_of, things

from smallfirst.base.errors import ConfigError, WeightsNotFound
from smallfirst.base.progress import Progress
from smallfirst.models.manifest import TrainedOn, read_manifest
from smallfirst.path import train as module
from smallfirst.path.project.candidates import Candidate, fits_in_folds, get_candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FittedCandidates, RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.path.train import Race, Rung, TimeBudget, TimeNeeded, fit_in_time, train_stage
from smallfirst.training.run import Run

pytestmark = pytest.mark.usefixtures("module_home")


LADDER = ("words", "encoder", "tuned")


def few_rows(folder: Path, encoder: Path, **more: Any) -> Project:
    """54 training and 4 selection rows of three labels."""
    small = {"encoder": str(encoder), "encoder_training": {"duration": "2ep", "batch_tokens": 256}}
    return task_of(folder, {"train": things(90)}, ladder=list(LADDER), small=small, **more)


def test_few_rows_are_answered_out_of_fold_and_then_fitted_together(
    tmp_path: Path, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = few_rows(tmp_path, tiny_encoder_folder, routing={"small": "tuned"})  # fitted whatever its folds say
    rows, answered = project.rows.development, Counter[str]()
    for name in LADDER:
        candidate = get_candidate(name)

        def counted(*args: Any, name: str = name, ask: Any = candidate.out_of_fold) -> Any:
            answered[name] += 1
            return ask(*args)

        monkeypatch.setattr(candidate, "out_of_fold", counted)
    refit = get_candidate("tuned").refit

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(get_candidate("tuned"), "refit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_stage(project)
    monkeypatch.setattr(get_candidate("tuned"), "refit", refit)
    run_folder = train_stage(project, resume=True)
    assert answered == dict.fromkeys(LADDER, 1)  # what was answered before is not answered again

    for name, n_folds in zip(LADDER, (5, 5, 3), strict=True):
        folds = run_folder.folds(name)
        assert (folds.n_folds, len(folds.answers)) == (n_folds, len(rows))
        assert folds.dataset_fingerprint == rows.content_fingerprint
        said = [one.text == e.answer for one, e in zip(folds.completions(name), rows.examples, strict=True)]
        assert sum(said) > 0.6 * len(said)
        manifest = read_manifest(run_folder.model_folder(name))
        assert manifest.temperature == folds.manifest.temperature
        seen = TrainedOn.read(run_folder.model_folder(name))
        assert seen == TrainedOn.of(rows)
    tuned = run_folder.folds("tuned")
    run = Run.load(run_folder.path / "tuned" / "run.json")
    assert (run.n_train, run.best_epoch) == (len(rows), tuned.best_epoch)
    assert run.config.frozen_layers == 1  # of two: few rows
    assert [score for _, score in run.validation_curve] == list(tuned.curve[: len(run.validation_curve)])
    assert not (run_folder.path / "folds" / "tuned" / "training").exists()


def test_a_fine_tune_that_will_not_win_ends_with_its_first_fold(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    project = few_rows(tmp_path, tiny_encoder_folder)
    run_folder = train_stage(project)
    found = run_folder.fitted()
    assert found.fitted == ("words", "encoder")
    assert set(found.scores) == {"words", "encoder"}
    assert re.fullmatch(
        r"it is right on 0\.\d{3} of the first \d\d rows answered out of fold, (words|encoder) on (0\.9\d\d|1\.000)",
        found.left_out["tuned"],
    )
    assert [path.name for path in (run_folder.path / "folds" / "tuned").iterdir()] == ["1.json"]
    assert not run_folder.model_folder("tuned").exists()


def test_a_larger_fine_tune_ends_with_its_first_fold_if_it_gains_less_than_the_choice_gives_up(
    tmp_path: Path, tiny_encoder_folder: Path
) -> None:
    small = {"larger_encoder": str(tiny_encoder_folder), "encoder": str(tiny_encoder_folder)}
    small |= {"encoder_training": {"duration": "2ep", "batch_tokens": 256}}  # type: ignore[dict-item]
    routing = {"accuracy_within": 0.5}
    rows, ladder = {"train": things(90)}, ["tuned", "larger_tuned"]
    run_folder = train_stage(task_of(tmp_path, rows, ladder=ladder, small=small, routing=routing))
    assert (found := run_folder.fitted()) is not None
    assert found.fitted == ("tuned",)
    assert "answered out of fold, tuned on" in found.left_out["larger_tuned"]


def test_what_has_no_weights_here_is_left_out_unless_nothing_remains(tmp_path: Path) -> None:
    missing = {"base": "nobody/base", "encoder": "nobody/encoder"}
    found = train_stage(task_of(tmp_path / "labels", {"train": things(90)}, small=missing)).fitted()
    assert found.fitted == ("words",)
    assert set(found.left_out) == {"encoder", "tuned", "small", "blend"}
    assert "nobody/encoder" in found.left_out["encoder"]
    with pytest.raises(WeightsNotFound, match="nobody/encoder"):
        train_stage(task_of(tmp_path / "named", {"train": things(90)}, ladder=["words", "encoder"], small=missing))
    fields = [{"text": f"buy {i} cards", "target": {"item": "cards"}} for i in range(90)]
    with pytest.raises(
        WeightsNotFound, match=r"no candidate can be fitted: tagger: .*nobody/encoder.*small: .*nobody/base"
    ):
        train_stage(task_of(tmp_path / "fields", {"train": fields}, kind="extract", small=missing))


@pytest.mark.parametrize(
    ("scores", "settings", "few", "begun"),
    [
        ({"words": 0.97}, {}, True, True),
        ({"words": 0.985}, {}, True, False),  # half of 1.5 % of errors are less than the point that the choice gives up
        ({"words": 0.985}, {"routing": {"accuracy_within": 0.005}}, True, True),
        ({"words": 0.985}, {"routing": {"usd_per_wrong_answer": 0.1}}, True, True),
        ({"words": 0.985}, {"ladder": ["words", "larger_tuned"]}, True, True),
        ({"encoder": 0.9, "larger_encoder": 0.905}, {}, True, False),
        ({"encoder": 0.9, "larger_encoder": 0.905}, {}, False, True),  # of many rows a fine-tune may make up for it
        ({"encoder": 0.9, "larger_encoder": 0.905}, {"routing": {"usd_per_wrong_answer": 0.1}}, True, True),
        ({"encoder": 0.9, "larger_encoder": 0.92}, {}, True, True),
    ],
)
def test_a_larger_encoder_is_not_begun_where_it_can_gain_too_little(
    tmp_path: Path, scores: dict[str, float], settings: dict[str, Any], few: bool, begun: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "fits_in_folds", lambda project: few)
    project, fetched = task_of(tmp_path, {"train": things(90)}, **settings), list[str]()
    found = FittedCandidates(ladder=("larger_tuned",), scores=scores)
    race = Race(project, RunFolder.new(project.file.name), found)
    larger = SimpleNamespace(
        name="larger_tuned",
        title="larger",
        encoder_setting="larger_encoder",
        training_setting="encoder_training",
        n_folds=0,
        encoder_name=lambda small: small.larger_encoder,
        fit=lambda project, run_folder: fetched.append("larger"),
    )
    race.fit(project, cast(Any, larger))
    assert (bool(fetched), "larger_tuned" in race.found.left_out) == (begun, not begun)


def test_from_a_thousand_rows_on_selection_rows_choose(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    project = few_rows(tmp_path, tiny_encoder_folder)
    many = project.rows.train.subset("many", project.rows.train.examples * 1000)
    assert fits_in_folds(project)
    assert not fits_in_folds(project._replace(rows=project.rows.model_copy(update={"train": many})))
    linear = project._replace(file=project.file.model_copy(update={"ladder": ("words",)}))
    some = many.subset("some", many.examples[:2000])
    assert fits_in_folds(linear._replace(rows=linear.rows.model_copy(update={"train": some})))  # in seconds
    assert not fits_in_folds(linear._replace(rows=linear.rows.model_copy(update={"train": many})))


TIMES: dict[str, TimeNeeded | None] = {
    "blend": None,
    "words": TimeNeeded(10, after_s=5),
    "encoder": TimeNeeded(20, after_s=10),
    "tuned": TimeNeeded(150, after_s=10),
    "small": TimeNeeded(520, after_s=30),
}
EPOCHS = {"words": (10, 0, 0), "encoder": (20, 0, 0), "tuned": (30, 20, 6), "small": (20, 100, 5)}
"""Seconds to begin and of each epoch, and the epochs."""


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
        begin_s, epoch_s, epochs = EPOCHS.get(candidate.name, (0, 0, 0))
        self.now += self.factor * begin_s
        self.fitted[candidate.name] = 0
        for epoch in range(1, 1 + epochs):
            self.now += self.factor * epoch_s
            self.fitted[candidate.name] = epoch
            if project.on_epoch(epoch, 0.5):
                break

    def run(self, *names: str) -> dict[str, str]:
        """Fit in time; return why each of the others was left out."""
        candidates = [get_candidate(name) for name in names or ("words", "encoder", "tuned", "small")]
        return fit_in_time(self.project, candidates, TimeBudget(self.project), self.fit)


def test_all_are_fitted_quickest_first_in_ample_time(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, 20)
    assert desk.run() == {}
    assert list(desk.fitted.items()) == [("words", 0), ("encoder", 0), ("tuned", 6), ("small", 5)]


def test_what_does_not_end_in_time_is_never_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, 5)
    why = desk.run()["small"]
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
    assert desk.run("blend", "encoder", "words") == {}
    assert list(desk.fitted) == ["words", "encoder", "blend"]
    shorter = Desk(monkeypatch, 1.4)
    assert list(shorter.run("blend", "encoder", "words")) == ["words"]
    assert Desk(monkeypatch, 1.4).run("encoder", "words") == {}


def test_a_candidate_that_routing_needs_is_fitted_first_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, 11.7, routing={"small": "small"})
    desk.run("tuned", "small")
    assert list(desk.fitted) == ["small"]
    with pytest.raises(ConfigError, match=r"routing needs small.*--minutes 12 would include it"):
        Desk(monkeypatch, 5, routing={"small": "small"}).run()


LARGE = Rung("larger", 32, TimeNeeded(400, after_s=60))


def test_what_is_left_out_is_told_with_the_time_that_would_include_it() -> None:
    # 1.15 × 460 s = 529 s; 300 s were left of 1200, and 5 % of the time that is added is kept, so 1441 s do.
    assert LARGE.why_left_out(300, 1200) == "about 9 minutes, 5 minutes were left; --minutes 25 would include it"


def test_time_is_kept_for_what_follows_and_time_before_a_resumption_counts() -> None:
    now = [100.0]
    file = TaskFile.model_validate({"name": "desk", "data": {"train": "t.jsonl"}, "minutes": 10})
    project = Project(file, cast(Any, None), cast(Any, None), Progress(quiet=True, clock=lambda: now[0]))
    budget = TimeBudget(project, began=90, used_minutes=1)
    now[0] += 20
    assert budget.used_s == 90
    # 10 s went by before the ladder, so that 20 s are kept for what comes after it.
    assert budget.left_s == pytest.approx(600 - 90 - (0.05 * 600 + 20))
    budget.keep(70)
    assert budget.left_s == pytest.approx(390)
