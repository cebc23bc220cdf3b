"""What is fixed before a test row is read: finalists and plans by worth, and which test rows certify with others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of
from fixtures.preflight import task_of, write_rows
from fixtures.rows import text_rows

from smallfirst.measuring.choice import Choice
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation, compare
from smallfirst.path.finalists import (
    FIXED,
    FixedBeforeTest,
    JoinedRows,
    _order_plans,
    choosing_evaluations,
    expected_plans,
    find_joined,
    fix_before_test,
    fix_finalists,
    no_finalists,
    plan_options,
)
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FINALISTS, Finalists, RunFolder
from smallfirst.path.project.task_file import LargeConfig
from smallfirst.path.release import gate_stage
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.looks import LookRequest, SharedLook, count_look
from smallfirst.routing.certificate.threshold_search import search_threshold

BY_MODEL = {"teacher": "big-1", "labelled_on": "2026-11-30"}
WORDS = ("apple", "brick", "cloud", "drum", "eagle", "flute", "grape", "horse", "ink", "jar", "kite", "lamp")


def texts(part: str, n: int) -> list[str]:
    """Texts without near-copies of each other."""
    draw = np.random.default_rng(len(part))
    return [f"{part} {i} {' '.join(draw.permutation(WORDS)[:6])}" for i in range(n)]


def labelled(part: str, n: int, **more: str) -> list[dict[str, str]]:
    return [
        {"text": text, "label": "ab"[i % 2], "case": f"{part} {i}", **more} for i, text in enumerate(texts(part, n))
    ]


def project(
    folder: Path, *, split: bool = True, data: dict[str, Any] | None = None, gate: bool = True, **routing: Any
) -> Project:
    """Rows that the run splits itself, or files of each part; a gate of 0.6 unless there is none."""
    write_rows(folder / "train.jsonl", labelled("train", 120))
    named: dict[str, Any] = {"train": "train.jsonl"}
    for part, n in () if split else (("validation", 60), ("test", 40)):
        if not (folder / f"{part}.jsonl").exists():
            write_rows(folder / f"{part}.jsonl", labelled(part, n))
        named[part] = f"{part}.jsonl"
    more = {"labels": ["a", "b"], "routing": routing} | ({"gate": {"accuracy_at_least": 0.6}} if gate else {})
    return task_of(folder, {}, data=named | (data or {}), **more)


def run_of(of: Project, folder: Path, name: str = "run-1", finalists: tuple[str, ...] = ("words",)) -> RunFolder:
    """A run that fixed its finalists, then measured `words` on test rows."""
    run_folder = RunFolder(folder / "tasks" / name)
    run_folder.path.mkdir(parents=True)
    shares = {one: 0.6 if one == finalists[0] else 0.1 for one in finalists}
    Finalists(names=finalists, shares=shares).save(run_folder.path / FINALISTS)
    fix_before_test(of, run_folder)
    measure(of, run_folder)
    return run_folder


def measure(of: Project, run_folder: RunFolder) -> None:
    rows = [evaluated_row(e.key, e.answer, e.answer, text=e.text, group=e.group) for e in of.rows.test.examples]
    run_folder.save_evaluation(evaluation_of(rows, candidate="words"))


def joined(of: Project, folder: Path, **more: Any) -> JoinedRows:
    return find_joined(of, run_of(of, folder, **more), "words")


def test_rows_that_the_run_split_itself_certify_together(tmp_path: Path) -> None:
    of = project(tmp_path)
    found = joined(of, tmp_path)
    assert (found.why_not, found.n_test) == ("", len(of.rows.test))
    assert found.rows.examples == (*of.rows.calibration.examples, *of.rows.test.examples)
    assert "test rows, which the gate reads too" in found.in_words


def test_the_level_is_divided_among_all_that_were_fixed_before_never_those_that_passed(tmp_path: Path) -> None:
    of = project(tmp_path)
    run_folder = run_of(of, tmp_path, finalists=("words", "encoder", "tuned"))
    assert find_joined(of, run_folder, "words").look.part == pytest.approx(0.75)
    Finalists(names=("words",), shares={"words": 0.6}).save(run_folder.path / FINALISTS)  # chosen anew afterwards
    fix_before_test(of, run_folder)
    assert find_joined(of, run_folder, "words").look.part == pytest.approx(0.75)
    assert find_joined(of, run_folder, "static").why_not == "this candidate was not fixed before a test row was read"


def test_nothing_is_fixed_after_a_test_row_was_read(tmp_path: Path) -> None:
    of, run_folder = project(tmp_path), RunFolder(tmp_path / "tasks" / "run")
    measure(of, run_folder)
    fix_before_test(of, run_folder)
    assert "not fixed before" in find_joined(of, run_folder, "words").why_not


@pytest.mark.parametrize(("price", "free"), [(None, True), (0.1, False)])
def test_without_a_rank_that_is_free_of_calibration_rows_all_candidates_share_alike(
    tmp_path: Path, price: float | None, free: bool
) -> None:
    """With a price of errors the large model's error on calibration rows ranks plans, and these rows certify too."""
    of = project(tmp_path, guarantee={"max_error": 0.1}, usd_per_wrong_answer=price)
    large = LargeConfig.model_validate({"recorded": "large.jsonl"})
    for one, alike in ((of, False), (of._replace(file=of.file.model_copy(update={"large": large})), not free)):
        run_folder = RunFolder.new("desk")
        Finalists(names=("encoder", "words"), shares={"encoder": 0.6, "words": 0.2}).save(run_folder.path / FINALISTS)
        if one is not of:
            asked = evaluation_of([evaluated_row("1", "a", "a")], candidate="large", split="calibration")
            run_folder.save_evaluation(asked)
        for name in ("words", "encoder"):
            run_folder.model_folder(name).mkdir(parents=True)
        fix_before_test(one, run_folder)
        parts = FixedBeforeTest.load(run_folder.path / FIXED).parts
        assert sum(parts.values()) == pytest.approx(1)
        assert (len(set(parts.values())) == 1) is alike


