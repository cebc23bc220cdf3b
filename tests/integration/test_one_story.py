"""Every surface tells the same of a task: terminal, JSON, report, page, routes, registry, statement, start lines.

Runs are real: a linear model on words, rows of which two of three are plain, and recorded answers as the large model.
"""

import asyncio
import json
import random
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fixtures.one_story import Facts, disagreements, facts_in, facts_of, first_screen
from fixtures.preflight import write_task
from fixtures.server import run_server

from smallfirst.base.errors import RegistryError
from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.base.sync import run_sync
from smallfirst.data.dataset import Message
from smallfirst.deployment import service
from smallfirst.deployment.billing.statement import make, signing_key
from smallfirst.deployment.dashboard.plugin import Dashboard
from smallfirst.interfaces.cli.main import main
from smallfirst.ledger.ledger import Ledger
from smallfirst.measuring.outcome import Outcome
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import RecordedAnswer, RecordingHeader, request_key
from smallfirst.path.check import check_stage
from smallfirst.path.finalists import LOOKS
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import OUTCOME, RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.path.run import try_run
from smallfirst.path.summary import RunSummary, format_summary
from smallfirst.registry import versions
from smallfirst.registry.runs import client

LABELS = ("card", "money")
N = {"train": 160, "validation": 300, "test": 120}
GATE: dict[str, Any] = {"gate": {"accuracy_at_least": 0.6}}
HARD: dict[str, Any] = {"gate": {"accuracy_at_least": 0.95}}
LARGE: dict[str, Any] = {"large": {"recorded": "large.jsonl"}}
N_ASKED = 12
"""Requests that a server is asked."""
FEW = {"validation": 60}
"""Rows that cannot show the default guarantee: 48 certify, and it takes 59 without an error."""


def text_and_label(name: str, i: int) -> tuple[str, str]:
    """Two of three requests are plain; the others give no clue, and their label follows chance."""
    draw = random.Random(f"{name} {i}")
    label = draw.choice(LABELS)
    talk = " ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(3))
    return (f"{talk} my {label} is gone" if i % 3 else f"{talk} that matter"), label


def write(folder: Path, n: dict[str, int], routing: dict[str, Any], **settings: Any) -> TaskFile:
    """Write a task whose large model has recorded right answers to its rows."""
    pairs = {name: [text_and_label(name, i) for i in range({**N, **n}[name])] for name in N}
    answers = [
        RecordedAnswer(
            key=request_key(Request(messages=(Message(role="user", content=text),))),
            text=text,
            answer=label,
            prompt_tokens=50,
            completion_tokens=1,
            latency_ms=900.0,
            cost_usd=0.002,
        )
        for text, label in (*pairs["validation"], *pairs["test"])
    ]
    header = RecordingHeader(model="big", made_at="2026-11-30", smallfirst="0", n=len(answers))
    lines = [json.dumps({"recorded": header.model_dump(mode="json")}), *(one.model_dump_json() for one in answers)]
    (folder / "large.jsonl").write_text("\n".join(lines), encoding="utf-8")
    parts = {name: [{"text": text, "label": label} for text, label in rows] for name, rows in pairs.items()}
    return write_task(folder, parts, ladder=["words"], routing={"domain": "off", **routing}, **settings)


def told_by_run(file: TaskFile, summary: RunSummary) -> dict[str, Facts]:
    """Return the facts of what a run prints and writes, by surface."""
    folder, outcome = RunFolder.latest("desk"), summary.outcome
    saved = folder.find(Outcome, OUTCOME)
    assert saved is not None
    html = (folder.path / "report.html").read_text(encoding="utf-8")
    if not outcome.goes_live:
        assert "✓" not in first_screen(html)
    steps = "\n".join(line for step in summary.next_steps for line in step.lines)
    assert ("smallfirst override" in steps) <= (outcome.gate == "failed")
    terminal = format_summary(summary)
    assert ("@champion" in terminal) == bool(outcome.live_as)
    data = json.loads(summary.model_dump_json())["outcome"]
    run_tags = client().get_run(folder.mlflow_run_id()).data.tags
    told = {
        "record": facts_of(outcome),
        "run folder": facts_of(saved),
        "terminal": facts_in(terminal),
        "json": facts_in(data["sentence"]),
        "report": facts_in(first_screen(html)),
        "next steps": facts_in(steps),
        "mlflow run": facts_in(run_tags["sentence"]) | {"promise": run_tags["promise"].replace("none", "")},
    }
    if outcome.version is not None:
        version = next(v for v in versions.list_versions(file.register_to) if v.version == outcome.version)
        told["mlflow version"] = facts_in(version.tags["sentence"])
        assert outcome.alias in version.aliases
    return told


