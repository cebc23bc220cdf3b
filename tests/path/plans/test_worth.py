"""What candidates and plans are worth by the rows that choose: finalists, their order, and the order of plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.progress import Progress
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.measuring.verdict import Verdict
from smallfirst.path.plans.worth import expected_plans, fix_finalists, plan_option, price_of_guarantee
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import VERDICTS, Finalists, GateVerdicts, RunFolder
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.path.release import gate_stage
from smallfirst.routing.certificate.guarantee import Guarantee

LABELS = ("card lost", "money back")


def row(i: int, correct: bool, confidence: float) -> EvaluatedRow:
    return evaluated_row(str(i), "a", "a" if correct else "b", correct=correct, confidence=confidence)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Rows of two labels, and a gate of 0.6."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    for name, n in (("train", 120), ("validation", 100), ("test", 200)):
        rows = [{"text": f"{name} {i} please", "label": LABELS[i % 2]} for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(
        "name: desk\ndata: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n"
        "gate: {accuracy_at_least: 0.6}\n",
        encoding="utf-8",
    )
    return Project.read(read_task_file(tmp_path), Progress(quiet=True))


def test_a_plan_keeps_as_much_as_is_wrong_as_seldom_as_is_guaranteed() -> None:
    def share(rows: list[EvaluatedRow], guarantee: Guarantee) -> float:
        """What is not kept costs 1 USD."""
        return 1 - plan_option(evaluation_of(rows, candidate="words", cost_usd_per_1k=0.0), guarantee, None).usd

    rows = [row(i, i not in (5, 8, 9), 1 - i / 20) for i in range(10)]
    assert share(rows, Guarantee(max_error=0.05)) == 0.5  # the sixth most confident is wrong
    assert share(rows, Guarantee(max_error=0.2)) == 0.8
    assert share(rows[::-1], Guarantee(max_error=0.3)) == 1.0
    assert share(rows, Guarantee(max_error=None, max_accuracy_loss=0.01)) == pytest.approx(0.7)
    assert share([], Guarantee()) == 0.0


def set_routing(project: Project, **settings: Any) -> Project:
    """The project with these settings below `routing`, as if task.yaml had them."""
    routing = type(project.file.routing).model_validate(settings)
    return project._replace(file=project.file.model_copy(update={"routing": routing}))


def measured(name: str, n_right: int, usd_per_1k: float, *, n: int = 250, split: str = "selection") -> Evaluation:
    """A candidate that is right on the first rows, and the more confident the earlier they stand."""
    rows = [row(i, i < n_right, 1 - i / n) for i in range(n)]
    rows = [one.model_copy(update={"cost_usd": usd_per_1k / 1000}) for one in rows]
    return evaluation_of(rows, candidate=name, split=split, cost_usd_per_1k=usd_per_1k)


@pytest.fixture
def run_folder(project: Project) -> RunFolder:
    """A run of four candidates; the fine-tuned encoder is three points better at the cost of the frozen one."""
    found = RunFolder.new("desk")
    for name, n_right, usd in (("words", 195, 0.02), ("encoder", 208, 0.30), ("tuned", 216, 0.37), ("small", 212, 5.0)):
        for split in ("selection", "calibration", "test"):
            found.save_evaluation(measured(name, n_right, usd, split=split))
    return found


@pytest.fixture
def many(project: Project) -> Project:
    """The project with so many selection rows that these choose alone."""
    rows = project.rows.model_copy(update={"selection": project.rows.test})
    return project._replace(rows=rows)


@pytest.mark.parametrize(
    ("routing", "names"),
    [
        ({}, ("tuned", "small", "encoder")),
        ({"small": "best"}, ("tuned", "small", "encoder")),
        ({"small": "smallest"}, ("words", "tuned", "encoder")),
        ({"small": "encoder"}, ("encoder", "tuned", "small")),
        ({"accuracy_within": 0.05}, ("tuned", "encoder", "small")),
        ({"accuracy_within": 0.1}, ("words", "tuned", "encoder")),
        ({"usd_per_wrong_answer": 0.1}, ("tuned", "encoder", "small")),
        ({"usd_per_wrong_answer": 1e-6}, ("words", "encoder", "tuned")),
    ],
)
def test_at_most_three_finalists_come_by_worth(
    many: Project, run_folder: RunFolder, routing: dict[str, Any], names: tuple[str, ...]
) -> None:
    found = fix_finalists(set_routing(many, **routing), run_folder)
    assert found.names == names
    assert found.shares == pytest.approx({names[0]: 0.6, names[1]: 0.1, names[2]: 0.1})


def test_finalists_are_fixed_once(many: Project, run_folder: RunFolder) -> None:
    Finalists(names=("words", "small"), shares={"words": 0.6, "small": 0.2}).save(run_folder.path / "finalists.json")
    assert fix_finalists(many, run_folder).names == ("words", "small")
    assert fix_finalists(set_routing(many, small="encoder"), run_folder).names[0] == "encoder"  # named afterwards


def test_of_those_that_pass_the_first_goes_live_unless_another_clearly_beats_it(
    many: Project, run_folder: RunFolder
) -> None:
    keys = [example.key for example in many.rows.test.examples]

    def on_test(name: str, n_right: int, usd: float) -> None:
        rows = [evaluated_row(key, "a", "a" if i < n_right else "b", confidence=0.5) for i, key in enumerate(keys)]
        run_folder.save_evaluation(evaluation_of(rows, candidate=name, cost_usd_per_1k=usd))

    for name, n_right, usd in (("words", 150, 0.02), ("encoder", 164, 0.3), ("tuned", 162, 0.37), ("small", 160, 5.0)):
        on_test(name, n_right, usd)
    verdicts = gate_stage(many, run_folder)
    assert (verdicts.winner, verdicts.chosen) == ("tuned", "tuned")
    assert [one.candidate for one in verdicts.verdicts] == ["tuned", "small", "encoder"]
    assert verdicts.how_found == "chosen on other rows, confirmed on test rows"
    on_test("tuned", 146, 0.37)  # clearly behind the encoder, which costs no more
    verdicts = gate_stage(many, run_folder)
    assert verdicts.of("tuned").passed
    assert (verdicts.winner, verdicts.chosen) == ("encoder", "tuned")
    assert verdicts.how_found.startswith("in place of tuned, which is clearly right less often")
    on_test("tuned", 100, 0.37)
    verdicts = gate_stage(many, run_folder)
    assert not verdicts.of("tuned").passed
    assert verdicts.how_found.startswith("next after tuned, which failed")


def test_the_plan_of_the_most_worth_comes_first(many: Project, run_folder: RunFolder) -> None:
    assert expected_plans(many, run_folder)[0].candidate == "tuned"  # it keeps most
    run_folder.save_evaluation(measured("large", 240, 10.0, split="calibration"))
    plans = expected_plans(many, run_folder)
    assert plans[0].candidate == "tuned"
    n_escalated = sum(error == pytest.approx(0.04) for error in plans[0].wrong.values())  # 240 of 250 are right
    assert 1000 * plans[0].usd == pytest.approx(0.37 + 10 * n_escalated / 250)
    assert [one.candidate for one in expected_plans(set_routing(many, small="encoder"), run_folder)] == ["encoder"]


def test_a_plan_comes_before_a_candidate_alone_where_it_loses_less(many: Project, run_folder: RunFolder) -> None:
    def before(**routing: Any) -> list[str]:
        project = set_routing(many, **routing)
        return [plan.candidate for plan in expected_plans(project, run_folder, instead_of="tuned")]

    run_folder.save_evaluation(measured("large", 245, 10.0, split="calibration"))
    assert before() == []  # nothing prices an error: what passes its gate goes live alone
    assert before(usd_per_wrong_answer=0.001) == []
    assert "tuned" in before(usd_per_wrong_answer=1.0)
    (run_folder.path / "evaluations" / "large-calibration.json").unlink()
    assert before(usd_per_wrong_answer=1.0) == []


def test_a_guarantee_that_binds_answers_says_what_it_costs(many: Project, run_folder: RunFolder) -> None:
    """The demo's case: a part goes to a large model that is right less often, at a multiple of the price."""
    values = {"name": "desk", "data": {"train": "t.jsonl"}, "gate": {"accuracy_at_least": 0.6}}
    large = {"gguf": "large.gguf"}
    bound = TaskFile.model_validate({**values, "large": large, "routing": {"guarantee": {"max_error": 0.1}}})
    verdict = Verdict(candidate="tuned", checks=(), passed=True, evaluation_fingerprint="e", **SIGNED)
    GateVerdicts(verdicts=(verdict,), winner="tuned", chosen="tuned").save(run_folder.path / VERDICTS)
    routed = measured("routed", 205, 110.0, split="test")
    assert price_of_guarantee(many._replace(file=bound), run_folder, routed) == (
        "Without routing.guarantee “fine-tuned sentence embeddings” alone would answer every request: right on 86.4 % "
        "[81.6, 90.1] of 250 test rows, at $0.37 per 1,000 requests in place of $110."
    )
    better = measured("routed", 220, 110.0, split="test")
    assert price_of_guarantee(many._replace(file=bound), run_folder, better) == ""
    free = TaskFile.model_validate({**values, "large": large})
    assert price_of_guarantee(many._replace(file=free), run_folder, routed) == ""


SIGNED = {"signed_by": "Ada", "because": "a pilot", "signed_at": "2030-01-02T10:00:00+00:00"}
