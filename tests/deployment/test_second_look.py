"""The second look: taken once, the same again after a kill, in force only where it shows more and may be."""

import asyncio
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fixtures.certificates import certificate
from fixtures.deployment import PASSED
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.paths import home
from smallfirst.base.records import fingerprint
from smallfirst.data.dataset import fold_text
from smallfirst.deployment.audited_router import AuditedRouter, AuditSettings, outcome_of
from smallfirst.deployment.second_look import TAG, SecondLook, SecondLooks, read_look, take
from smallfirst.deployment.service import _status
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import ShadowRow, StateRow
from smallfirst.measuring.outcome import Outcome
from smallfirst.models.protocol import CallableModel, Completion, Request
from smallfirst.path.calibrate import CERTIFIED, Certified
from smallfirst.path.finalists import LOOKS
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.path.router_setup import RouterParts
from smallfirst.registry import versions
from smallfirst.registry.versions import ModelVersion
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certificate import Certificate, Guarantee
from smallfirst.routing.certificate.certify import certify
from smallfirst.routing.certificate.looks import LookRequest, Looks
from smallfirst.routing.monitor import Monitor, MonitorSettings
from smallfirst.routing.router import Router, Stage
from smallfirst.tasks.classify import Classify

NAME = "main.default.toy"
PROMISE = Guarantee(max_error=0.1, unit="text")


class Toy(NamedTuple):
    """A version in shadow whose run has 20 calibration rows."""

    file: TaskFile
    version: ModelVersion
    run: RunFolder
    before: Certificate

    def take(self, rows: list[ShadowRow], *, live: bool = True) -> tuple[SecondLook, str]:
        return take(self.file, self.version, self.run, rows, live=live)

    def shadow(self, n: int, *, wrong: Callable[[int], bool] = lambda i: False) -> list[ShadowRow]:
        of = {"task": "toy", "certificate": self.before.fingerprint(), "at": datetime.now(UTC)}
        return [
            ShadowRow(id=str(i), text=fingerprint(f"new {i}"), confidence=1 - i / 1000, wrong=wrong(i), **of)
            for i in range(n)
        ]

    @property
    def looks(self) -> list[tuple[int, str]]:
        return [(one.number, one.portion) for one in Looks.load(self.run.path.parent / LOOKS).looks]

    @property
    def attached(self) -> tuple[Certificate, Outcome, tuple[str, ...], dict[str, str]]:
        """What a server loads, the version's aliases and its tags."""
        [now] = versions.list_versions(NAME)
        read = [versions.read_attachment(NAME, 1, name) or b"" for name in ("certificate.json", "outcome.json")]
        return (Certificate.from_json(read[0], where=""), Outcome.from_json(read[1], where=""), now.aliases, now.tags)


@pytest.fixture
def toy(tmp_path: Path, empty_store: Path) -> Toy:
    shutil.copy(empty_store, home())
    settings = {
        "name": "toy",
        "labels": ["a", "b"],
        "data": {"train": "rows.jsonl"},
        "gate": {"accuracy_at_least": 0.3},
    }
    settings["routing"] = {"labels": "large", "guarantee": {"max_error": 0.1}, "second_look_after": 60}
    (tmp_path / "task.yaml").write_text(json.dumps(settings))
    run = RunFolder.new("toy")
    rows = [evaluated_row(f"c{i}", "a", "a", text=f"known {i}", confidence=0.5) for i in range(20)]
    for part in ("calibration", "choosing"):
        run.save_evaluation(evaluation_of(rows, candidate="words", split=part))
    drafts, confidence = evaluation_of(rows, candidate="words"), {row.key: 0.9 for row in rows}
    looks = run.path.parent / LOOKS
    before = certify(
        CalibrationSet.of([drafts], judged_by="large"), PROMISE, model_fingerprint="m", look=LookRequest(looks, "small")
    )
    Certified(
        candidate="words",
        plan="small first",
        certificate=before,
        parts=RouterParts(),
        confidence=confidence,
        texts=frozenset(fingerprint(fold_text(row.text)) for row in rows),
    ).save(run.path / CERTIFIED)
    (model := run.path / "model").mkdir()
    (model / "words.txt").write_text("a")
    verdict = PASSED.model_copy(update={"candidate": "words", "passed": False})
    version = versions.register(model, verdict, name=NAME, run_id=None, tags={}, only_drafts=True)
    versions.name_shadow(NAME, 1)
    versions.attach(NAME, 1, "certificate.json", before.model_dump_json().encode())
    kept = Outcome(kind="keep the large model", why=before.report.why)
    versions.attach(NAME, 1, "outcome.json", kept.model_dump_json().encode())
    [version] = versions.list_versions(NAME)
    return Toy(read_task_file(tmp_path / "task.yaml"), version, run, before)


