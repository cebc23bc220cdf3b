"""The learning curve of a run: the same candidates trained on fewer rows, and a forecast for more rows.

Linear candidates are fitted again in seconds. Fine-tuning on parts takes about as long as the run itself, so it is done
on request only.
"""

from __future__ import annotations

from smallfirst.evaluation.learning_curve import (
    LearningCurve,
    LearningPoint,
    forecast,
    subsets_by_share,
    subsets_per_label,
)
from smallfirst.project.candidates import fitted_candidates
from smallfirst.project.project import Project, shown_as
from smallfirst.project.run_folder import RunFolder

LEARNING = "learning.json"
"""File of the LearningCurve in a run folder."""


@shown_as("measuring the learning curve")
def measure_curve(project: Project, run_folder: RunFolder, *, all_candidates: bool = False) -> LearningCurve:
    """Measure the curve and save it in the run folder; points of candidates that are not measured again stay.

    `all_candidates` includes those that are measured on request only. The point for all rows is the run's own
    evaluation.
    """
    earlier = run_folder.find(LearningCurve, LEARNING) or LearningCurve(points=())
    modes = {"always", "on request"} if all_candidates else {"always"}
    wanted = [candidate for candidate in fitted_candidates(project, run_folder) if candidate.learning_curve in modes]
    if not wanted:
        return earlier
    names = {candidate.name for candidate in wanted}
    points = [point for point in earlier.points if point.candidate not in names]
    rows = project.rows.train
    parts = subsets_per_label(rows) if project.task.closed else subsets_by_share(rows)
    for candidate in wanted:
        found = candidate.accuracies(project, parts, run_folder.path / "learning")
        for part, accuracy in zip(parts, found, strict=True):
            points.append(LearningPoint(n_rows=len(part), candidate=candidate.name, accuracy=accuracy))
            project.progress.log(f"{candidate.name} with {len(part)} rows: accuracy {accuracy}")
        if (whole := run_folder.evaluation(candidate.name, "test")) is not None:
            n_rows = len(project.rows.development if run_folder.folds(candidate.name) else rows)
            points.append(LearningPoint(n_rows=n_rows, candidate=candidate.name, accuracy=whole.accuracy))
    curve = LearningCurve(points=tuple(points))
    curve.save(run_folder.path / LEARNING)
    return curve


def forecast_lines(curve: LearningCurve, n_rows: int) -> list[str]:
    """Return one line per candidate: the forecast for twice the rows, or why there is none."""
    names = dict.fromkeys(point.candidate for point in curve.points)
    groups = ([p for p in curve.points if p.candidate == name] for name in names)
    return [f"{found.candidate}: {found.why}" for points in groups for found in [forecast(points, 2 * n_rows)]]
