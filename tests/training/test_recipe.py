"""Rows and batches: no row lost, no budget broken, every target at the right place."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers
from fixtures.rows import answered_rows
from fixtures.training import answers
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.base.errors import DataError, TrainingError
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.local.tokenizer import choose_label_tokens, end_of_turn_token
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Request
from smallfirst.registry.runs import open_run
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify
from smallfirst.training import causal_lm
from smallfirst.training.causal_lm import Sample, generate_samples
from smallfirst.training.config import TokenizedRow, TrainConfig
from smallfirst.training.loop import epoch_batches
from smallfirst.training.recipe import (
    ChatRecipe,
    PretrainingRecipe,
    encode_conversation,
    encode_task_rows,
    ensure_chat_template,
    text_windows,
)
from smallfirst.training.run import train


def rows_of(lengths: list[int]) -> list[TokenizedRow]:
    """Rows of these many tokens, told apart by their first token."""
    return [TokenizedRow((i, *range(100, 99 + n)), n - 1) for i, n in enumerate(lengths)]


def padded_tokens(batch: list[TokenizedRow]) -> int:
    return len(batch) * max(len(row.ids) - 1 for row in batch)


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(40, 200), st.integers(0, 2**40))
def test_an_epoch_has_every_row_once_within_the_budget_and_repeats_by_its_seed(
    lengths: list[int], budget: int, seed: int
) -> None:
    rows = rows_of(lengths)
    batches = epoch_batches(rows, batch_tokens=budget, seed=seed)
    assert Counter(row for batch in batches for row in batch) == Counter(rows)
    assert all(0 < padded_tokens(batch) <= budget for batch in batches)
    assert batches == epoch_batches(rows, batch_tokens=budget, seed=seed)


def test_a_row_is_the_start_token_the_prompt_and_the_code_or_the_answer_and_its_end(
    tokenizer: Any, toy_rows: Dataset, toy_task: Classify
) -> None:
    codes = choose_label_tokens(toy_task.labels, tokenizer)
    for row, made in zip(toy_rows.examples, encode_task_rows(toy_rows, toy_task, tokenizer, 64, codes), strict=True):
        prompt = [0, *tokenizer.encode(toy_task.prompt(row.text), add_special_tokens=False)]
        assert made == TokenizedRow((*prompt, codes[toy_task.labels.index(row.answer)]), len(prompt))
    written = encode_task_rows(toy_rows, Answer(name="toy"), tokenizer, 64)
    assert {row.ids[-1] for row in written} == {tokenizer.eos_token_id}
    assert all(row.n_prompt < len(row.ids) - 1 for row in written)


def test_all_rows_that_cannot_be_trained_on_are_named_at_once(tokenizer: Any, toy_task: Classify) -> None:
    long = "where is my card " * 10
    n = len(tokenizer.encode(f"{long.strip()} =>")) + 2
    data = answered_rows("rows.csv", ("a", "card_arrival"), ("what", "card_departure"), (long, "card_arrival"))
    assert len(encode_task_rows(data.subset("long", data.examples[2:]), toy_task, tokenizer, n, (1, 2, 3, 4))) == 1
    with pytest.raises(DataError) as caught:
        encode_task_rows(data, toy_task, tokenizer, n - 1, (1, 2, 3, 4))
    assert str(caught.value) == (
        "2 of 3 rows cannot be trained on:\n"
        '  rows.csv:2  unknown label "card_departure"\n'
        f"  rows.csv:3  {n} tokens; the limit is {n - 1} (max_seq_tokens)\n"
        "  next: fix or remove these lines; for long ones raise max_seq_tokens (context_length)"
    )


SHORT = TrainConfig(duration="1ep", max_seq_tokens=64, batch_tokens=256)


def chat(*turns: str, line: int = 1) -> Example:
    """A row of turns by user and assistant, the last one being the answer."""
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=text) for i, text in enumerate(turns[:-1]))  # type: ignore[arg-type]
    return Example(messages=messages, answer=turns[-1], shape="chat", path="chats.jsonl", line=line)


def text(words: str, line: int = 1) -> Example:
    return Example(messages=(), answer=words, shape="text", path="texts.jsonl", line=line)


def dataset(*examples: Example) -> Dataset:
    return Dataset(name="rows", examples=examples)


def test_a_tokenizer_without_template_writes_chatml_with_its_own_end_token(tokenizer: Any) -> None:
    assert not tokenizer.chat_template
    ensure_chat_template(tokenizer)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "lost pin"}]
    written = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert written == ("<s><|im_start|>system\nBe brief.</s>\n<|im_start|>user\nlost pin</s>\n<|im_start|>assistant\n")
    assert end_of_turn_token(tokenizer) == tokenizer.eos_token_id
    ensure_chat_template(tokenizer)  # one of its own is left alone
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) == written
    tokenizer.chat_template = None
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    ensure_chat_template(tokenizer)
    assert end_of_turn_token(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id


def test_only_the_last_answer_and_its_end_are_learnt(tokenizer: Any) -> None:
    ensure_chat_template(tokenizer)
    end = tokenizer.eos_token_id
    row = encode_conversation(chat("where is my card", "on its way", "and my pin", "by post"), tokenizer, end)
    assert not isinstance(row, str)
    read, learnt = row.ids[: row.n_prompt], row.ids[row.n_prompt :]
    assert tokenizer.decode(read) == (
        "<s><|im_start|>user\nwhere is my card</s>\n<|im_start|>assistant\non its way</s>\n"
        "<|im_start|>user\nand my pin</s>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(learnt) == "by post</s>"
    assert learnt[-1] == end
    asked = [
        {"role": m.role, "content": m.content}
        for m in chat("where is my card", "on its way", "and my pin", "").messages
    ]
    served = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert list(read) == served  # what the model will be asked later, to the token


def test_the_end_is_learnt_even_where_the_template_writes_none(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    row = encode_conversation(chat("card", "refund"), tokenizer, tokenizer.eos_token_id)
    assert not isinstance(row, str)
    assert tokenizer.decode(row.ids[row.n_prompt :]) == "refund\n</s>"


def test_an_answer_that_would_merge_with_the_prompt_is_still_learnt_after_the_prompts_own_tokens(
    tokenizer: Any,
) -> None:
    ensure_chat_template(tokenizer)
    for before, spaced in (("assistant\\n' }}", "assistant\\n ' }}"), ("'\\n' + message", "'\\n ' + message")):
        assert before in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(before, spaced)
    (merged,) = tokenizer.encode(" card", add_special_tokens=False)  # the space would become a part of the answer
    row = encode_conversation(chat("pin", "card"), tokenizer, tokenizer.eos_token_id)
    assert not isinstance(row, str)
    assert merged not in row.ids
    assert tokenizer.decode(row.ids[: row.n_prompt]).endswith("assistant\n ")
    assert tokenizer.decode(row.ids[row.n_prompt :]) == "card</s>"


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        (
            "{{ messages | length }} turns: {% for m in messages %}{{ m['content'] }}{% endfor %}",
            "the chat template writes the conversation differently once the answer follows",
        ),
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
            "the chat template leaves nothing of the answer",
        ),
        (
            "{% if messages[0]['content'] == 'card' %}{{ raise_exception('no cards') }}{% endif %}",
            "the model's chat template refuses this conversation: no cards",
        ),
    ],
)
def test_rows_that_a_template_spoils_are_refused_by_line(tokenizer: Any, template: str, rule: str) -> None:
    tokenizer.chat_template = template
    recipe = ChatRecipe("desk", dataset(chat("card", "refund", line=7)))
    with pytest.raises(DataError) as caught:
        recipe.prepare(tokenizer, SHORT, "tiny")
    (problem,) = caught.value.problems
    assert (problem.path, problem.line) == ("chats.jsonl", 7)
    assert problem.rule.startswith(rule)


def test_long_rows_of_both_files_are_all_named_and_none_is_cut(tokenizer: Any) -> None:
    long = "card " * 100
    recipe = ChatRecipe(
        "desk", dataset(chat("card", "refund"), chat(long, "no", line=2)), dataset(chat("pin", long, line=3))
    )
    with pytest.raises(DataError, match="2 of 3 rows cannot be trained on") as caught:
        recipe.prepare(tokenizer, SHORT, "tiny")
    assert [problem.line for problem in caught.value.problems] == [2, 3]
    assert all("the limit is 64 (max_seq_tokens)" in problem.rule for problem in caught.value.problems)
    fits = SHORT.model_copy(update={"max_seq_tokens": 512})
    assert [len(row.ids) > 64 for row in recipe.prepare(tokenizer, fits, "tiny").rows] == [False, True]


def test_text_has_no_answer_and_an_answer_is_no_text(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"texts\.jsonl:4  text alone"):
        ChatRecipe("desk", dataset(text("card", line=4))).prepare(tokenizer, SHORT, "tiny")
    with pytest.raises(DataError, match=r"chats\.jsonl:5  has an answer"):
        PretrainingRecipe("desk", dataset(chat("card", "pin", line=5))).prepare(tokenizer, SHORT, "tiny")


def test_a_tokenizer_without_end_token_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    for kind, row in ((ChatRecipe, chat("card", "pin")), (PretrainingRecipe, text("card"))):
        with pytest.raises(TrainingError, match="no end token"):
            kind("desk", dataset(row)).prepare(tokenizer, SHORT, "tiny")


def test_every_token_of_every_text_is_learnt_once(tokenizer: Any) -> None:
    data = dataset(text("where is my card"), text("lost pin, the refund again"))
    first, second = (tokenizer.encode(e.answer, add_special_tokens=False) for e in data.examples)
    end = tokenizer.eos_token_id
    for width in (2, 3, 5, 64):
        rows = text_windows(data, tokenizer, max_tokens=width)
        assert max(len(row.ids) for row in rows) <= width
        assert {row.n_prompt for row in rows} == {1}
        learnt = [token for row in rows for token in row.ids[1:]]
        assert learnt == [*first, end, *second, end]
        assert all(a.ids[-1] == b.ids[0] for a, b in pairwise(rows))
    assert rows[0].ids[0] == tokenizer.bos_token_id


def test_the_exam_judges_by_loss_and_lets_a_person_read(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_lm, "MAX_SAMPLE_TOKENS", 4)
    model, tokenizer = load_causal(tiny_folder)
    heard: list[tuple[dict[str, float], list[Sample]]] = []
    recipe = ChatRecipe(
        "desk",
        dataset(chat("card", "on its way")),
        dataset(chat("pin", "by post")),
        ("where is my card",),
        lambda figures, samples: heard.append((dict(figures), list(samples))),
    )
    manifest = recipe.prepare(tokenizer, SHORT, "tiny").manifest
    exam = recipe.validate(model, tokenizer, manifest)
    ((figures, samples),) = heard
    assert (exam.measure, exam.value) == ("minus_eval_loss", -figures["eval_loss"])
    assert figures["eval_perplexity"] == pytest.approx(math.exp(figures["eval_loss"]))
    assert samples == generate_samples(model, tokenizer, ["where is my card"], manifest)
    assert samples[0].prompt == "where is my card"
    unjudged = replace(recipe, evaluation=None)
    assert unjudged.validate(model, tokenizer, manifest) is None
    assert heard[1] == ({}, samples)


def said(folder: Path, *asked: Sequence[Message]) -> list[str]:
    """What the model in the folder writes to each conversation, after its name."""
    found = answers(folder, *(Request(messages=tuple(turns), max_tokens=20) for turns in asked))
    return [found[0].answered_by, *(one.text for one in found)]


@pytest.mark.usefixtures("module_home")
def test_a_model_taught_by_conversations_answers_them_from_its_folder(tiny_folder: Path, tmp_path: Path) -> None:
    three = (chat("card", "on its way"), chat("pin", "by post"), chat("card", "on its way", "refund", "in a week"))
    recipe = ChatRecipe("desk", dataset(*three * 6), dataset(*three))
    config = TrainConfig(duration="9ep", learning_rate=1e-2, batch_tokens=256, max_seq_tokens=128)
    with open_run("toy", "chats") as tracked:
        run = train(recipe, config, base=("tiny", tiny_folder), tracked=tracked, folder=tmp_path)
    manifest = read_manifest(run.folder)
    assert (manifest.kind, manifest.max_tokens, manifest.system, manifest.writes_json) == ("chat", 128, "", False)
    assert len(run.validation_curve) == 9
    assert run.best_epoch == max(run.validation_curve, key=lambda point: point[1])[0]
    assert said(run.folder, *(e.messages for e in three)) == ["desk", "on its way", "by post", "in a week"]


@pytest.mark.usefixtures("module_home")
def test_a_model_taught_by_texts_goes_on_from_them(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = PretrainingRecipe("rules", dataset(*[text("lost pin: a new one by post"), text("refund: in a week")] * 10))
    config = TrainConfig(duration="12ep", learning_rate=1e-2, batch_tokens=64, max_seq_tokens=32)
    with open_run("toy", "texts") as tracked:
        run = train(recipe, config, base=("tiny", tiny_folder), tracked=tracked, folder=tmp_path)
    asked = [[Message(role="user", content=begun)] for begun in ("lost pin:", "refund:")]
    # A text is continued as it stands, space included: no template, no turn.
    assert said(run.folder, *asked) == ["rules", " a new one by post", " in a week"]
    assert read_manifest(run.folder).kind == "text"


def test_the_system_message_of_all_rows_stays_with_the_model(tokenizer: Any) -> None:
    system = Message(role="system", content="card")
    rows = [
        row.model_copy(update={"messages": (system, *row.messages)}) for row in (chat("card", "{}"), chat("a", "b"))
    ]
    manifest = ChatRecipe("desk", dataset(*rows)).prepare(tokenizer, SHORT, "tiny").manifest
    assert (manifest.system, manifest.writes_json) == ("card", False)  # half of the answers are JSON, not most
    other = ChatRecipe("desk", dataset(*rows, chat("pin", '{"by": "post"}'))).prepare(tokenizer, SHORT, "tiny").manifest
    assert (other.system, other.writes_json) == ("", True)
