"""Labelling: no answer is paid twice, no cap is passed, no held-out text becomes a training row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.endpoints import large_server
from fixtures.expenses import spent_once
from fixtures.preflight import write_rows, write_task
from fixtures.server import SayingModel

from smallfirst.base.errors import BadAnswer, ConfigError, DataError
from smallfirst.base.progress import Progress
from smallfirst.base.stats.intervals import wilson
from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.load import load_rows
from smallfirst.models.protocol import Completion, Request
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.traffic.labelling import Labeller, LabellingResult, LabelOptions, label, large_model_teacher

LABELS, PARTS = ("card", "fee", "pin"), ("train", "validation", "test")
QUIET = Progress(quiet=True)
COST, WORST = 1 / 64, 2 / 64
"""Exact in binary, so that sums can be compared."""


def text(i: int) -> str:
    """A text that shares no word with any other."""
    return " ".join(f"w{i}{letter}" for letter in "abcdefgh")


def gold(words: str) -> str:
    """The label that people give: by the number of the text."""
    return LABELS[int(words.split()[0][1:-1]) % 3]


def labelled_rows(numbers: range) -> list[dict[str, Any]]:
    return [{"text": text(i), "label": gold(text(i))} for i in numbers]


def task(folder: Path, **changes: Any) -> TaskFile:
    """A task of 12 training, 10 validation and 6 test rows; 4 of the validation rows choose (texts 100 to 127)."""
    places = {"train": range(100, 112), "validation": range(112, 122), "test": range(122, 128)}
    parts = {part: labelled_rows(numbers) for part, numbers in places.items()}
    return write_task(folder, parts, **({"routing": {"selection_share": 0.5}} | changes))


def texts(folder: Path, numbers: range = range(8)) -> Path:
    return write_rows(folder / "rows.jsonl", [{"text": text(i)} for i in numbers])


class Oracle(SayingModel):
    """Knows the right label, or says what `says` says; it may break down at its n-th request."""

    def __init__(
        self,
        says: Callable[[Request], str] = lambda request: gold(request.text),
        *,
        confidence: Callable[[str], float | None] = lambda text: None,
        breaks: dict[int, BaseException] | None = None,
    ) -> None:
        super().__init__("oracle", says, cost_usd=COST)
        self.confidence, self.breaks = confidence, breaks or {}
        self.answered: list[str] = []

    async def complete(self, request: Request) -> Completion:
        found = await super().complete(request)
        if len(self.asked) in self.breaks:
            raise self.breaks[len(self.asked)]
        self.answered.append(request.text)
        return found.model_copy(update={"confidence": self.confidence(request.text)})


def options(folder: Path, **values: Any) -> LabelOptions:
    """Nothing but the rows is asked, unless said otherwise."""
    return LabelOptions.model_validate({"out": folder / "labelled.jsonl", "yes": True, "check_rows": 0, **values})


def run(
    folder: Path,
    model: Any,
    *,
    file: TaskFile | None = None,
    rows: Path | None = None,
    way: str = "way-1",
    worst_usd: float = WORST,
    **values: Any,
) -> LabellingResult:
    return label(
        file or task(folder),
        rows or texts(folder),
        options=options(folder, **values),
        progress=QUIET,
        teacher=Labeller(model, way, lambda text: worst_usd),
    )


def out(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "labelled.jsonl").read_text(encoding="utf-8").splitlines()]


# What comes out


def test_labelled_rows_are_training_rows_that_say_where_they_come_from(tmp_path: Path) -> None:
    model = Oracle(confidence=lambda text: 0.75)
    found = run(tmp_path, model)
    rows = out(tmp_path)
    assert [row["text"] for row in rows] == [text(i) for i in range(8)]
    assert [row["label"] for row in rows] == [LABELS[i % 3] for i in range(8)]
    assert all((row["teacher"], row["confidence"]) == ("oracle", 0.75) for row in rows)
    assert all(row["labelled_on"] == found.made_at for row in rows)
    assert LabellingResult.load(tmp_path / "labelled.labels.json") == found
    assert model.closed
    # Named together with the training rows they are what the task trains on.
    both = (tmp_path / "train.jsonl").read_text() + (tmp_path / "labelled.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(both)
    assert len(Project.read(read_task_file(tmp_path), QUIET).rows.train) == 12 + 8


SHOP = {"type": "object", "properties": {"item": {"type": "string"}}}


@pytest.mark.parametrize(("settings", "known", "unlabelled", "said", "made"), [
    (
        {"kind": "extract", "schema": SHOP, "columns": {"text": "body"}},
        {"body": "two pens", "target": {"item": "pen"}}, {"body": "one cup"}, 'Sure: {"item": "cup"}',
        {"body": "one cup", "target": {"item": "cup"}},
    ),
    (
        {"kind": "answer"},
        {"question": "how long?", "answer": "a day", "context": "It takes a day."},
        {"question": "how much?", "context": ["It costs a pound.", "It is green."]},
        "a pound",
        {"question": "It costs a pound., It is green.\n\nhow much?", "answer": "a pound"},
    ),
    (
        {"kind": "chat"},
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]},
        {"text": "good bye"},
        "farewell",
        {"messages": [{"role": "user", "content": "good bye"}, {"role": "assistant", "content": "farewell"}]},
    ),
])  # fmt: skip
def test_every_kind_of_task_gets_rows_of_its_own_shape(
    tmp_path: Path, settings: Any, known: Any, unlabelled: Any, said: str, made: Any
) -> None:
    columns = settings.get("columns", {})
    settings = {name: value for name, value in settings.items() if name != "columns"}
    file = write_task(tmp_path, {part: [known] for part in PARTS}, data={"columns": columns}, **settings)
    rows = write_rows(tmp_path / "rows.jsonl", [unlabelled])
    run(tmp_path, Oracle(lambda request: said), file=file, rows=rows)
    (row,) = out(tmp_path)
    assert {key: row[key] for key in made} == made
    names = Columns(**columns)
    labelled, train = (
        load_rows(tmp_path / f"{name}.jsonl", columns=names).examples[0] for name in ("labelled", "train")
    )
    assert labelled.shape == train.shape


def test_kept_left_out_and_unparseable_rows_are_counted_apart(tmp_path: Path) -> None:
    sure = {text(0): 0.9, text(1): 0.89, text(2): None, text(3): 1.0}
    unclear = {text(4): "no idea", text(5): "card or fee"}
    model = Oracle(
        lambda request: unclear.get(request.text, "card"),
        confidence=lambda text: sure.get(text, 0.95),
        breaks={7: BadAnswer("nothing")},
    )
    found = run(tmp_path, model, min_confidence=0.9)
    assert [row["text"] for row in out(tmp_path)] == [text(0), text(3), text(7)]
    assert found.counts == {"kept": 3, "unsure": 2, "unparseable": 2, "unanswered": 1}
    again = Oracle()
    assert run(tmp_path, again).counts == {"kept": 6, "unparseable": 2}
    assert again.answered == [text(6)]  # the failed one alone


def test_open_text_that_was_cut_off_is_no_answer_but_a_label_before_the_cut_is(tmp_path: Path) -> None:
    class Cut(Oracle):
        async def complete(self, request: Request) -> Completion:
            return (await super().complete(request)).model_copy(update={"finish_reason": "length"})

    assert run(tmp_path, Cut(lambda request: "card, because")).counts["kept"] == 8
    rows = {part: [{"prompt": "hello", "response": "hi there"}] for part in PARTS}
    file = write_task(tmp_path, rows, kind="chat", routing={"selection_share": 0.5})
    found = run(tmp_path, Cut(lambda request: "farewell"), file=file, way="way-2")
    assert found.counts == {"unparseable": 8}


# How far to believe them


def test_the_teacher_is_held_against_selection_rows_that_never_become_training_rows(tmp_path: Path) -> None:
    chosen = {e.text for e in Project.read(task(tmp_path), QUIET).rows.selection.examples}
    wrong = sorted(chosen)[0]
    model = Oracle(lambda r: "none of them" if r.text == wrong else gold(r.text), confidence=lambda text: 0.9)
    found = run(tmp_path, model, check_rows=50, min_confidence=0.8)
    n = len(chosen)
    assert n >= 2
    assert {r.text for r in model.asked} == chosen | {text(i) for i in range(8)}
    assert found.trust.accuracy == wilson(n - 1, n)
    assert found.trust.confident_accuracy == wilson(n - 1, n - 1)
    assert chosen.isdisjoint(row["text"] for row in out(tmp_path))


# Held-out rows


def test_texts_of_held_out_rows_are_refused_and_every_row_is_counted_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "open.jsonl", [{"prompt": text(200)}])
    file = task(tmp_path, data={"open_ended": "open.jsonl"})
    rows = [
        {"text": text(1)},
        {"text": text(1).upper() + "!"},  # repeated
        *({"text": text(i)} for i in (*range(113, 128), 200)),  # validation, test and open-ended rows
        {"text": f"«{text(112).upper()}»"},  # a validation row, folded
        {"text": text(100).title()},  # a training row, folded
        {"text": text(2)},
    ]
    model = Oracle()
    found = run(tmp_path, model, file=file, rows=write_rows(tmp_path / "rows.jsonl", rows))
    assert [r.text for r in model.asked] == [text(1), text(2)]
    assert list(found.refused.values()) == [1, 17, 1]
    assert found.counts == {"kept": 2}


# Going on after a stop


def test_after_a_crash_between_answers_no_text_is_asked_twice(tmp_path: Path) -> None:
    first = Oracle(breaks={6: RuntimeError("power cut")})
    with pytest.raises(ExceptionGroup):
        run(tmp_path, first)
    assert first.answered == [text(i) for i in range(5)]
    second = Oracle()
    found = run(tmp_path, second)
    assert second.answered == [text(i) for i in range(5, 8)]
    assert [row["text"] for row in out(tmp_path)] == [text(i) for i in range(8)]
    assert found.paid_usd == 8 * COST
    assert spent_once(tmp_path, found.task) == {"labelling": 8 * COST}


def test_another_prompt_uses_no_old_answer_and_another_file_does(tmp_path: Path) -> None:
    run(tmp_path, Oracle())
    other = Oracle()
    run(tmp_path, other, way="way-2")
    assert len(other.answered) == 8
    more = Oracle()
    found = run(tmp_path, more, rows=texts(tmp_path, range(4, 12)))
    assert more.answered == [text(i) for i in range(8, 12)]
    assert found.paid_usd == 8 * COST


# Money


def test_a_cap_ends_the_work_cleanly_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    # Before answer k + 1 there must be k/64 + 2/64 <= 6/64, so 5 answers are asked.
    first = Oracle()
    found = run(tmp_path, first, cap_usd=6 / 64, yes=False)
    assert len(first.asked) == 5
    assert (found.counts, found.paid_usd) == ({"kept": 5, "unanswered": 3}, 5 / 64)
    assert found.stopped.startswith("stopped at the cap of $0.09375, earlier runs included: 3 answers are missing")
    assert len(out(tmp_path)) == 5
    same = Oracle()
    assert run(tmp_path, same, cap_usd=6 / 64).counts["kept"] == 5
    assert same.asked == []
    last = Oracle()
    found = run(tmp_path, last, cap_usd=10 / 64)
    assert (found.counts, found.stopped, found.paid_usd) == ({"kept": 8}, "", 8 / 64)
    assert len(last.asked) == 3


def test_without_consent_nothing_is_asked(tmp_path: Path) -> None:
    model = Oracle()
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, model, yes=False)
    assert str(caught.value) == (
        "labelling costs money and needs consent: 8 answers to ask, $0.25 at most\n"
        "  next: add --yes, or a limit: --cap-usd 0.25"
    )
    assert not model.asked
    assert run(tmp_path, Oracle(), yes=False, worst_usd=0.0).counts == {"kept": 8}


# Who labels


PRICES = {"tokens": {"big": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0}}}
ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "big", "max_concurrency": 3}


def made(folder: Path, **changes: Any) -> Labeller:
    file = task(folder, **{"large": {"endpoint": ENDPOINT}, "prices": PRICES, **changes})
    return large_model_teacher(Project.read(file, QUIET))


def test_the_worst_case_takes_every_byte_for_a_token_and_the_longest_answer(tmp_path: Path) -> None:
    found = made(tmp_path)
    *prompt, _ = found.model.messages("größer")  # type: ignore[attr-defined]
    shown = sum(len(message.content) for message in prompt)
    assert len(prompt) == 1 + 2 * 3  # instructions, and one solved row for each label
    read = shown + len("größer".encode()) + 16 * 8 + 128
    assert found.worst_usd("größer") == pytest.approx((read * 1.0 + 32 * 4.0) / 1e6)
    assert found.max_concurrency == 3


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"large": {"endpoint": ENDPOINT | {"timeout_s": 5, "max_concurrency": 1}}}, True),
        ({"large": {"endpoint": ENDPOINT, "sample_test": 3}}, True),
        ({"about": "Sort the post."}, False),
        ({"large": {"endpoint": ENDPOINT | {"extra_body": {"top_p": 0.5}}}}, False),
        ({"large": {"endpoint": ENDPOINT, "shots_per_label": 2}}, False),
    ],
)
def test_answers_are_kept_apart_by_all_that_changes_them(tmp_path: Path, changes: dict[str, Any], same: bool) -> None:
    assert (made(tmp_path, **changes).fingerprint == made(tmp_path).fingerprint) is same


@pytest.mark.parametrize(
    ("large", "message"),
    [(None, "task.yaml names no large model"), ({"recorded": "large.jsonl"}, "names only recorded answers")],
)
def test_without_a_large_model_that_answers_it_is_said_what_to_add(tmp_path: Path, large: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        label(task(tmp_path, large=large), texts(tmp_path), options=options(tmp_path), progress=QUIET)


# Files that must not be mistaken


def test_a_file_with_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its rows have answers already \(text \+ label\)"):
        run(tmp_path, Oracle(), rows=write_rows(tmp_path / "rows.jsonl", labelled_rows(range(3))))
    some = write_rows(
        tmp_path / "rows.jsonl", [{"text": text(1)}, {"text": text(2)}, {"text": text(3), "label": "card"}]
    )
    with pytest.raises(DataError, match="1 rows are no text without an answer"):
        run(tmp_path, Oracle(), rows=some)


def test_no_file_of_the_user_is_overwritten(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "train.jsonl", "test.jsonl"):
        with pytest.raises(ConfigError, match="is an input, so it cannot be the output"):
            run(tmp_path, Oracle(), out=tmp_path / name)
    with pytest.raises(ConfigError, match="rows are written as JSON Lines"):
        run(tmp_path, Oracle(), out=tmp_path / "labelled.csv")
    (tmp_path / "labelled.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match="was changed since an earlier run wrote it"):
        run(tmp_path, Oracle())
    (tmp_path / "labelled.jsonl").unlink()
    run(tmp_path, Oracle())
    run(tmp_path, Oracle())  # its own output may be written anew
    mended = (tmp_path / "labelled.jsonl").read_text().replace('"card"', '"fee"')
    (tmp_path / "labelled.jsonl").write_text(mended)
    with pytest.raises(ConfigError, match="was changed since an earlier run wrote it"):
        run(tmp_path, Oracle())


# Over a real address


def test_an_endpoint_labels_with_the_prompt_of_the_task_at_the_price_of_its_tokens(tmp_path: Path) -> None:
    with large_server(lambda body: f"{gold(body['messages'][-1]['content'])}.") as desk:
        file = task(tmp_path, large={"endpoint": ENDPOINT | {"base_url": desk.url}}, prices=PRICES)
        found = label(file, texts(tmp_path), options=options(tmp_path), progress=QUIET)
        label(file, texts(tmp_path), options=options(tmp_path), progress=QUIET)
    assert [row["label"] for row in out(tmp_path)] == [LABELS[i % 3] for i in range(8)]
    assert [body["temperature"] for body in desk.asked] == [0.0] * 8
    for body in desk.asked:
        assert body["messages"][0]["content"].startswith("Classify the user's message.")
        assert len(body["messages"]) == 1 + 2 * 3 + 1
    assert found.paid_usd == pytest.approx(8 * (5 * 1.0 + 2 * 4.0) / 1e6)
    assert found.paid_usd < 8 * made(tmp_path).worst_usd(text(0))
