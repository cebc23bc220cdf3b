"""Learning rate and length of a fine-tune, chosen on selection rows by successive halving (Jamieson, Talwalkar 2016).

The first trial is the fine-tune with the task's own settings. Others have a higher and a lower learning rate, then
twice the epochs at the best one. After a third of the epochs, and whenever they have doubled, a trial goes on only if
it is among the better half of those that came as far (Optuna's pruner); the best model of all is kept. Each trial is an
MLflow run. One that is interrupted leaves the model that was the best before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from smallfirst.errors import MissingExtra
from smallfirst.project.candidates import Candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.training.config import TrainConfig, parse_duration

if TYPE_CHECKING:
    from smallfirst.training.run import Run

RATE_FACTORS = (3.0, 1 / 3)
"""Learning rates that are tried, over that of the first trial."""
MORE_EPOCHS = 2
"""Epochs of the last trial, over those of the best one."""
LEAST_ROWS = 100
"""Selection rows below which settings are not varied: differences would be chance."""
TRIALS = "trials"
"""Folder of trials in a run folder, while they run."""

Stop = Callable[[int, float], bool]


class Trials:
    """The fine-tunes of one candidate, with the best of them in the run folder."""

    def __init__(self, project: Project, candidate: Candidate, run_folder: RunFolder) -> None:
        """Begin with the fine-tune that the run folder holds. Raise MissingExtra without Optuna."""
        try:
            import optuna
        except ImportError:
            raise MissingExtra("Choosing the settings of a fine-tune", "train") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.project, self.candidate, self.run_folder = project, candidate, run_folder
        self.best = load_run(candidate, run_folder)
        first_look = max(1, len(self.best.validation_curve) // 3)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first_look, reduction_factor=2)
        self._study = optuna.create_study(direction="maximize", pruner=pruner)
        self._tell(self._study.ask(), self.best)

    def settings(self) -> Iterator[TrainConfig]:
        """Yield the settings to try, each once the trial before has ended."""
        first = self.best.config
        for factor in RATE_FACTORS:
            rate = min(0.5, factor * first.learning_rate)
            yield first.model_copy(update={"learning_rate": rate})
        duration = parse_duration(first.duration)
        yield self.best.config.model_copy(update={"duration": f"{MORE_EPOCHS * duration.amount}{duration.unit}"})

    def run(self, config: TrainConfig, stop: Stop) -> Run:
        """Fine-tune with these settings, and keep the model if none was better; `stop` may end it after an epoch."""
        trial = self._study.ask()
        name = f"{self.run_folder.path.name}-{self.candidate.name}-trial-{trial.number + 1}"
        folder = RunFolder(self.run_folder.path / TRIALS / name)
        shutil.rmtree(folder.path, ignore_errors=True)  # of a trial that was interrupted

        def on_epoch(epoch: int, score: float) -> bool:
            trial.report(score, epoch)
            return stop(epoch, score) or trial.should_prune()

        project = with_training(self.project, self.candidate, config)
        self.candidate.fit(project._replace(on_epoch=on_epoch), folder)
        found = load_run(self.candidate, folder)
        self._study.tell(trial, best_score(found))
        if best_score(found) > best_score(self.best):
            _replace(self.run_folder, folder)
            self.best = load_run(self.candidate, self.run_folder)
        shutil.rmtree(folder.path, ignore_errors=True)
        return found

    def _tell(self, trial: Any, run: Run) -> None:
        for epoch, score in run.validation_curve:
            trial.report(score, int(epoch))
            trial.should_prune()  # notes the score for those that come as far
        self._study.tell(trial, best_score(run))


def with_training(project: Project, candidate: Candidate, config: TrainConfig) -> Project:
    """Return the project with other training settings for the candidate."""
    changes: dict[str, TrainConfig] = {candidate.training_setting: config}
    small = project.file.small.model_copy(update=changes)
    return project._replace(file=project.file.model_copy(update={"small": small}))


def load_run(candidate: Candidate, run_folder: RunFolder) -> Run:
    """Return the record of a candidate's fine-tune."""
    from smallfirst.training.run import Run

    return Run.load(run_folder.model_folder(candidate.name).parent / "run.json")


def best_score(run: Run) -> float:
    """Return the score on selection rows of the epoch that was kept."""
    return dict(run.validation_curve)[run.best_epoch]


def _replace(run_folder: RunFolder, trial: RunFolder) -> None:
    """Put all that a trial wrote in the place of what the run folder has."""
    for made in list(trial.path.iterdir()):
        place, before = run_folder.path / made.name, run_folder.path / f"{made.name}.before"
        if place.exists():
            place.rename(before)
        made.rename(place)
        if before.is_dir():
            shutil.rmtree(before)
        before.unlink(missing_ok=True)
