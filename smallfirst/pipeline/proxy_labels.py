"""Certificates where the large model's answers stand in for labels, and a few answers of people correct them.

Rows labelled by the large model are cheap and wrong now and then, so a certificate from them alone speaks of differing
from that model. A random part of the validation rows answered by people as well (`data.gold`) turns it into one about
true errors, by the prediction-powered bound. The price is those answers, and a bound that is wider than from as many
rows all answered by people.
"""

from __future__ import annotations

from smallfirst.data.sources.resolve import open_source
from smallfirst.errors import ConfigError, DataError
from smallfirst.evaluation.results import Evaluation
from smallfirst.project.project import Project
from smallfirst.routing.certificate.certificate import Certificate, certify_without_gold


def certify_from_proxy_labels(
    project: Project, small: Evaluation, *, model_fingerprint: str, temperature: float
) -> Certificate:
    """The certificate for `small` on rows whose given answers are the large model's, corrected by `data.gold`.

    Raises ConfigError if other stages draft ahead, DataError if a row of people's answers is no validation row.
    """
    if project.file.routing.ahead:
        raise ConfigError(
            "routing.ahead cannot be certified from rows that the large model answered and people corrected",
            hint="leave out routing.ahead, or data.gold",
        )
    task = project.task

    def right(answer: str | None, known: str) -> bool:
        return task.score([known], answer) >= task.pass_score

    given = tuple(row.model_copy(update={"answer": row.gold, "score": 1.0, "correct": True}) for row in small.rows)
    large = small.model_copy(update={"candidate": "large", "rows": given})
    return certify_without_gold(
        small,
        large,
        gold_answers(project, small),
        right,
        project.file.routing.promise,
        model_fingerprint=model_fingerprint,
        temperature=temperature,
    )


def gold_answers(project: Project, small: Evaluation) -> dict[str, str]:
    """By key of a calibration row: what people answered. Rows that only choose (selection) are left out."""
    assert project.file.data.gold is not None
    read = open_source(project.file.data.gold, columns=project.file.data.columns, folder=project.file.folder)
    keys = {row.text: row.key for row in small.rows}
    choosing = {example.text for example in project.rows.selection.examples}
    strange = [e for e in read.examples if e.text not in keys and e.text not in choosing]
    if strange:
        first = strange[0]
        raise DataError(
            f"{first.path}:{first.line}: no validation row has this text ({len(strange)} such rows)",
            hint="data.gold holds answers of people to a random part of the validation rows",
        )
    return {keys[e.text]: project.task.parse(e.answer) or e.answer for e in read.examples if e.text in keys}