def told_by_server(file: TaskFile, folder: Path, state: str) -> tuple[dict[str, Facts], str]:
    """Return the facts of what a server says while its monitor is in `state`, by surface, and the state that it has."""
    ledger = Ledger(home() / f"{state}.db")
    deployed = service.deploy([file], ledger, live=False)
    router = deployed.by_task["desk"]
    if router.monitor.state == "live" and state != "live":
        router.monitor._enter(state, datetime.now(UTC))  # type: ignore[arg-type]
    plugins = [deployed, Dashboard(deployed.models, ledger, deployed.by_task)]
    running = run_server(deployed.models, ledger, plugins=plugins)
    with running as server, httpx.Client(base_url=server.url, timeout=60) as http:
        replies = [http.post("/v1/chat/completions", json=_question(i)) for i in range(N_ASKED)]
        answers = [reply.json()["smallfirst"] for reply in replies]
        routes = http.get("/v1/routers").json()["data"][0]
        models = http.get("/v1/models").json()["data"]
        page = http.get("/v1/dashboard/watch?task=desk").json()["router"]
        every = http.get("/v1/dashboard/watch").json()["tasks"][0]["standing"]
    asyncio.run(deployed.aclose())
    statement = make(ledger, f"{datetime.now(UTC):%Y-%m}", folder / f"statement-{state}", key=signing_key(home()))
    assert page["standing"] == routes["standing"] == every
    assert routes["guarantee"] == page["guarantee"]
    for one in routes["watched"]:
        assert one["guaranteed"] is False or routes["guarantee"]
    if not routes["guarantee"]:
        assert not page["live"]["promised"]
    # What single answers and the statement of the month say is promised is what the routes say.
    assert {answer["guarantee"] or "" for answer in answers} <= {routes["guarantee"], ""}
    assert set(statement.guarantees.values()) <= {routes["guarantee"]} - {""}
    described = next(one["description"] for one in models if one["id"] == "desk")
    promised = {"promise": routes["guarantee"]}
    told = {
        "routes": facts_in(routes["standing"]["sentence"]) | promised,
        "page": facts_in(f"{page['standing']['words']}. {page['standing']['sentence']}"),
        "models": facts_in(described),
        "start lines": facts_in(deployed.describe()["desk"]),
    }
    ledger.close()
    return told, router.monitor.state


def _question(i: int) -> dict[str, Any]:
    return {"model": "desk", "messages": [{"role": "user", "content": text_and_label("test", i)[0]}]}


