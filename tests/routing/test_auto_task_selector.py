"""Several tasks side by side: each request goes to its task or to none, and a new task changes nothing else."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fixtures.light_process import LightProcess

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.base.paths import state_of
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.protocol import Request
from smallfirst.routing import domain as detector
from smallfirst.routing.auto import TaskSelector
from smallfirst.routing.domain import TaskProfile, fit_task_profile

BANK = (
    ("where is my {}", "the {} does not work", "i lost the {} yesterday", "why was a {} declined", "my {} is late"),
    ("card", "refund", "pin", "transfer", "top-up", "fee", "statement", "payment"),
)
TABLE = (
    ("book a {} for two people", "is there a {} free at eight", "cancel our {} on friday", "we need a {} outside"),
    ("table", "booth", "room", "terrace seat", "window seat", "garden table", "bar stool", "corner"),
)
OPEN = (
    "write a poem about the sea for my mother",
    "explain how photosynthesis works to a child",
    "translate this paragraph into French please",
    "what is the capital of Australia",
    "summarise the plot of Hamlet",
    "def sort(names): return sorted(names)",
)


def dataset(texts: list[str], *, answer: str = "a", turns: int = 1) -> Dataset:
    def messages(text: str) -> tuple[Message, ...]:
        before = (Message(role="user", content="hello"), Message(role="assistant", content="hi"))
        return (*(before if turns > 1 else ()), Message(role="user", content=text))

    shape = "chat" if turns > 1 else "label"
    return Dataset(
        name="rows", examples=tuple(Example(messages=messages(t), answer=answer, shape=shape) for t in texts)
    )


def rows(kind: tuple[tuple[str, ...], tuple[str, ...]], *, turns: int = 1) -> tuple[Dataset, Dataset]:
    """Training and selection rows: three in four, and the rest."""
    texts = [frame.format(thing) for thing in kind[1] for frame in kind[0]]
    train = [text for i, text in enumerate(texts) if i % 4]
    return dataset(train * 2, turns=turns), dataset(texts[::4] * 3, turns=turns)


@pytest.fixture(scope="module")
def bank() -> TaskProfile:
    return fit_task_profile(*rows(BANK))


@pytest.fixture(scope="module")
def table() -> TaskProfile:
    return fit_task_profile(*rows(TABLE))


def test_each_request_goes_to_its_task_and_the_others_to_none(bank: TaskProfile, table: TaskProfile) -> None:
    selector = TaskSelector({"bank": bank, "table": table})
    assert selector.select("where is my pin").task == "bank"
    assert selector.select("book a booth for two people").task == "table"
    assert [selector.select(text).task for text in OPEN] == [None] * len(OPEN)


def test_a_choice_says_why_and_what_it_took(bank: TaskProfile, table: TaskProfile) -> None:
    selector = TaskSelector({"bank": bank, "table": table})
    mine, none = selector.select("where is my pin"), selector.select(OPEN[0])
    assert mine.scores["bank"] < mine.scores["table"]
    assert mine.why.startswith("like requests of bank (out-of-domain score 0.")
    assert none.why.startswith("belongs to no task; nearest is ")
    assert mine.threshold == bank.threshold
    assert none.threshold in (bank.threshold, table.threshold)
    assert mine.cost_usd > 0
    assert mine.latency_ms > 0
    assert not mine.by_states


def test_a_new_task_changes_no_bit_of_the_others(bank: TaskProfile, table: TaskProfile) -> None:
    texts = [*OPEN, "where is my pin", "book a table", "card"]
    alone, together = TaskSelector({"bank": bank}), TaskSelector({"table": table, "bank": bank})
    for text in texts:
        assert alone.select(text).scores["bank"] == together.select(text).scores["bank"]


def test_a_limit_keeps_its_share_of_selection_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "KEEP_SHARE", 0.5)
    train, selection = rows(BANK)
    foreign_half = selection.subset("half", (*selection.examples, *dataset([*OPEN] * 5).examples))
    profile = fit_task_profile(train, foreign_half)
    kept = [look.ood_score <= 0.5 for look in profile.measure([e.text for e in foreign_half.examples])]
    assert np.mean(kept) == pytest.approx(0.5, abs=0.15)
    assert np.mean(kept) >= 0.5


def test_of_two_tasks_that_are_as_sure_the_likelier_words_decide(
    bank: TaskProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks with equal requests; one has more about cards."""
    train, selection = rows(BANK)
    cards = train.subset("cards", tuple(e for e in train.examples if "card" in e.text or "where" in e.text))
    with monkeypatch.context() as patch:
        patch.setattr(detector, "KEEP_SHARE", 1.0)
        selector = TaskSelector({"cards": fit_task_profile(cards, selection), "bank": bank})
    choice = selector.select("where is my card")
    apart = choice.scores["cards"] - choice.scores["bank"]
    assert 0 < apart < 0.2
    monkeypatch.setattr("smallfirst.routing.auto.TIE", apart - 0.001)
    assert selector.select("where is my card").task == "bank"
    monkeypatch.setattr("smallfirst.routing.auto.TIE", apart + 0.001)
    choice = selector.select("where is my card")
    assert choice.task == "cards"
    assert choice.why.startswith("its words are likelier in cards")