def test_it_counts_calibration_rows_and_shadow_at_the_large_portion_and_goes_live(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not toy.before.issued
    chose: list[CalibrationSet] = []
    monkeypatch.setattr(
        "smallfirst.deployment.second_look.certify",
        lambda rows, *given, **more: (chose.append(rows.selection), certify(rows, *given, **more))[1],
    )
    look, words = toy.take(toy.shadow(60))
    assert [one.n for one in chose] == [20]  # the rows that choose the start, out of fold
    assert toy.looks == [(1, "small"), (2, "large")]
    assert (look.certificate.evidence.n_labels, look.n_shadow, look.replaces) == (80, 60, True)
    assert words.startswith("The second look, over 20 calibration rows and 60 texts in shadow, shows the promise for ")
    assert words.endswith(" of requests, 0% before; the small model answers them from now on.")
    certificate, outcome, aliases, tags = toy.attached
    assert (certificate, outcome.kind, aliases) == (look.certificate, "small first", ("champion", "shadow"))
    assert (outcome.promise, outcome.share_small) == (PROMISE.in_words, look.certificate.coverage)
    assert tags["second_look"] == words
    assert "60 of its rows are texts that traffic brought" in certificate.report.rests_on[0]


def test_before_a_take_over_it_is_in_force_and_nothing_goes_live(toy: Toy) -> None:
    look, words = toy.take(toy.shadow(60), live=False)
    assert words.endswith("; it answers none until it is taken over.")
    assert toy.take(toy.shadow(60), live=False) == (look, words)
    assert toy.attached[0] == look.certificate
    assert toy.attached[2] == ("shadow",)
    assert toy.looks == [(1, "small"), (2, "large")]


def test_one_that_shows_nothing_changes_nothing(toy: Toy) -> None:
    look, words = toy.take(toy.shadow(60, wrong=lambda i: i % 2 == 0))
    assert (look.replaces, look.certificate.issued) == (False, False)
    assert "does not show the promise" in words
    assert words.endswith("; nothing changes.")
    certificate, outcome, aliases, tags = toy.attached
    assert (certificate, outcome.kind, aliases) == (toy.before, "keep the large model", ("shadow",))
    assert tags["second_look"] == words


def test_a_promise_that_covers_more_stays(toy: Toy) -> None:
    wide = certificate(0.2, guarantee=PROMISE)
    versions.attach(NAME, 1, "certificate.json", wide.model_dump_json().encode())
    look, words = toy.take(toy.shadow(60))
    assert look.certificate.issued
    assert "for no more than the 60% before; nothing changes" in words
    assert toy.attached[0] == wide


@pytest.mark.parametrize("place", ["second_look.json", "outcome.json", "certificate.json", "alias", "tag"])
def test_a_kill_leaves_the_same_look_to_the_next_process(toy: Toy, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    attach = versions.attach

    def killed(*given: Any) -> None:
        if place in ("alias", "tag") or place in given:
            raise KeyboardInterrupt
        attach(*given)

    with monkeypatch.context() as patch:
        patch.setattr(versions, {"alias": "promote", "tag": "tag"}.get(place, "attach"), killed)
        with pytest.raises(KeyboardInterrupt):
            toy.take(toy.shadow(60))
    [version] = versions.list_versions(NAME)
    assert TAG not in version.tags
    look, words = toy.take(toy.shadow(60))
    assert toy.looks == [(1, "small"), (2, "large")]
    assert toy.attached[0] == look.certificate == (read_look(version) or look).certificate
    assert toy.attached[2:] == (("champion", "shadow"), toy.attached[3])
    assert toy.attached[3]["second_look"] == words


class Drafts(CallableModel):
    """A model that always says the same."""

    name, capabilities = "toy-small", frozenset[Any]()

    async def complete(self, request: Request) -> Completion:
        return Completion(text="a", answered_by=self.name, latency_ms=1.0, cost_usd=0.0, confidence=0.9)


def test_each_text_counts_once_and_what_the_run_knew_never(toy: Toy) -> None:
    ledger = Ledger(home() / "ledger.db")
    router = Router([Stage("small", Drafts())], Drafts(), toy.before)
    assert not outcome_of(router).goes_live

    async def ask(looks: SecondLooks, texts: list[str]) -> None:
        large = Completion(text="a", answered_by="large", latency_ms=1.0, cost_usd=0.0)
        for i, text in enumerate(texts):
            request = Request.ask(text)
            decision = await router.decide(request)
            await looks.compared(f"{id(looks)}-{i}", request, decision, large, state="shadow")

    def collect() -> SecondLooks:
        return SecondLooks(router, lambda one, other: one == other, ledger, toy.file, toy.version, toy.run)

    one, other = collect(), collect()
    texts = [f"new {i}" for i in range(59)]
    asyncio.run(ask(one, [*texts, "NEW 7!", "known 3", "Known  3."]))
    asyncio.run(ask(other, texts[:20]))
    assert ledger.count(ShadowRow, task="toy") == 59
    assert one.taken is other.taken is None
    asyncio.run(ask(other, ["new 59"]))
    asyncio.run(ask(one, ["new 60"]))
    assert one.taken == other.taken
    assert (other.taken.n_shadow, other.taken.replaces) == (60, True)
    [told] = [row for row in ledger.entries(StateRow) if row.cause == "second look"]
    assert (told.before, told.after, told.certificate) == ("shadow", "shadow", toy.before.fingerprint())
    assert toy.looks == [(1, "small"), (2, "large")]
    ledger.close()


async def test_a_server_whose_version_drafts_in_shadow_makes_it_champion(toy: Toy) -> None:
    ledger = Ledger(home() / "ledger.db")
    router = Router([Stage("small", Drafts())], Drafts(), toy.before, name="toy")
    looks = SecondLooks(router, lambda one, other: one == other, ledger, toy.file, toy.version, toy.run)
    served = AuditedRouter(
        router,
        Monitor(MonitorSettings(), quantities=(), shadow=True),
        ledger=ledger,
        auditing=AuditSettings("large", lambda one, other: one == other, task=Classify(name="toy", labels=("a", "b"))),
        outcome=Outcome(kind="keep the large model"),
        second_look=looks,
    )
    assert served.monitor.state == "shadow"
    for i in range(60):
        request = Request.ask(f"new {i}")
        answer = await served.complete(request)
        assert answer.route.stage == "large"
        served.answered(f"r{i}", request, answer)
        await asyncio.gather(*served._tasks)
    certificate, outcome, aliases, tags = toy.attached
    assert (certificate, outcome.kind, aliases) == (looks.taken.certificate, "small first", ("champion", "shadow"))
    assert _status(served)["second_look"] == tags["second_look"]
    ledger.close()
