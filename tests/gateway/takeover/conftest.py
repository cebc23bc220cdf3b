"""A small task of recorded traffic and its linear model, certified by hand: the real path takes half a minute."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from fixtures.certificates import certificate
from fixtures.deployment import PASSED
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.gateway.takeover import learning
from smallfirst.gateway.takeover.learning import CORRECTIONS, Learnt, learn
from smallfirst.gateway.takeover.takeovers import TakeOvers
from smallfirst.paths import state_of
from smallfirst.pipeline.calibrate import CERTIFIED, Certified, known_texts
from smallfirst.pipeline.confidence_heads import ConfidenceHeads
from smallfirst.pipeline.router_setup import TrafficReference
from smallfirst.pipeline.summary import PathSummary, RunSummary
from smallfirst.progress import Progress
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import Promotion, RunFolder
from smallfirst.project.task_file import TaskFile
from smallfirst.registry import versions
from smallfirst.stats.intervals import wilson
from smallfirst.traffic.answers.answer_format import AnswerFormat
from smallfirst.traffic.task_source import FILE_NAME, Slot, TaskSource, TaskTemplate, Teacher
from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern

T = TypeVar("T")
TEACHER = "big-2026-01-01"
SYSTEM = "Sort the message of a customer of the bank into one of these queues: cards, loans, travel."
NOUNS = {
    "cards": ("card", "pin", "chip", "terminal", "signature"),
    "loans": ("loan", "rate", "mortgage", "interest", "debt"),
    "travel": ("flight", "hotel", "visa", "luggage", "airport"),
}
FILLERS = ("please", "hello", "today", "my", "the", "about", "question", "again", "need", "help", "with", "late")


def case(draw: random.Random, label: str) -> str:
    words = [*draw.sample(FILLERS, 5), draw.choice(NOUNS[label]), draw.choice(NOUNS[label])]
    draw.shuffle(words)
    return " ".join(words)


def cases(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts and labels."""
    draw = random.Random(seed)
    labels = [draw.choice(sorted(NOUNS)) for _ in range(n)]
    return list(dict((case(draw, label), label) for label in labels).items())


def source() -> TaskSource:
    turns = (
        TurnPattern(role="system", text=TextPattern(pieces=(SYSTEM,))),
        TurnPattern(role="user", text=TextPattern(pieces=("Message: ", ""))),
    )
    return TaskSource(
        name="queues",
        templates=(TaskTemplate(template=Template(turns=turns), slots=(Slot(name="text"),)),),
        answer_format=AnswerFormat(kind="label", prefix="Queue: "),
        models=("big",),
        teacher=Teacher(model=TEACHER),
    )


def write_draft(folder: Path, rows: list[tuple[str, str]], *, corrected: int = 0) -> Path:
    """A folder as `smallfirst discover` drafts it; of the corrected rows the large model had every third wrong."""
    folder.mkdir(parents=True)
    bill = {"source": TEACHER, "cost_usd": 1e-4, "latency_ms": 400.0, "prompt_tokens": 40, "completion_tokens": 3}
    lines = [{"text": text, "label": label, "n": 3, **bill} for text, label in rows]
    for i, line in enumerate(lines[:corrected]):
        line["label"] = "loans" if i % 3 == 0 else line["label"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    people = [json.dumps({"text": text, "label": label}) for text, label in rows[:corrected]]
    if people:
        (folder / CORRECTIONS).write_text("\n".join(people) + "\n")
    settings = {
        "name": "queues",
        "data": {"train": "rows.jsonl"},
        "ladder": ["words"],
        "gate": {"accuracy_at_least": 0.3},
        "routing": {
            "labels": "large",
            "domain": "off",
            "guarantee": {"max_error": 0.15, "unit": "text"},
            "monitor": {"audit_share": 1.0, "audit_share_on_drift": 1.0},
        },
    }
    (folder / "task.yaml").write_text(json.dumps(settings))
    source().save(folder / FILE_NAME)
    return folder


def fit(file: TaskFile, **_: object) -> tuple[RunSummary, None]:
    """In the place of the whole path: fit the words, and promise what is kept at a confidence of 0.9."""
    project = Project.read(file, Progress(quiet=True))
    run_folder = RunFolder.new(file.name)
    get_candidate("words").fit(project, run_folder)
    (run_folder.path / "run.json").write_text("{}")
    rows = [evaluated_row(e.key, e.answer, e.answer, text=e.text, certified=True) for e in project.rows.test.examples]
    for name in ("routed", "words"):
        evaluation_of(rows, candidate=name).save(run_folder.path / "evaluations" / f"{name}-test.json")
    model = run_folder.model_folder("words")
    tags = {"run": run_folder.path.name}
    version = versions.register(model, PASSED, name=file.register_to, run_id=None, tags=tags)
    limits = {"error": {"person": 0.05, "large": 0.05}}
    promise = certificate(0.9, guarantee=file.routing.guarantee, audit_limits=limits)
    parts = {"certificate": promise, "heads": ConfidenceHeads(), "reference": TrafficReference()}
    Certified(**parts, texts=known_texts(project)).save(run_folder.path / CERTIFIED)
    versions.attach(file.register_to, version.version, "certificate.json", promise.model_dump_json().encode())
    versions.promote(file.register_to, version.version)
    promoted = Promotion(name=version.name, version=version.version, candidate="words", at="2026-01-01")
    routed = PathSummary(
        model="queues",
        accuracy=wilson(60, 60),
        cost_usd_per_1k=0,
        p50_ms=1,
        p95_ms=1,
        requests_per_s=1,
        share=0.8,
        note="",
    )
    report = str(run_folder.path / "report.html")
    paths = {"routed": routed}
    return RunSummary(task=file.name, certificate=promise, promoted=promoted, paths=paths, report=report), None


def in_state(work: Callable[..., T]) -> Callable[..., T]:
    def placed(file: TaskFile, **settings: object) -> T:
        with state_of(file.folder):
            return work(file, **settings)

    return placed


class LearntTask(NamedTuple):
    """What `learn` left."""

    folder: Path
    takeovers: TakeOvers
    learnt: Learnt


@pytest.fixture(scope="session")
def learnt_once(tmp_path_factory: pytest.TempPathFactory) -> LearntTask:
    place = tmp_path_factory.mktemp("takeover")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SMALLFIRST_HOME", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(learning, "try_run", in_state(fit))
        folder, takeovers = write_draft(place / "queues", cases(240)), TakeOvers(place / "takeovers.json")
        return LearntTask(folder, takeovers, learn(folder, progress=Progress(quiet=True), takeovers=takeovers))


@pytest.fixture
def learnt(learnt_once: LearntTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LearntTask:
    """The learnt task with a state of its own: in shadow, nothing served yet."""
    monkeypatch.delenv("SMALLFIRST_HOME", raising=False)
    file = shutil.copy(learnt_once.takeovers.path, tmp_path / "takeovers.json")
    return learnt_once._replace(takeovers=TakeOvers(Path(file)))