def test_a_conversation_goes_only_to_tasks_that_have_some(bank: TaskProfile) -> None:
    turns = tuple(Message(role=r, content=c) for r, c in (("user", "hi"), ("assistant", "hello")))
    request = Request(messages=(*turns, Message(role="user", content="where is my pin")))
    choice = TaskSelector({"bank": bank}).select(request)
    assert (choice.task, choice.scores) == (None, {})
    assert choice.why == "a conversation, while every task expects a single message"
    chat = fit_task_profile(*rows(BANK, turns=3))
    assert TaskSelector({"bank": bank, "chat": chat}).select(request).task == "chat"
    system = Request(messages=(Message(role="system", content="be brief"), request.messages[-1]))
    assert TaskSelector({"bank": bank}).select(system).task == "bank"


def test_a_front_without_tasks_sends_everything_on() -> None:
    found = TaskSelector({}).select("where is my pin")
    assert (found.task, found.threshold) == (None, None)


def test_few_selection_rows_are_supplemented_and_too_few_rows_are_refused() -> None:
    train, selection = rows(BANK)
    few = selection.subset("few", selection.examples[:3])
    profile = fit_task_profile(train, few)
    assert len(profile.parameters.words.fused.own) == 3 + len(train.examples[::5])
    assert profile.measure([OPEN[0]])[0].ood_score > profile.threshold
    with pytest.raises(DataError, match=r"needs 20 selection rows, or 25 training rows .*\(got 3 and 10\)"):
        fit_task_profile(train.subset("few", train.examples[:10]), few)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> SentenceEncoder:
    return SentenceEncoder(tiny_encoder_folder)


def test_the_encoder_is_asked_in_the_grey_zone_only(encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "GREY_ZONE", (0.3, 0.9))
    train, selection = rows(BANK)
    words = fit_task_profile(train, selection)
    looked = fit_task_profile(train, selection, encoder=("tiny", encoder))
    texts = [*(e.text for e in selection.examples), *OPEN]
    first, second = words.measure(texts), looked.measure(texts)
    grey = [0.3 < look.ood_score < 0.9 for look in first]
    assert 0 < sum(grey) < len(texts)
    assert [look.by_states for look in second] == grey
    for plain, deep in zip(first, second, strict=True):
        assert deep.ood_score == plain.ood_score if not deep.by_states else 0.3 <= deep.ood_score < 0.9


