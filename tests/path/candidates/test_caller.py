"""A task of function calls goes the whole path: only calls that are covered stay small."""

import asyncio
import json
from pathlib import Path

import pytest
from fixtures.assistants import TOOLS, assistant_rows
from fixtures.preflight import write_task

from smallfirst.base.errors import ConfigError, DataError, GateFailed
from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.data.conversations import NO_CALL
from smallfirst.deployment import service
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Request
from smallfirst.path import run as pipeline
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import KEPT, KeptOnTest, RunFolder
from smallfirst.path.project.task_file import TaskFile

pytestmark = pytest.mark.usefixtures("module_home")
QUIET = Progress(quiet=True)


def desk(folder: Path, encoder: Path, n: int, *, name: str = "tea", **settings: object) -> TaskFile:
    values = {"name": name, "kind": "call", "small": {"encoder": str(encoder)}, "register_to": f"main.tests.{name}"}
    values["data"] = {"columns": {"group": "conversation"}}
    return write_task(folder, {"train": assistant_rows(n)}, **(values | settings))


def test_calls_that_the_certificate_covers_go_live_and_everything_else_goes_on(
    tmp_path: Path, tiny_encoder_folder: Path
) -> None:
    own = {"OrderTea": {"max_error": 0.2}}
    file = desk(
        tmp_path,
        tiny_encoder_folder,
        300,
        gate={"accuracy_at_least": 0.5},
        functions=own,
        routing={"guarantee": {"max_error": 0.1}},
    )
    summary = pipeline.run(file, progress=QUIET)
    outcome, certificate = summary.outcome, summary.certificate
    assert outcome is not None
    assert certificate is not None
    assert (outcome.kind, outcome.counted) == ("small first", "calls")  # though the caller passed its gate alone
    promise = "at most 10 % of kept answers wrong, of OrderTea at most 20 %, at most 2 of a conversation"
    assert certificate.guarantee.in_words.startswith(promise)
    assert [(one.label, one.certified) for one in certificate.groups] == [("", True), ("OrderTea", True)]
    assert f"of {certificate.groups[1].n_accepted} kept calls of OrderTea" in certificate.report.why
    project, run = Project.read(file, QUIET), RunFolder.latest("tea")
    groups = [{e.group for e in getattr(project.rows, name).examples} for name in ("train", "calibration", "test")]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]
    kept = run.read(KeptOnTest, KEPT, next_command="")
    assert kept.n_rows == sum(e.answer != NO_CALL for e in project.rows.test.examples)
    assert kept.n_kept > 0.5 * kept.n_rows
    assert outcome.share_small is not None
    assert summary.paths["routed"].share == outcome.share_small.value == kept.n_kept / kept.n_rows
    page = Path(summary.report).read_text(encoding="utf-8")
    assert "</b> of calls stay small" in page
    assert f"{certificate.evidence.n_accepted} of {certificate.evidence.n_labels} calls of calibration rows" in page

    ledger = Ledger(home() / "ledger.db")
    model = service.deploy([file], ledger).models["tea"]

    async def ask() -> list[tuple[str, str]]:
        found = [await model.complete(Request.ask(e.text)) for e in project.rows.test.examples]
        await model.aclose()
        return [(one.route.stage if one.route else "", one.text) for one in found]

    answers = asyncio.run(ask())
    ledger.close()
    small = [text for stage, text in answers if stage == "small"]
    assert len(small) == kept.n_kept
    assert all(json.loads(text)["name"] in ("FindTea", "OrderTea") for text in small)


def test_too_few_conversations_promise_nothing_and_say_how_many_would(
    tmp_path: Path, tiny_encoder_folder: Path
) -> None:
    file = desk(tmp_path, tiny_encoder_folder, 40, name="few")
    foretold = pipeline.check(file).foretold.certificate
    assert foretold is not None
    assert not foretold.reachable
    with pytest.raises(GateFailed, match=r"label about [\d,]+ more rows"):
        pipeline.run(file, progress=QUIET)


def test_rows_of_other_functions_and_other_candidates_are_refused(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    rows = assistant_rows(6)
    rows[3]["tools"] = TOOLS[:1]
    file = desk(tmp_path, tiny_encoder_folder, 6, name="other")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match="1 rows do not fit") as error:
        Project.read(file, QUIET)
    assert "OrderTea is missing" in str(error.value)
    with pytest.raises(ConfigError, match="words: it needs a closed set of answers"):
        pipeline.run(desk(tmp_path, tiny_encoder_folder, 6, name="words", ladder=["words"]), progress=QUIET)
