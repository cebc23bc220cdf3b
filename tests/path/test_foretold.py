"""What rows can show; plans share the level: z² is 4.709 (97 %) beside other candidates, else 4.218."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.preflight import project_of

from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.base.records import fingerprint
from smallfirst.base.stats.sample_size import RowsNeeded
from smallfirst.data.dataset import fold_text
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import Gate
from smallfirst.measuring.verdict import nearest_to_passing
from smallfirst.path.finalists import LOOKS
from smallfirst.path.foretold import Foretold, OpenQuestion, RequirementForecast, foretell, labels_needed, rows_to_label
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import VERDICTS, GateVerdicts, RunFolder
from smallfirst.path.project.task_file import read_task_file
from smallfirst.routing.certificate.looks import LookRequest, count_look

LARGE = 'large: {endpoint: {base_url: "http://localhost:1/v1", model: m}}\n'


def gate(folder: Path, gate: str, *, test: int = 60, more: str = "") -> RequirementForecast:
    [found] = foretell(project_of(folder, test=test, more=f"gate: {{{gate}}}\n{more}")).gate
    return found


def rows(folder: Path, n: int, n_plain: int = 10, more: str = "gate: {accuracy_at_least: 0.8}\n") -> Project:
    """A file of n rows, of which `n_plain` in ten say their label."""
    draw, lines = random.Random(0), []
    for i in range(n):
        label = draw.choice(("card", "fee", "pin"))
        words = " ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(6))
        lines.append(json.dumps({"text": f"{words} {label if i % 10 < n_plain else ''}", "label": label}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "task.yaml").write_text(f"name: desk\nladder: [words]\ndata: {{train: rows.jsonl}}\n{more}")
    return Project.read(read_task_file(folder), Progress(quiet=True))


def test_an_accuracy_is_shown_up_to_so_many_wrong_rows(tmp_path: Path) -> None:
    found = gate(tmp_path, "accuracy_at_least: 0.8", test=70)
    # Wilson's lower end of 64 of 70 is 0.809, of 63 of 70 0.791.
    assert found.in_words == "70 test rows show accuracy at least 0.800 only from a measured 0.914 (6 wrong at most)"
    assert (found.reachable, list(Foretold(gate=(found,)).findings)) == (True, [])
    assert gate(tmp_path, "accuracy_at_least: 0.8", test=19).reachable  # 19 / 23.709 = 0.801


def test_an_accuracy_that_too_few_rows_cannot_show_is_a_finding_with_the_one_number(tmp_path: Path) -> None:
    found = foretell(project_of(tmp_path, test=18, more="gate: {accuracy_at_least: 0.8}\n"))  # 18 / 22.709 = 0.793
    assert not found.gate[0].reachable
    assert found.fewest.files["test.jsonl"] >= 1
    finding, *_ = found.findings
    assert finding.level == "fix"
    assert finding.what.startswith("gate: accuracy at least 0.800 is out of reach: 1.000 [0.793, 1.000] n=18")
    assert finding.rule == f"add {found.fewest.in_words}; or change gate.accuracy_at_least"


@pytest.mark.parametrize(
    ("threshold", "more", "reachable"),
    [
        ("measures_at_least: {macro_f1: 0.9}", "", True),  # 60 / 64.709 = 0.927
        ("measures_at_least: {macro_f1: 0.93}", "", False),
        ("each_part_at_least: 0.7", "", True),  # 3 labels of 20 rows: z² = 6.635, 20 / 26.635 = 0.751
        ("each_part_at_least: 0.76", "", False),
        ("parts_at_least: {pin: 0.75}", "", True),  # one label: 20 / 24.709 = 0.809
        ("p95_ms_at_most: 5", "", False),  # 60 requests show no upper end: it takes 82
        ("not_worse_than_large_by: 0.1", "", False),  # there is none
        ("not_worse_than_large_by: 0.1", LARGE, True),  # 4.709 / 64.709 = 0.073
        ("not_worse_than_large_by: 0.1", LARGE.replace("m}}", "m}, sample_test: 30}"), False),  # 4.709 / 34.709 = 0.136
    ],
)
def test_every_threshold_is_judged_by_the_gate_s_own_check(
    tmp_path: Path, threshold: str, more: str, reachable: bool
) -> None:
    assert gate(tmp_path, threshold, more=more).reachable is reachable


def test_a_metric_or_label_that_the_task_lacks_is_found_before_training(tmp_path: Path) -> None:
    [finding] = Foretold(gate=(gate(tmp_path, "measures_at_least: {wighted_f1: 0.5}"),)).findings
    assert 'has no metric "wighted_f1"' in finding.what
    assert finding.rule == (
        'metrics of task "desk": macro_f1, weighted_f1; or change gate.measures_at_least.wighted_f1'
    )
    assert 'has no part "pen"' in gate(tmp_path, "parts_at_least: {pen: 0.5}").in_words


def test_an_accuracy_of_one_says_that_nothing_goes_live_alone_and_is_no_finding(tmp_path: Path) -> None:
    assert foretell(project_of(tmp_path, test=60, more="gate: {accuracy_at_least: 1.0}\n")).gate == ()


def test_the_certificate_is_foretold_at_the_level_of_the_next_look(tmp_path: Path) -> None:
    found = foretell(project_of(tmp_path, calibration=62))  # at 0.04: 0.95^62 = 0.0416, 0.95^63 = 0.0395
    [finding] = found.findings
    assert (finding.level, finding.rule.endswith("; or change routing.guarantee")) == ("fix", True)
    assert finding.what == (
        "certificate: 62 calibration rows cannot show at most 5 % of kept answers wrong (95 %), even without an error"
    )
    project = project_of(tmp_path, calibration=63)
    enough = foretell(project).certificate
    assert "if, say, the 63 most confident answers are all right" in enough.in_words
    texts = {fingerprint(fold_text(example.text)) for example in project.rows.calibration.examples}
    (home() / "tasks" / "desk").mkdir(parents=True)
    count_look(LookRequest(home() / "tasks" / "desk" / LOOKS), texts, "another guarantee")
    later = foretell(project).certificate
    assert not later.reachable  # a later look at the same rows takes more of them


def test_the_errors_assumed_are_said_and_the_chances_lie_between_them(tmp_path: Path) -> None:
    found = foretell(rows(tmp_path, 300, n_plain=8))
    assert found.assumption.startswith("from the errors of a linear model on words (right on 0.9")
    assert found.chance_certificate is not None
    for low, high in (found.chance_gate, found.chance_certificate):
        assert 0 <= low <= high <= 1
    assert found.chance_gate[1] > 0.8  # half of 13 % errors on 60 rows, of which 0.8 is asked
    assert found.most is None or found.most.n_data_rows >= found.fewest.n_data_rows
    assert "rows: about " in "\n".join(found.in_words)


def test_enough_rows_ask_for_none(tmp_path: Path) -> None:
    found = foretell(rows(tmp_path, 1500))
    assert (found.most, found.fewest) == (None, None)
    assert found.chance_certificate is not None
    assert min(found.chance_certificate) > 0.75


def question(part: str, n_more: int, chance: float, n_now: int) -> OpenQuestion:
    return OpenQuestion(part, RowsNeeded(n_more, chance), n_now)  # type: ignore[arg-type]


def test_of_one_file_the_question_that_takes_most_rows_decides_and_the_least_chance_is_said(tmp_path: Path) -> None:
    project = rows(tmp_path, 200, more="prices: {usd_per_label: 0.1}\n")
    n_test, n_cal = len(project.rows.test), len(project.rows.calibration)
    gate, certificate = question("test", n_test, 0.6, n_test), question("calibration", 3 * n_cal, 0.75, n_cal)
    found = rows_to_label(project, [gate, certificate])
    assert (found.n_data_rows, found.chance) == (600, 0.6)  # three times 200 rows give three times as many of each part
    assert found.in_words == "about 600 more rows in rows.jsonl (chance 60 %)"
    assert found.with_price.endswith(", for about $60.00 by a person")
    # Where test rows certify as well, twice as many rows of the file count, so half as many are missing.
    both = rows_to_label(project, [question("calibration", 3 * n_cal, 0.75, 2 * n_cal)])
    assert both.n_data_rows == 300
    never = question("test", 20_000, 0.02, 40)
    assert rows_to_label(project, [never]) is None
    assert rows_to_label(project, []) is None
    assert rows_to_label(project, [never, certificate]) == rows_to_label(project, [certificate])
    bare = project._replace(rows=project.rows.model_copy(update={"test": project.rows.test.subset("none", ())}))
    found = rows_to_label(bare, [question("test", 10, 0.75, 0)])
    assert found.n_data_rows == 50  # without a row of the part: a fifth of the file


def test_files_of_their_own_grow_by_what_each_lacks(tmp_path: Path) -> None:
    project = project_of(tmp_path, calibration=40)
    found = rows_to_label(project, [question("test", 7, 0.75, 60), question("calibration", 10, 0.7, 40)])
    n_validation = sum(map(len, (project.rows.selection, project.rows.calibration, project.rows.left_out)))
    assert found.files == {"test.jsonl": 7, "validation.jsonl": -(-10 * n_validation // 40)}
    assert found.n_data_rows == sum(found.files.values())
    assert found.in_words.startswith(f"about {found.n_data_rows} more rows (7 in test.jsonl, ")
    assert found.in_words.endswith(" in validation.jsonl; chance 70 %)")


def test_of_all_candidates_the_one_that_takes_fewest_rows_is_asked_for(
    tmp_path: Path, measured: Callable[..., Evaluation]
) -> None:
    project, run_folder, gate = rows(tmp_path, 200), RunFolder(tmp_path / "run"), Gate(accuracy_at_least=0.8)
    first, second = verdicts = tuple(
        gate.check(
            measured([True] * right + [False] * (30 - right), candidate=name), large=None, comparisons_made=parts
        )
        for name, right, parts in (("encoder", 27, 1 / 0.6), ("tuned", 28, 10))
    )
    assert nearest_to_passing(verdicts) is first  # its interval ends nearer to the bar
    assert (first.checks[0].more_rows, second.checks[0].more_rows) == (370, 160)
    GateVerdicts(winner=None, verdicts=verdicts).save(run_folder.path / VERDICTS)
    found = labels_needed(project, run_folder)
    assert found.n_data_rows == pytest.approx(160 * 200 / len(project.rows.test), rel=0.1)