@pytest.mark.parametrize("changed", [{"guarantee": {"max_error": 0.1}}, {"domain": "off"}])
def test_another_promise_than_the_fixed_one_is_certified_without_them(tmp_path: Path, changed: dict[str, Any]) -> None:
    run_folder = run_of(project(tmp_path), tmp_path)
    assert "changed after a test row" in find_joined(project(tmp_path, **changed), run_folder, "words").why_not
    assert find_joined(project(tmp_path, person=True), run_folder, "words").why_not == ""


def test_test_rows_that_an_earlier_run_has_read_certify_nothing_but_new_ones_do(tmp_path: Path) -> None:
    of = project(tmp_path)
    first = run_of(of, tmp_path)
    again = find_joined(of, first, "words")
    assert joined(of, tmp_path, name="run-2").why_not == "an earlier run has read them"
    assert find_joined(of, first, "words") == again  # the same run repeats itself
    test = text_rows("t", *texts("late", 3), *(e.text for e in of.rows.test.examples))
    later = of._replace(rows=of.rows.model_copy(update={"test": test}))
    found = find_joined(later, run_of(later, tmp_path, name="run-3"), "words")
    assert (found.why_not, found.n_test) == ("", 3)


def test_files_that_the_user_gave_certify_together_only_where_they_are_declared_alike(tmp_path: Path) -> None:
    assert "data.exchangeable: true" in joined(project(tmp_path / "a", split=False), tmp_path / "a").why_not
    of = project(tmp_path / "b", split=False, data={"exchangeable": True})
    assert (joined(of, tmp_path / "b").why_not, len(of.rows.test)) == ("", 40)


