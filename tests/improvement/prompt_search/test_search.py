"""A prompt search at a real HTTP server: it finds the rule that is missing, within its budget, and asks once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.endpoints import Large, large_server
from fixtures.expenses import spent_once

from smallfirst.errors import BadAnswer, ConfigError, SpendingLimitReached
from smallfirst.improvement.prompt_search.asking import BudgetSpent
from smallfirst.improvement.prompt_search.search import PromptOptions, PromptSearchResult, tune_prompt
from smallfirst.pipeline.large_model import answers_so_far
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import read_task_file

RULE = "Messages about money are fee,\nall others card."
QUIET = Progress(quiet=True)


def gold(number: int) -> str:
    return "fee" if number % 2 else "card"


def scripted(body: dict[str, Any]) -> str:
    """Answers right under RULE, else always `card`; to a request for instructions it writes RULE."""
    first, text = body["messages"][0]["content"], body["messages"][-1]["content"]
    if "[INSTRUCTIONS]" in text:
        return f"I would write:\n```\n{RULE}\n```"
    return gold(int(text.split()[-1])) if RULE in first else "card"


@pytest.fixture
def server() -> Iterator[Large]:
    with large_server(scripted) as large:
        yield large


def write_task(folder: Path, server: Large, **large: Any) -> Project:
    for name, numbers in {"train": range(60), "validation": range(60, 80), "test": range(80, 90)}.items():
        rows = [{"text": f"message of customer {n}", "label": gold(n)} for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "desk",
        "about": "Sort the messages of a bank.",
        "data": {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
        "routing": {"selection_share": 0.5},
        "prices": {"tokens": {"big": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}}},
        "large": {"endpoint": {"base_url": server.url, "model": "big", "priced_by": "tokens"}, **large},
    }
    (folder / "task.yaml").write_text(json.dumps(values))
    return Project.read(read_task_file(folder), QUIET)


def search(folder: Path, project: Project, **options: Any) -> PromptSearchResult:
    values = {"out": folder / "prompt.yaml", "nearest": (0,), "max_requests": 70, **options}
    return tune_prompt(project, PromptOptions(**values))


def test_the_rule_is_found_written_down_and_used(tmp_path: Path, server: Large) -> None:
    found = search(tmp_path, write_task(tmp_path, server))
    assert found.before.accuracy.value == pytest.approx(0.5, abs=0.2)
    assert found.chosen.accuracy.value == 1.0
    assert found.chosen.prompt.instructions == RULE
    assert found.difference.value == 1 - found.before.accuracy.value
    assert (found.search.n_rows, found.search.n_right) == (10, 10)
    assert found.search.n_requests == len(server.asked) <= 70
    assert found.search.prompt_tokens == 5 * len(server.asked)  # as the server counts
    assert found.search.cost_usd == pytest.approx(7e-6 * len(server.asked))
    assert spent_once(tmp_path, "desk") == {"prompt search": pytest.approx(7e-6 * len(server.asked))}

    asked = len(server.asked)
    project = write_task(tmp_path, server, prompt="prompt.yaml")
    assert project.file.large.prompt.search == found.search
    known = answers_so_far(project.file, project.task)
    assert known is not None  # the answers of the search are those of an evaluation with this prompt
    assert known.header.prompt[0].content.startswith(RULE)
    assert "- fee" in known.header.prompt[0].content  # the allowed answers still follow
    assert len(server.asked) == asked


def test_no_test_or_calibration_row_is_ever_asked(tmp_path: Path, server: Large) -> None:
    project = write_task(tmp_path, server)
    search(tmp_path, project)
    allowed = {e.text for part in (project.rows.train, project.rows.selection) for e in part.examples}
    asked = {body["messages"][-1]["content"] for body in server.asked}
    assert {text for text in asked if "[INSTRUCTIONS]" not in text} <= allowed
    held_out = [e.text for part in (project.rows.test, project.rows.calibration) for e in part.examples]
    assert not [text for text in held_out if any(f"{text}\n" in f"{other}\n" for other in asked)]


def test_the_same_search_again_asks_nothing_and_finds_the_same(tmp_path: Path, server: Large) -> None:
    project = write_task(tmp_path, server)
    first = search(tmp_path, project)
    asked = len(server.asked)
    assert search(tmp_path, project) == first
    assert len(server.asked) == asked


def test_a_search_that_ran_out_goes_on_with_a_larger_budget(tmp_path: Path, server: Large) -> None:
    project = write_task(tmp_path, server)
    short = search(tmp_path, project, max_requests=25)
    assert len(server.asked) <= 25
    assert short.search.n_requests == len(server.asked)
    longer = search(tmp_path, project)
    assert longer.search.n_requests == len(server.asked)
    assert longer.chosen.accuracy.value == 1.0


def test_a_limit_in_usd_is_not_exceeded(tmp_path: Path, server: Large) -> None:
    project = write_task(tmp_path, server)
    with pytest.raises(SpendingLimitReached):
        search(tmp_path, project, max_usd=1e-6)
    assert server.asked == []
    found = search(tmp_path, project, max_usd=7e-4)
    assert "may cost" in found.stopped
    assert found.search.cost_usd == pytest.approx(7e-6 * len(server.asked))
    assert found.search.cost_usd <= 7e-4


def test_a_budget_below_one_measurement_says_so(tmp_path: Path, server: Large) -> None:
    with pytest.raises(BudgetSpent, match="10 requests are needed and 5 of 5 are left"):
        search(tmp_path, write_task(tmp_path, server), max_requests=5)
    assert server.asked == []


def test_a_prompt_that_nothing_beats_stays(tmp_path: Path) -> None:
    with large_server(lambda body: "card") as server:
        found = search(tmp_path, write_task(tmp_path, server))
    assert found.chosen == found.before
    assert "no prompt was better" in found.in_words[-1]


def test_a_row_that_the_model_refuses_counts_as_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallfirst.models.few_shot import PromptedModel

    answer = PromptedModel.complete

    async def refuses(model: PromptedModel, request: Any) -> Any:
        if request.text == project.rows.selection.examples[0].text:
            raise BadAnswer("the endpoint refused it")
        return await answer(model, request)

    monkeypatch.setattr(PromptedModel, "complete", refuses)
    with large_server(scripted) as server:
        project = write_task(tmp_path, server)
        assert search(tmp_path, project).chosen.scores[0] == 0.0


def test_recorded_answers_alone_cannot_be_searched(tmp_path: Path, server: Large) -> None:
    project = write_task(tmp_path, server)
    recorded = project.file.large.model_copy(update={"endpoint": None, "recorded": Path("answers.jsonl")})
    with pytest.raises(ConfigError, match="names only recorded answers"):
        search(tmp_path, project._replace(file=project.file.model_copy(update={"large": recorded})))
