"""Conversations and texts as tokens: what is read, learnt and refused, and that the model answers in the end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from smallfirst.base.errors import DataError, TrainingError
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.loading import load_model
from smallfirst.models.local.tokenizer import end_of_turn_token
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Request
from smallfirst.registry.runs import open_run
from smallfirst.training import validation
from smallfirst.training.chat import (
    ChatRecipe,
    PretrainingRecipe,
    encode_conversation,
    ensure_chat_template,
    text_windows,
)
from smallfirst.training.config import TrainConfig
from smallfirst.training.run import train
from smallfirst.training.validation import Sample, generate_samples, mean_loss

SHORT = TrainConfig(duration="1ep", max_seq_tokens=64, batch_tokens=256)


def chat(*turns: str, line: int = 1) -> Example:
    """A row of turns by user and assistant, the last one being the answer."""
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=text) for i, text in enumerate(turns[:-1]))  # type: ignore[arg-type]
    return Example(messages=messages, answer=turns[-1], shape="chat", path="chats.jsonl", line=line)


def text(words: str, line: int = 1) -> Example:
    return Example(messages=(), answer=words, shape="text", path="texts.jsonl", line=line)


def rows_of(*examples: Example) -> Dataset:
    return Dataset(name="rows", examples=examples)


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_folder, local_files_only=True)


def test_a_tokenizer_without_template_writes_chatml_with_its_own_end_token(tokenizer: Any) -> None:
    assert not tokenizer.chat_template
    ensure_chat_template(tokenizer)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "lost pin"}]
    written = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert written == ("<s><|im_start|>system\nBe brief.</s>\n<|im_start|>user\nlost pin</s>\n<|im_start|>assistant\n")
    assert end_of_turn_token(tokenizer) == tokenizer.eos_token_id


def test_a_tokenizer_that_knows_the_end_mark_of_chatml_ends_turns_with_it(tokenizer: Any) -> None:
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    ensure_chat_template(tokenizer)
    assert end_of_turn_token(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id


def test_a_template_of_its_own_is_left_alone(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    ensure_chat_template(tokenizer)
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


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
    recipe = ChatRecipe("desk", rows_of(chat("card", "refund", line=7)))
    with pytest.raises(DataError) as caught:
        recipe.prepare(tokenizer, SHORT, "tiny")
    (problem,) = caught.value.problems
    assert (problem.path, problem.line) == ("chats.jsonl", 7)
    assert problem.rule.startswith(rule)


def test_long_rows_of_both_files_are_all_named_and_none_is_cut(tokenizer: Any) -> None:
    long = "card " * 100
    recipe = ChatRecipe(
        "desk", rows_of(chat("card", "refund"), chat(long, "no", line=2)), rows_of(chat("pin", long, line=3))
    )
    with pytest.raises(DataError, match="2 of 3 rows cannot be trained on") as caught:
        recipe.prepare(tokenizer, SHORT, "tiny")
    assert [problem.line for problem in caught.value.problems] == [2, 3]
    assert all("the limit is 64 (max_seq_tokens)" in problem.rule for problem in caught.value.problems)
    fits = SHORT.model_copy(update={"max_seq_tokens": 512})
    assert [len(row.ids) > 64 for row in recipe.prepare(tokenizer, fits, "tiny").rows] == [False, True]


def test_text_has_no_answer_and_an_answer_is_no_text(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"texts\.jsonl:4  text alone"):
        ChatRecipe("desk", rows_of(text("card", line=4))).prepare(tokenizer, SHORT, "tiny")
    with pytest.raises(DataError, match=r"chats\.jsonl:5  has an answer"):
        PretrainingRecipe("desk", rows_of(chat("card", "pin", line=5))).prepare(tokenizer, SHORT, "tiny")


def test_a_tokenizer_without_end_token_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    for kind, row in ((ChatRecipe, chat("card", "pin")), (PretrainingRecipe, text("card"))):
        with pytest.raises(TrainingError, match="no end token"):
            kind("desk", rows_of(row)).prepare(tokenizer, SHORT, "tiny")


def test_every_token_of_every_text_is_learnt_once(tokenizer: Any) -> None:
    data = rows_of(text("where is my card"), text("lost pin, the refund again"))
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


def test_mean_loss_is_the_mean_over_target_tokens_of_all_rows(tiny_folder: Path) -> None:
    model, tokenizer = load_causal(tiny_folder)
    model = model.float()
    ensure_chat_template(tokenizer)
    data = rows_of(chat("where is my card", "on its way to you"), chat("pin", "no"))
    rows = ChatRecipe("desk", data).prepare(tokenizer, SHORT, "tiny").rows
    losses: list[float] = []
    for row in rows:  # by the model's own head, one row at a time
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            logits = model(input_ids=ids[:, :-1]).logits[0]
        by_token = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        losses += by_token[row.n_prompt - 1 :].tolist()
    assert len(losses) == sum(len(row.ids) - row.n_prompt for row in rows)
    assert mean_loss(model, rows) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_exam_judges_by_loss_and_lets_a_person_read(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_SAMPLE_TOKENS", 4)
    model, tokenizer = load_causal(tiny_folder)
    heard: list[tuple[dict[str, float], list[Sample]]] = []
    recipe = ChatRecipe(
        "desk",
        rows_of(chat("card", "on its way")),
        rows_of(chat("pin", "by post")),
        ("where is my card",),
        lambda figures, samples: heard.append((dict(figures), list(samples))),
    )
    manifest = recipe.prepare(tokenizer, SHORT, "tiny").manifest
    exam = recipe.validate(model, tokenizer, manifest)
    assert exam is not None
    ((figures, samples),) = heard
    assert (exam.measure, exam.value) == ("minus_eval_loss", -figures["eval_loss"])
    assert figures["eval_perplexity"] == pytest.approx(math.exp(figures["eval_loss"]))
    assert samples == generate_samples(model, tokenizer, ["where is my card"], manifest)
    assert samples[0].prompt == "where is my card"
    unjudged = recipe._replace(evaluation=None)
    assert unjudged.validate(model, tokenizer, manifest) is None
    assert heard[1] == ({}, samples)


def answers(folder: Path, asked: Sequence[Sequence[Message]]) -> list[str]:
    """What the model in the folder writes to each conversation, after its name."""

    async def ask() -> list[str]:
        model = load_model(folder)
        found = [(await model.complete(Request(messages=tuple(turns), max_tokens=20))).text for turns in asked]
        await model.aclose()
        return [model.name, *found]

    return asyncio.run(ask())


@pytest.mark.usefixtures("module_home")
def test_a_model_taught_by_conversations_answers_them_from_its_folder(tiny_folder: Path, tmp_path: Path) -> None:
    three = (chat("card", "on its way"), chat("pin", "by post"), chat("card", "on its way", "refund", "in a week"))
    recipe = ChatRecipe("desk", rows_of(*three * 6), rows_of(*three))
    config = TrainConfig(duration="9ep", learning_rate=1e-2, batch_tokens=256, max_seq_tokens=128)
    with open_run("toy", "chats") as tracked:
        run = train(recipe, config, base=("tiny", tiny_folder), tracked=tracked, folder=tmp_path)
    manifest = read_manifest(run.folder)
    assert (manifest.kind, manifest.max_tokens, manifest.system, manifest.writes_json) == ("chat", 128, "", False)
    assert len(run.validation_curve) == 9
    assert run.best_epoch == max(run.validation_curve, key=lambda point: point[1])[0]
    assert answers(run.folder, [e.messages for e in three]) == ["desk", "on its way", "by post", "in a week"]


@pytest.mark.usefixtures("module_home")
def test_a_model_taught_by_texts_goes_on_from_them(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = PretrainingRecipe("rules", rows_of(*[text("lost pin: a new one by post"), text("refund: in a week")] * 10))
    config = TrainConfig(duration="12ep", learning_rate=1e-2, batch_tokens=64, max_seq_tokens=32)
    with open_run("toy", "texts") as tracked:
        run = train(recipe, config, base=("tiny", tiny_folder), tracked=tracked, folder=tmp_path)
    asked = [[Message(role="user", content=begun)] for begun in ("lost pin:", "refund:")]
    # A text is continued as it stands, space included: no template, no turn.
    assert answers(run.folder, asked) == ["rules", " a new one by post", " in a week"]
    assert read_manifest(run.folder).kind == "text"


def test_the_system_message_of_all_rows_stays_with_the_model(tokenizer: Any) -> None:
    system = Message(role="system", content="card")
    rows = [
        row.model_copy(update={"messages": (system, *row.messages)}) for row in (chat("card", "{}"), chat("a", "b"))
    ]
    manifest = ChatRecipe("desk", rows_of(*rows)).prepare(tokenizer, SHORT, "tiny").manifest
    assert (manifest.system, manifest.writes_json) == ("card", False)  # half of the answers are JSON, not most
    other = ChatRecipe("desk", rows_of(*rows, chat("pin", '{"by": "post"}'))).prepare(tokenizer, SHORT, "tiny").manifest
    assert (other.system, other.writes_json) == ("", True)