def test_states_are_not_read_where_one_tasks_words_are_clear(
    encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "GREY_ZONE", (0.3, 0.999))
    kinds = {"bank": BANK, "table": (BANK[0], TABLE[1])}  # the same sentences about other things
    both = {n: fit_task_profile(*rows(kind), encoder=("tiny", encoder)) for n, kind in kinds.items()}
    selector = TaskSelector(both)
    texts = [*(e.text for kind in kinds.values() for e in rows(kind)[1].examples[:10]), *OPEN]
    n_clear = n_skipped = 0
    for text in texts:
        choice, whole = selector.select(text), {name: profile.measure([text])[0] for name, profile in both.items()}
        if min(profile.word_scores([text])[0] for profile in both.values()) > 0.3:
            assert choice.scores == {name: look.ood_score for name, look in whole.items()}
            continue
        assert not choice.by_states
        n_clear, n_skipped = n_clear + 1, n_skipped + any(look.by_states for look in whole.values())
        ordinary = min(whole, key=lambda name: whole[name].ood_score)
        assert choice.task == ordinary or abs(choice.scores["bank"] - choice.scores["table"]) <= 0.05
    assert 0 < n_skipped <= n_clear < len(texts)


def test_hidden_states_keep_the_share_that_words_keep(
    encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "KEEP_SHARE", 0.8)
    monkeypatch.setattr(detector, "GREY_ZONE", (0.0, 1.0))
    train, selection = rows(BANK)
    profile = fit_task_profile(train, selection, encoder=("tiny", encoder))
    kept = [look.ood_score <= 0.8 for look in profile.measure([e.text for e in selection.examples])]
    assert np.mean(kept) >= 0.8


def test_a_profile_with_an_encoder_loads_as_it_was_saved(
    encoder: SentenceEncoder, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "GREY_ZONE", (0.0, 1.0))
    train, selection = rows(BANK)
    profile = fit_task_profile(train, selection, encoder=(str(tiny_encoder_folder), encoder))
    profile.save(tmp_path)
    texts = [*OPEN, "where is my pin"]
    assert TaskProfile.load(tmp_path).measure(texts) == profile.measure(texts)
    choice = TaskSelector({"bank": profile}).select("where is a late pin")
    assert choice.by_states
    assert "by words and meaning" in choice.why


def test_an_encoder_is_looked_up_in_the_state_folder_of_the_task_that_was_loaded(
    encoder: SentenceEncoder, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    monkeypatch.setattr(detector, "GREY_ZONE", (0.0, 1.0))
    profile = fit_task_profile(*rows(BANK), encoder=(name, encoder))
    profile.save(tmp_path / "profile")
    weights = tmp_path / "bank" / ".smallfirst" / "weights"
    shutil.copytree(tiny_encoder_folder, weights / name.replace("/", "--"))
    monkeypatch.delenv("SMALLFIRST_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    with state_of(tmp_path / "bank"):
        loaded = TaskProfile.load(tmp_path / "profile")
    with ThreadPoolExecutor() as threads:  # as a server does; a thread knows no task's folder
        found = threads.submit(loaded.measure, ["where is a late pin"]).result()
    assert found == profile.measure(["where is a late pin"])
    assert found[0].by_states


def test_a_folder_without_a_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no signature\.json"):
        TaskProfile.load(tmp_path)


def test_words_decide_without_torch_in_the_process(
    bank: TaskProfile, table: TaskProfile, tmp_path: Path, light_process: LightProcess
) -> None:
    bank.save(tmp_path / "bank")
    table.save(tmp_path / "table")
    program = (
        "import sys; from pathlib import Path; from smallfirst.routing.auto import TaskSelector\n"
        f"at = Path({str(tmp_path)!r})\n"
        "selector = TaskSelector.load({'bank': at / 'bank', 'table': at / 'table'})\n"
        "print(selector.select('where is my pin').task, selector.select('write a poem').task, 'torch' in sys.modules)"
    )
    assert light_process(program).split() == ["bank", "None", "False"]
