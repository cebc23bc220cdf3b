"""The check of rows: each finding by hand, with its severity and its places."""

import pytest
from fixtures.rows import answered_rows, text_rows

from smallfirst.data.check import CheckReport, Finding, TokenCounts, check, estimate_token_counts, format_report
from smallfirst.data.dataset import Dataset


def plenty(name: str, n: int, *more: tuple[str, str]) -> Dataset:
    """`n` good rows of two labels, sharing no text with another name, then `more`."""
    pairs = [(f"{name} word{i} thing{i * 7}", "ab"[i % 2]) for i in range(n)]
    return answered_rows(f"{name}.jsonl", *pairs, *more)


def found(report: CheckReport, start: str) -> Finding:
    [finding] = [f for f in report.findings if f.what.startswith(start)]
    return finding


def test_clean_data_is_a_go_with_nothing_to_mend() -> None:
    report = check(plenty("train", 100), validation=plenty("val", 60), test=plenty("test", 30))
    assert report.verdict == "GO"
    assert report.findings == ()
    assert report.class_counts == {"a": 50, "b": 50}
    assert format_report(report) == ("GO  100 train, 60 validation, 30 test rows, 2 labels\nno findings")


TORN = [(f"torn {i}", label) for i in range(3) for label in "ab"]


@pytest.mark.parametrize(
    ("train", "what", "level", "where"),
    [
        (plenty("train", 100, ("Lost my card", "a"), ("lost my card!", "b")), "texts with different labels: 1 (2 rows;",
         "fix", 'train.jsonl:101 "a" and train.jsonl:102 "b"'),
        (plenty("train", 94, *TORN), "texts with different labels: 3 (6 rows;", "stop",
         'train.jsonl:95 "a" and train.jsonl:96 "b"'),
        (plenty("train", 20, *((f"rare {i}", "c") for i in range(4)), *((f"more {i}", "d") for i in range(5))),
         "labels with too few train rows: 1", "fix", '"c": 4'),
        (answered_rows("train.jsonl", *((f"text {i}", "a") for i in range(9))), 'one label only: "a"', "stop", None),
        (plenty("train", 20, *((f"twin {i}", "A ") for i in range(5))), "labels spelt in several ways: 1", "fix",
         '"A " and "a"'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_training_rows(train: Dataset, what: str, level: str, where: str | None) -> None:
    finding = found(check(train), what)
    assert (finding.level, finding.where[:1]) == (level, (where,) if where else ())


def test_a_repeated_row_is_noted_and_many_are_to_be_fixed() -> None:
    one = found(check(plenty("train", 99, ("TRAIN word0 thing0", "a"))), "train rows that repeat")
    assert (one.level, one.n) == ("note", 1)
    assert one.where == ("train.jsonl:100 repeats train.jsonl:1",)
    many = check(plenty("train", 90, *[("again and again", "a")] * 10))
    assert found(many, "train rows that repeat").level == "fix"
    assert found(many, "train rows that repeat").n == 9


def test_a_group_in_two_splits_and_labels_of_a_model_are_found() -> None:
    parts = [plenty(name, 100) for name in ("train", "val", "test")]
    changed = {"group": "customer 1", "source": "big-1"}
    train, val, test = (
        data.subset(data.name, (data.examples[0].model_copy(update=changed), *data.examples[1:])) for data in parts
    )
    report = check(train, validation=val, test=test)
    assert found(report, "validation rows of a group of an earlier split: 1").level == "fix"
    assert found(report, "test rows of a group of an earlier split: 1").level == "stop"
    models = [f.what for f in report.findings if "a model labelled" in f.what]
    assert models == ["validation rows that a model labelled: 1", "test rows that a model labelled: 1"]


def test_a_text_in_two_splits_is_a_leak() -> None:
    test = plenty("test", 200, ("Train WORD0, thing0", "a"))
    report = check(plenty("train", 100), validation=plenty("val", 60), test=test)
    finding = found(report, "1 of 201 test texts are also in train")
    assert finding.where == ("test.jsonl:201 is train.jsonl:1",)
    assert (finding.level, finding.rule) == ("note", "short requests repeat; the other 200 rows are judged by the gate")
    assert report.verdict == "GO"


@pytest.mark.parametrize(
    ("n_clean", "n_copies", "level"),
    [(80, 20, "note"), (80, 21, "fix"), (50, 50, "fix"), (49, 51, "stop"), (3, 3, "fix"), (2, 3, "stop")],
)
def test_copies_stop_only_where_too_few_other_rows_are_left(n_clean: int, n_copies: int, level: str) -> None:
    copies = [(f"train word{i} thing{i * 7}", "ab"[i % 2]) for i in range(n_copies)]
    report = check(plenty("train", 100), validation=plenty("val", n_clean, *copies))
    assert found(report, f"{n_copies} of {n_clean + n_copies} validation texts are also in train").level == level


def test_a_largest_class_of_ten_times_the_smallest_is_noted() -> None:
    small = [(f"small {i}", "c") for i in range(5)]
    assert found(check(plenty("train", 100, *small)), '"a" has').what == ('"a" has 50 train rows, "c" has 5')
    assert not [f for f in check(plenty("train", 98, *small)).findings if "has" in f.what]


def test_rows_of_labels_without_a_train_row_are_named_and_counted_as_errors() -> None:
    test = plenty("test", 20, ("new thing", "c"), ("other thing", "c"), ("third thing", "d"))
    finding = found(check(plenty("train", 100), test=test), "test labels without a train row: 2")
    assert (finding.level, finding.n) == ("fix", 2)
    assert "so 3 test rows count as errors" in finding.rule
    assert finding.where == ('test.jsonl:21 "c"', 'test.jsonl:23 "d"')


def test_an_empty_split_stops() -> None:
    report = check(answered_rows("train.jsonl"), test=answered_rows("test.jsonl"))
    stops = [f for f in report.findings if f.level == "stop"]
    assert [f.what for f in stops] == ["no train rows", "no test rows"]
    assert {f.rule.partition(":")[0] for f in stops} == {"too few rows to split some off"}


def long_rows(splits: dict[str, Dataset], tokens: TokenCounts) -> list[Finding]:
    validation, test = splits.get("validation"), splits.get("test")
    report = check(splits["train"], validation=validation, test=test, tokens=tokens)
    return [one for one in report.findings if " tokens" in one.what]


def test_every_row_over_the_limit_is_a_place() -> None:
    splits = {"train": text_rows("train", *"abcdefghijklmn"), "test": text_rows("test", "y", "z")}
    tokens = TokenCounts(counts={"train": (5,) * 13 + (4,), "test": (4, 5)}, limit=4, counted_by="tiny")
    train, test = long_rows(splits, tokens)
    assert (train.level, train.n, len(train.where)) == ("stop", 13, 13)
    assert train.where[12] == "train:13 has 5"
    report = check(splits["train"], test=splits["test"], tokens=tokens)
    assert "        … and 3 more (--json names all)" in format_report(report).splitlines()
    assert (test.level, test.where) == ("fix", ("test:2 has 5",))


def test_a_guess_is_marked_as_one_and_stops_nothing() -> None:
    # 8 bytes are 2 tokens, and 2 for the cue and the label; "ü" has two bytes.
    splits = {"train": text_rows("train", "12345678", "üüüü", "123456789")}
    tokens = estimate_token_counts(splits, limit=4)
    assert (tokens.counts["train"], tokens.counted_by) == ((4, 4, 5), "")
    [finding] = long_rows(splits, tokens)
    assert (finding.level, finding.where) == ("note", ("train:3 has 5",))
    assert "probably" in finding.what