@pytest.mark.parametrize(
    ("validation", "test", "routing", "why_not"),
    [
        (BY_MODEL, {}, {}, "another source"),
        (BY_MODEL, BY_MODEL, {}, ""),
        ({}, {}, {"labels": "large"}, "another source"),  # nothing says who labelled the test
    ],
)
def test_the_same_judge_labels_both(
    tmp_path: Path, validation: dict[str, str], test: dict[str, str], routing: dict[str, Any], why_not: str
) -> None:
    write_rows(tmp_path / "validation.jsonl", labelled("validation", 60, **validation))
    write_rows(tmp_path / "test.jsonl", labelled("test", 40, **test))
    found = joined(project(tmp_path, split=False, data={"exchangeable": True}, **routing), tmp_path).why_not
    assert why_not in found
    assert bool(found) == bool(why_not)


def test_copies_and_members_of_a_group_count_once_over_both(tmp_path: Path) -> None:
    own = labelled("test", 40)
    own[0]["text"] = texts("train", 120)[3]
    own[1]["text"] = texts("validation", 60)[5]
    own[2]["case"] = own[3]["case"] = "one case"
    own[4]["case"] = "validation 7"
    write_rows(tmp_path / "test.jsonl", own)
    of = project(tmp_path, split=False, data={"exchangeable": True, "columns": {"group": "case"}})
    found = joined(of, tmp_path)
    assert (found.why_not, found.n_test) == ("", 40 - 2 - 1 - 1)


def test_a_row_that_some_stage_was_not_asked_does_not_certify(tmp_path: Path) -> None:
    of = project(tmp_path, ahead=["words"])
    run_folder = run_of(of, tmp_path, finalists=("encoder",))
    half = run_folder.evaluation("words", "test")
    run_folder.save_evaluation(half.model_copy(update={"candidate": "encoder", "rows": half.rows[:5]}))
    assert find_joined(of, run_folder, "encoder").n_test == 5


def test_what_a_gate_lets_live_on_the_same_rows_is_promised_falsely_no_more_often_than_stated(tmp_path: Path) -> None:
    draws, bad = 600, {"divided": 0, "whole": 0}
    share = count_look(LookRequest(tmp_path / "looks.json", "large", SharedLook("run", 1 / 3)), {"row"}, "a").share
    for seed in range(draws):  # three candidates; of what they keep a little more than 10 % is wrong everywhere
        draw, live = np.random.default_rng(seed), dict.fromkeys(bad, False)
        for _ in range(3):
            confidence, right = draw.random(300), draw.random(300) >= 0.1001
            passes = right[200:].mean() >= 0.9  # a gate on the last 100 rows, which are test rows
            for name, part in (("divided", share), ("whole", 0.8)):
                guarantee = Guarantee(max_error=0.1, confidence=1 - 0.05 * part)
                found = search_threshold(confidence.tolist(), right.tolist(), guarantee)
                live[name] |= passes and found.n_accepted > 0
        for name in bad:
            bad[name] += live[name]
    assert bad["divided"] / draws <= 0.04 < bad["whole"] / draws


def measured(name: str, n_right: int, usd_per_1k: float, *, n: int = 250, split: str = "selection") -> Evaluation:
    """A candidate that is right on the first rows, and the more confident the earlier they stand."""
    usd = usd_per_1k / 1000
    rows = [row(i, i < n_right, 1 - i / n).model_copy(update={"cost_usd": usd}) for i in range(n)]
    return evaluation_of(rows, candidate=name, split=split, cost_usd_per_1k=usd_per_1k)


def row(i: int, correct: bool, confidence: float | None = None) -> EvaluatedRow:
    return evaluated_row(str(i), "a", "a" if correct else "b", confidence=confidence)


def set_routing(of: Project, **settings: Any) -> Project:
    """The project with these settings below `routing`, as if task.yaml had them."""
    routing = type(of.file.routing).model_validate(settings)
    return of._replace(file=of.file.model_copy(update={"routing": routing}))


