"""Auto: each request goes to its task or to none, with the step and its cost; a new task changes nothing else."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures.light_process import LightProcess
from fixtures.server import SayingModel

from smallfirst.base.errors import DataError, ModelError
from smallfirst.base.paths import state_of
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.pricing import stated
from smallfirst.models.protocol import Completion, Model, Request, Route, RouteStep
from smallfirst.routing.auto import AutoRouter, TaskSelection, TaskSelector
from smallfirst.routing.domain import TaskProfile, fit_task_profile


class ByWord:
    """Select the task whose name the request contains."""

    def select(self, request: Request) -> TaskSelection:
        task = next((name for name in ("tickets", "claims") if name in request.text), None)
        why, of = f"like {task}" if task else "belongs to no task", {"score": 0.1 if task else 0.99, "threshold": 0.97}
        step = RouteStep(stage="auto", decision="passed on", why=why, **of, cost_usd=0.001, latency_ms=2.0)
        return TaskSelection(task, step, (stated("auto", 0.001),))


def named(name: str, *, routed: bool = True) -> SayingModel:
    step = RouteStep(stage="small", decision="kept", why="sure")
    route = Route(stage="small", why="sure", certified=True, task=name, trail=(step,))
    return SayingModel(name, latency_ms=10.0, cost_usd=0.1, route=route if routed else None)


def made(general: SayingModel | None = None) -> AutoRouter:
    routers: dict[str, Model] = {"tickets": named("tickets"), "claims": named("claims")}
    return AutoRouter(ByWord(), routers, general)  # type: ignore[arg-type]


def ask(auto: AutoRouter, text: str) -> Completion:
    async def once() -> Completion:
        try:
            return await auto.complete(Request.ask(text))
        finally:
            await auto.aclose()

    return asyncio.run(once())


def test_a_request_goes_to_its_task_and_says_how_that_was_found() -> None:
    answer = ask(made(), "about claims")
    assert (answer.text, answer.cost_usd, answer.latency_ms) == ("claims", pytest.approx(0.101), 12.0)
    assert (answer.route.task, answer.route.certified) == ("claims", True)
    first, second = answer.route.trail
    assert (first.stage, first.why, first.score, first.threshold) == ("auto", "like claims", 0.1, 0.97)
    assert first.cost_usd == 0.001
    assert second.stage == "small"


def test_a_request_of_no_task_goes_to_the_general_model_uncertified() -> None:
    answer = ask(made(named("big", routed=False)), "write a poem")
    assert answer.text == "big"
    assert (answer.route.stage, answer.route.task, answer.route.certified) == ("large", "", False)
    assert [(s.stage, s.decision) for s in answer.route.trail] == [("auto", "passed on"), ("large", "answered")]
    assert answer.route.trail[0].score == 0.99


def test_without_a_general_model_a_foreign_request_is_an_error_that_says_so() -> None:
    with pytest.raises(ModelError, match="auto: belongs to no task, and there is no general model to ask"):
        ask(made(), "write a poem")


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
    assert selector.select(Request.ask("where is my pin")).task == "bank"
    assert selector.select(Request.ask("book a booth for two people")).task == "table"
    assert [selector.select(Request.ask(text)).task for text in OPEN] == [None] * len(OPEN)


def test_a_conversation_goes_only_to_tasks_that_have_some(bank: TaskProfile) -> None:
    turns = tuple(Message(role=r, content=c) for r, c in (("user", "hi"), ("assistant", "hello")))
    request = Request(messages=(*turns, Message(role="user", content="where is my pin")))
    choice = TaskSelector({"bank": bank}).select(request)
    assert (choice.task, choice.step.score, choice.step.threshold) == (None, None, None)
    assert choice.step.why == "a conversation, while every task expects a single message"
    chat = fit_task_profile(*rows(BANK, turns=3))
    assert TaskSelector({"bank": bank, "chat": chat}).select(request).task == "chat"
    system = Request(messages=(Message(role="system", content="be brief"), request.messages[-1]))
    assert TaskSelector({"bank": bank}).select(system).task == "bank"


def test_few_selection_rows_are_supplemented_and_too_few_rows_are_refused() -> None:
    train, selection = rows(BANK)
    few = selection.subset("few", selection.examples[:3])
    profile = fit_task_profile(train, few)
    assert len(profile.parameters.fusion.fused.own) == 3 + len(train.examples[::5])
    assert profile.measure([OPEN[0]])[0].ood_score > profile.threshold
    with pytest.raises(DataError, match=r"needs 20 selection rows, or 25 training rows .*\(got 3 and 10\)"):
        fit_task_profile(train.subset("few", train.examples[:10]), few)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> SentenceEncoder:
    return SentenceEncoder(tiny_encoder_folder)


def test_a_profile_with_an_encoder_loads_as_it_was_saved(
    encoder: SentenceEncoder, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    train, selection = rows(BANK)
    profile = fit_task_profile(train, selection, encoder=(str(tiny_encoder_folder), encoder))
    profile.save(tmp_path)
    texts = [*OPEN, "where is my pin"]
    assert TaskProfile.load(tmp_path).measure(texts) == profile.measure(texts)
    words = fit_task_profile(train, selection)
    assert [len(one.measure(texts)[0].features) for one in (words, profile)] == [1, 2]
    assert [one.ood_score for one in profile.measure(texts)] != [one.ood_score for one in words.measure(texts)]


def test_an_encoder_is_looked_up_in_the_state_folder_of_the_task_that_was_loaded(
    encoder: SentenceEncoder, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
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


def test_words_decide_without_torch_in_the_process(
    bank: TaskProfile, table: TaskProfile, tmp_path: Path, light_process: LightProcess
) -> None:
    bank.save(tmp_path / "bank")
    table.save(tmp_path / "table")
    program = (
        "import sys; from pathlib import Path; from smallfirst.models.protocol import Request\n"
        "from smallfirst.routing.auto import TaskSelector; from smallfirst.routing.domain import TaskProfile\n"
        f"selector = TaskSelector({{n: TaskProfile.load(Path({str(tmp_path)!r}) / n) for n in ('bank', 'table')}})\n"
        "tasks = [selector.select(Request.ask(text)).task for text in ('where is my pin', 'write a poem')]\n"
        "print(*tasks, 'torch' in sys.modules)"
    )
    assert light_process(program).split() == ["bank", "None", "False"]