CASES: dict[str, tuple[dict[str, int], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gate passed, certificate for a part, nothing behind it": (
        {}, {}, GATE, {"kind": "small alone", "rest": "", "promise": True, "all": True, "watched_by": ""},
    ),
    "gate passed, certificate refused, a large model": (
        FEW, {"monitor": {"audit_share": 1.0, "audit_share_in_fallback": 1.0}}, GATE | LARGE,
        {"kind": "small alone", "rest": "", "promise": False, "all": True, "watched_by": "large"},
    ),
    "gate passed, certificate refused, a large model, a guarantee of the user's": (
        {}, {"guarantee": {"max_error": 0.012}}, GATE | LARGE, {"kind": "cannot be told yet"},
    ),
    "gate not written, certificate for a part": (
        {}, {}, {}, {"kind": "small first", "rest": "person", "promise": True, "all": False},
    ),
    "gate failed, certificate for a part, a large model": (
        {}, {}, HARD | LARGE,
        {"kind": "small first", "rest": "large", "promise": True, "all": False, "watched_by": "large"},
    ),
    "gate failed, certificate refused, signed for": (
        FEW, {}, HARD, {"kind": "small alone", "rest": "", "promise": False, "all": True, "watched_by": ""},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_no_two_surfaces_disagree(case: str, tmp_path: Path, empty_store: Path) -> None:
    n, routing, settings, wanted = CASES[case]
    shutil.copy(empty_store, home())
    file = write(tmp_path, n, routing, **settings)
    summary, error = try_run(file, task=str(tmp_path), progress=Progress(quiet=True))
    assert summary.outcome is not None, summary.error
    told = told_by_run(file, summary)
    assert not disagreements(told)
    outcome = summary.outcome
    if outcome.labels_needed is not None:
        one_number_of_missing_rows_is_told(file, summary, error)
    if "signed" in case:
        for verb in (
            ("override", "--candidate", "words", "--by", "Ada", "--because", "a pilot"),
            ("promote",),
            ("report",),
        ):
            ran = CliRunner().invoke(main, [verb[0], str(tmp_path), *verb[1:]])
            assert ran.exit_code == 0, ran.output
            told = {verb[0]: facts_in(ran.output)} | told if verb[0] == "promote" else told
        outcome = RunFolder.latest("desk").find(Outcome, OUTCOME)
        assert "Signed for by Ada (a pilot)." in outcome.sentence
        html = (RunFolder.latest("desk").path / "report.html").read_text(encoding="utf-8")
        told = {"record": facts_of(outcome), "promote": told["promote"], "report": facts_in(first_screen(html))}
        assert not disagreements(told)
    assert outcome.kind == wanted["kind"]
    if not outcome.goes_live:
        _nothing_is_served(file, outcome)
        return
    assert (outcome.rest, bool(outcome.promise)) == (wanted["rest"], wanted["promise"])
    assert (outcome.share_small.value == 1) == wanted["all"]
    assert outcome.watched_by == wanted.get("watched_by", outcome.watched_by)
    assert ("Unwatched" in outcome.sentence) == (not outcome.watched_by)
    assert ("watch the gate's accuracy" in outcome.sentence) == (
        bool(outcome.watched_by) and outcome.kind == "small alone"
    )
    if outcome.promise:
        assert outcome.share_promised.value <= outcome.share_small.value
    elif outcome.gate != "signed":
        assert outcome.labels_needed is not None
        assert "There is no promise about single answers" in outcome.sentence
    for state in ("live", "fallback") if "failed" in case else ("live",):
        served, found = told_by_server(file, tmp_path, state)
        assert found == state
        if state == "fallback":
            assert not disagreements(served)
            assert {facts["promise"] for facts in served.values() if "promise" in facts} == {""}
        else:
            assert not disagreements({**told, **served})
    if case == "gate passed, certificate refused, a large model":
        audits_end_it_until_others_show_it_again(file, outcome.proof)


def audits_end_it_until_others_show_it_again(file: TaskFile, proof: str) -> None:
    """Audits that break the gate's accuracy take the small model back, until others show it again."""
    ledger = Ledger(home() / "ledger.db")
    deployed = service.deploy([file], ledger, live=False)
    router = deployed.by_task["desk"]
    plugins = [deployed, Dashboard(deployed.models, ledger, deployed.by_task)]
    rows = [text_and_label(part, i) for part in ("validation", "test") for i in range({**N, **FEW}[part])]
    small = deployed.models["desk-small"]
    right = {text: run_sync(small.complete(Request.ask(text))).text == label for text, label in rows}
    seen: list[dict[str, Any]] = []
    running = run_server(deployed.models, ledger, plugins=plugins)
    with running as server, httpx.Client(base_url=server.url, timeout=60) as http:

        def ask(wanted: bool, until: str) -> Any:
            """Ask what the small model has right, or wrong, until its state is `until`; return what is told then."""
            for text in (text for _ in range(20) for text in right if right[text] is wanted):
                reply = http.post(
                    "/v1/chat/completions", json={"model": "desk", "messages": [{"role": "user", "content": text}]}
                )
                seen.append(reply.json()["smallfirst"])
                if router.monitor.state == until:
                    return http.get("/v1/routers").json()["data"][0]
            raise AssertionError(f"{router.monitor.state}: {router.monitor.live_error}")

        broken = ask(False, "fallback")
        assert [(one["quantity"], one["guaranteed"], one["found_broken"]) for one in broken["watched"]] == [
            ("accuracy", False, True)
        ]
        assert broken["standing"]["level"] == "bad"
        assert "at most 40 % of all small answers wrong" in broken["standing"]["sentence"]
        assert "the gate's limit" in broken["why"]
        n = len(seen)
        back = ask(True, "live")
        assert (seen[0]["route"], seen[n]["route"]) == ("small", "large")
        assert seen[n]["certified"] is False
        assert "the gate was found broken on live answers" in seen[n]["why"]
        assert back["standing"]["sentence"] == proof
    asyncio.run(deployed.aclose())
    ledger.close()


def test_the_single_verbs_do_the_same_and_what_is_not_proven_ends_with_3(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, home())
    write(tmp_path, {}, {"guarantee": {"max_error": 0.05}}, **HARD)
    verbs = ("train", "evaluate", "gate", "calibrate", "promote")
    ran = {verb: CliRunner().invoke(main, [verb, str(tmp_path)]) for verb in verbs}
    assert [one.exit_code for one in ran.values()] == [0, 0, 3, 0, 0]
    assert "words first: pass" in ran["calibrate"].output
    assert f"smallfirst promote {tmp_path}" in ran["calibrate"].output
    run_folder = RunFolder.latest("desk")
    assert run_folder.promoted().plan == "small first"
    looks = (run_folder.path.parent / LOOKS).read_text()
    assert CliRunner().invoke(main, ["calibrate", str(tmp_path)]).exit_code == 0
    assert (run_folder.path.parent / LOOKS).read_text() == looks  # the same certificate from the same answers


def _nothing_is_served(file: TaskFile, outcome: Outcome) -> None:
    """Where nothing goes live, a server refuses to start or lets the large model answer."""
    ledger = Ledger(home() / "ledger.db")
    if outcome.alias == versions.SHADOW:
        deployed = service.deploy([file], ledger, live=False)
        assert deployed.by_task["desk"].monitor.state == "shadow"
        assert facts_in(deployed.describe()["desk"])["promise"] == ""
        asked = Request.ask(text_and_label("test", 0)[0])
        route = run_sync(deployed.models["desk"].complete(asked)).route
        assert (route.stage, route.certified) == ("large", False)
        asyncio.run(deployed.aclose())
    else:
        with pytest.raises(RegistryError, match="has no champion"):
            service.deploy([file], ledger, live=False)
    ledger.close()


def one_number_of_missing_rows_is_told(file: TaskFile, summary: RunSummary, error: BaseException | None) -> None:
    """Every text that speaks of missing rows names as many."""
    outcome, folder = summary.outcome, RunFolder.latest("desk")
    needed = outcome.labels_needed
    html = (folder.path / "report.html").read_text(encoding="utf-8")
    after = check_stage(Project.read(file, Progress(quiet=True)))
    told = {
        "sentence": outcome.sentence,
        "terminal": format_summary(summary),
        "steps": "\n".join(line for step in summary.next_steps for line in step.lines),
        "report": html,
        "json": summary.model_dump_json(),
        "error": f"{error} {getattr(error, 'hint', '')}",
        "check": after.in_words,
    }
    said = {name: set(re.findall(r"([\d,]+) more (?:\w+ )*rows", text)) for name, text in told.items()}
    one = {f"{needed.n_data_rows:,}"}
    assert said.pop("error") == (one if error else set())
    assert said == dict.fromkeys(said, one)
    assert (
        f"(chance {100 * needed.chance:.0f} %)" in outcome.sentence
        or f"; chance {100 * needed.chance:.0f} %)" in outcome.sentence
    )