@pytest.fixture
def many(tmp_path: Path) -> Project:
    """200 test rows."""
    write_rows(tmp_path / "test.jsonl", labelled("test", 200))
    return project(tmp_path, split=False)


@pytest.fixture
def run_folder(many: Project) -> RunFolder:
    """A run of four candidates; the fine-tuned encoder is three points better at the cost of the frozen one."""
    found = RunFolder.new("desk")
    for name, n_right, usd in (("words", 195, 0.02), ("encoder", 208, 0.30), ("tuned", 216, 0.37), ("small", 212, 5.0)):
        for split in ("selection", "calibration", "test"):
            found.save_evaluation(measured(name, n_right, usd, split=split))
    return found


def test_out_of_fold_answers_choose_where_a_candidate_has_them_and_who_is_no_finalist_is_told(tmp_path: Path) -> None:
    of_run, rows = RunFolder(tmp_path), [row(i, i % 4 > 0) for i in range(40)]
    for name, split, n in (("small", "selection", 8), ("words", "choosing", 40), ("words", "selection", 8)):
        of_run.save_evaluation(evaluation_of(rows[-n:], candidate=name, split=split))
    words, small = choosing_evaluations(of_run)
    assert (words.candidate, words.split, len(words.rows)) == ("words", "choosing", 40)
    assert (small.candidate, small.split, len(small.rows)) == ("small", "selection", 8)  # not fitted several times
    assert compare(words, small).difference.n == 8  # on the rows that both have answered
    assert no_finalists(of_run) == {}  # nothing was decided yet
    Finalists(names=("encoder",), shares={"encoder": 0.8}).save(tmp_path / FINALISTS)
    told = no_finalists(of_run)
    assert list(told) == ["words", "small"]
    assert told["words"].startswith("no finalist by its accuracy 0.750 [")
    assert "on 40 rows out of fold; test rows were not asked" in told["words"]
    assert "on 8 rows to select with" in told["small"]


def test_a_plan_keeps_what_its_certificate_is_expected_to_keep() -> None:
    def share(n_right: int, n_certify: int, **limits: Any) -> float:
        """What is not kept costs 1 USD."""
        guarantee = Guarantee.model_validate(limits)
        [plan] = plan_options([measured("words", n_right, 0.0)], guarantee, {"": n_certify})
        return 1 - plan.usd

    assert share(150, 400) < 0.63 < 0.9 < share(248, 400)  # three fifths are surely right
    assert share(150, 100) < share(150, 400)
    assert 0.1 <= share(150, 20) == share(150, 80) < share(150, 400)  # 20 rows show nothing: as many more as do
    assert share(150, 400, max_error=None, max_accuracy_loss=0.01) == pytest.approx(0.6)
    [nothing] = plan_options([evaluation_of([], candidate="words", cost_usd_per_1k=0.0)], Guarantee(), {"": 400})
    assert nothing.usd == 1


def test_where_nothing_may_answer_alone_the_first_is_what_keeps_most_not_what_errs_least(tmp_path: Path) -> None:
    """Of words that keep little the plan errs less, since all the rest counts as right."""
    run_folder, names = RunFolder.new("desk"), ("words", "encoder", "multilingual")
    for name, n_right in zip(names, (150, 190, 235), strict=True):
        for split in ("selection", "calibration"):
            run_folder.save_evaluation(measured(name, n_right, 0.1, split=split))
    of = project(tmp_path, gate=False)
    assert fix_finalists(of, run_folder).names == names[::-1]
    assert [one.candidate for one in expected_plans(of, run_folder)] == [*names[::-1]]


@pytest.mark.parametrize(("apart", "first"), [(0.05, "encoder"), (0.2, "words")])
def test_of_plans_that_keep_nearly_alike_the_most_accurate_candidate_s_comes_first(
    tmp_path: Path, apart: float, first: str
) -> None:
    both = [measured("words", 220, 0.1), measured("encoder", 235, 0.1)]
    plans = [Choice("words", 0.3, {}), Choice("encoder", 0.3 + apart, {})]
    assert _order_plans(project(tmp_path).file, plans, both, None)[0].candidate == first


def test_by_language_a_plan_keeps_what_each_is_expected_to_show_in_the_mix_of_the_rows_that_certify() -> None:
    english, german = "wake me up at seven tomorrow morning", "weck mich bitte morgen früh um sieben Uhr"

    def answers(name: str, english_right: int, german_right: int) -> Evaluation:
        rows = [row(i, i < english_right, 1 - i / 250).model_copy(update={"text": english}) for i in range(250)]
        rows += [row(250 + i, i < german_right, 1 - i / 50).model_copy(update={"text": german}) for i in range(50)]
        return evaluation_of(rows, candidate=name, cost_usd_per_1k=0.0)

    both = [answers("words", 250, 10), answers("multilingual", 220, 46)]
    guarantee = Guarantee.model_validate({"languages": ["de", "en"]})
    shares = [[1 - one.usd for one in plan_options(both, guarantee, n)] for n in ({"en": 400}, {"en": 200, "de": 200})]
    assert shares[0][0] > shares[0][1]
    assert shares[1][0] < shares[1][1]
    [words, _] = plan_options(both, guarantee, {"en": 200, "de": 200})
    assert [words.wrong["0"], words.wrong["299"]] == [0, 0]  # a German request goes to the large model
    [unknown] = plan_options(both[:1], guarantee, {"en": 200, "fi": 200})
    assert 1 - unknown.usd == pytest.approx(shares[0][0] / 2, abs=0.05)


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
    Finalists(names=("words", "small"), shares={"words": 0.6, "small": 0.2}).save(run_folder.path / FINALISTS)
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
    assert verdicts.winner == "tuned"
    assert [one.candidate for one in verdicts.verdicts] == ["tuned", "small", "encoder"]
    on_test("tuned", 146, 0.37)  # clearly behind the encoder, which costs no more
    verdicts = gate_stage(many, run_folder)
    assert verdicts.of("tuned").passed
    assert verdicts.winner == "encoder"
    on_test("tuned", 100, 0.37)
    verdicts = gate_stage(many, run_folder)
    assert (verdicts.winner, verdicts.of("tuned").passed) == ("encoder", False)


def test_the_plan_of_the_most_worth_comes_first(many: Project, run_folder: RunFolder) -> None:
    assert expected_plans(many, run_folder)[0].candidate == "tuned"  # it keeps most
    run_folder.save_evaluation(measured("large", 240, 10.0, split="calibration"))
    plans = expected_plans(many, run_folder)
    assert plans[0].candidate == "tuned"
    n_escalated = sum(error == pytest.approx(0.04) for error in plans[0].wrong.values())  # 240 of 250 are right
    assert 1000 * plans[0].usd == pytest.approx(0.37 + 10 * n_escalated / 250, abs=10 / 250)
    assert [one.candidate for one in expected_plans(set_routing(many, small="encoder"), run_folder)] == ["encoder"]


def test_a_plan_comes_before_a_candidate_alone_where_it_loses_less(many: Project, run_folder: RunFolder) -> None:
    def before(**routing: Any) -> list[str]:
        return [one.candidate for one in expected_plans(set_routing(many, **routing), run_folder, instead_of="tuned")]

    run_folder.save_evaluation(measured("large", 245, 10.0, split="calibration"))
    assert before() == []  # nothing prices an error: what passes its gate goes live alone
    assert before(usd_per_wrong_answer=0.001) == []
    assert "tuned" in before(usd_per_wrong_answer=1.0)
    (run_folder.path / "evaluations" / "large-calibration.json").unlink()
    assert before(usd_per_wrong_answer=1.0) == []
