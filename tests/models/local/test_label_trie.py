"""Label probabilities over a tree are those of generating each label, whatever else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.errors import ConfigError
from smallfirst.models.local import label_trie as trie
from smallfirst.models.local.label_trie import TokenTree, TrieScorer, encode_answers
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.local.weights import load_causal
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.task import Shot

LABELS = ("card", "card arrival", "card arrival late", "refund request", "lost", "exchange rate", "Größe «1»")
TASK = Classify(name="desk", labels=LABELS)
TEXTS = ("pin", "where is my card, it is late", "tell me more about your refund " * 4, "hello", "a card")
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)

Loaded = tuple[Any, Any]


@pytest.fixture(scope="module", params=["sdpa", "eager", "smallfirst_causal"])
def loaded(request: pytest.FixtureRequest, tiny_folder: Path) -> Loaded:
    """The tiny model in fp32 under each kind of attention, and its tokenizer."""
    model, tokenizer = load_causal(tiny_folder)
    model.set_attn_implementation(request.param)
    return model.float(), tokenizer


@pytest.fixture(scope="module")
def plain(tiny_folder: Path) -> Loaded:
    """The tiny model by transformers' own code alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def chatty(plain: Loaded) -> Loaded:
    """The plain model with a chat template."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain[1].backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    return plain[0], tokenizer


def reference(loaded: Loaded, prompt: list[int], labels: Sequence[str]) -> Any:
    """Log-probability of each label over all of them, from one plain forward pass a label."""
    model, tokenizer = loaded
    sums = []
    for label in labels:
        answer = [*tokenizer.encode(label, add_special_tokens=False), tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
        steps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        sums.append(steps[torch.arange(len(answer)), torch.tensor(answer)].sum())
    return pytest.approx(torch.stack(sums).log_softmax(0).tolist(), abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 120, 4096])
def test_a_label_has_the_probability_of_being_generated(loaded: Loaded, plain: Loaded, batch_tokens: int) -> None:
    scorer = TrieScorer.fine_tuned(*loaded, TASK)
    scorer.batch_tokens = batch_tokens
    assert len({len(path) for path in scorer.tree.paths}) > 2
    for text, scored in zip(TEXTS, scorer.score(TEXTS), strict=True):
        prompt = encode_prompt(plain[1], f"{text.strip()} =>", 512)
        assert scored.log_probabilities == reference(plain, prompt, [f" {label}" for label in LABELS])
        assert scored.n_tokens == len(prompt)
        assert scored.busy_s > 0
    assert scorer.score([]) == []


@pytest.mark.parametrize("min_prefix", [16, 10_000], ids=["cached prefix", "everything read"])
def test_a_model_before_fine_tuning_is_prompted_by_its_chat_template(
    loaded: Loaded, chatty: Loaded, min_prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trie, "MIN_PREFIX_TOKENS", min_prefix)
    shots = (Shot("gone!", "lost"), Shot("euro rate", "exchange rate"))
    scorer = TrieScorer.prompted(loaded[0], chatty[1], TASK, shots=shots)
    scorer.batch_tokens = 400
    instructions = "".join(f"<s>{m.role}\n{m.content}</s>\n" for m in TASK.instructions(shots))
    for _ in range(2):  # the second time with the prefix cached by the first
        for text, scored in zip(TEXTS, scorer.score(TEXTS), strict=True):
            whole = f"{instructions}<s>user\n{text}</s>\n<s>assistant\n"
            prompt = chatty[1].encode(whole, add_special_tokens=False)
            assert scored.log_probabilities == reference(chatty, prompt, LABELS)
            assert scored.n_tokens == len(prompt)


def test_a_batch_takes_two_passes_for_any_number_of_labels(chatty: Loaded) -> None:
    many = TASK.model_copy(update={"labels": tuple(f"card number {i}" for i in range(60))})
    for task in (TASK, many):
        scorer = TrieScorer.prompted(*chatty, task)
        widths: list[int] = []
        hook = chatty[0].model.register_forward_pre_hook(
            lambda _, __, given, seen=widths: seen.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        scorer.score(["where is my card"])
        assert len(widths) == 3  # the common prefix, the rest of the prompt, the tree
        assert widths[1] < widths[0]
        assert widths[2] == len(scorer.tree.tokens)
        scorer.score(["lost pin"])
        hook.remove()
        assert len(widths) == 5


def test_two_hundred_labels_and_a_single_one(plain: Loaded) -> None:
    labels = tuple(f"{a} {b} {i}" for i in range(10) for a in ("card", "refund", "lost", "B") for b in "vwxyz")
    (scored,) = TrieScorer.fine_tuned(*plain, Classify(name="many", labels=labels)).score(["where is my card"])
    prompt = encode_prompt(plain[1], "where is my card =>", 512)
    assert len(scored.log_probabilities) == 200
    assert scored.log_probabilities == reference(plain, prompt, [f" {label}" for label in labels])
    for label in ("card arrival late", "A"):
        scorer = TrieScorer(*plain, answers=(label,), prompt=plain[1].encode, end=plain[1].eos_token_id)
        assert scorer.score(["where is my card"])[0].log_probabilities == [pytest.approx(0.0, abs=1e-9)]


@settings(max_examples=15)
@given(
    st.lists(st.text(st.sampled_from("cardpin =>"), max_size=40), max_size=6), st.sampled_from(TEXTS), st.integers(0, 6)
)
def test_the_rest_of_the_batch_changes_nothing(plain: Loaded, others: list[str], text: str, at: int) -> None:
    scorer = TrieScorer.fine_tuned(*plain, TASK)
    (alone,) = scorer.score([text])
    together = scorer.score([*others[:at], text, *others[at:]])[min(at, len(others))]
    assert together.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-5)
    assert together.n_tokens == alone.n_tokens


@settings(max_examples=15)
@given(st.permutations(range(len(LABELS))))
def test_the_order_of_labels_changes_nothing(plain: Loaded, order: list[int]) -> None:
    scored = TrieScorer.fine_tuned(*plain, TASK).score(TEXTS)
    moved = TrieScorer.fine_tuned(*plain, TASK.model_copy(update={"labels": tuple(LABELS[i] for i in order)}))
    for ours, theirs in zip(scored, moved.score(TEXTS), strict=True):
        assert theirs.log_probabilities == pytest.approx([ours.log_probabilities[i] for i in order], abs=1e-5)


def test_a_prompt_with_another_beginning_is_read_whole(plain: Loaded) -> None:
    def prompt(text: str) -> list[int]:
        beginning = "tell me more about your " * 8 if len(text) < 10 else "can you help with a " * 12
        ids: list[int] = plain[1].encode(f"{beginning}{text} =>")
        return ids

    scorer = TrieScorer(*plain, answers=LABELS, prompt=prompt, end=plain[1].eos_token_id)
    for text, scored in zip(TEXTS, scorer.score(TEXTS), strict=True):
        assert scored.log_probabilities == reference(plain, prompt(text), LABELS)


def test_probabilities_of_the_labels_sum_to_one(plain: Loaded) -> None:
    for row in TrieScorer.prompted(*plain, TASK, shots=(Shot("gone!", "lost"),)).score(TEXTS):
        assert torch.tensor(row.log_probabilities).exp().sum().item() == pytest.approx(1)


def test_a_model_without_a_chat_template_is_prompted_like_a_fine_tuned_one(plain: Loaded) -> None:
    (ours,) = TrieScorer.prompted(*plain, TASK, shots=(Shot("gone!", "lost"),)).score(["pin"])
    (theirs,) = TrieScorer.fine_tuned(*plain, TASK).score(["pin"])
    assert (ours.log_probabilities, ours.n_tokens) == (theirs.log_probabilities, theirs.n_tokens)


def test_a_long_text_loses_its_middle_and_the_instructions_stay(chatty: Loaded) -> None:
    text = "first " + "where is my card " * 200 + "last"
    scorer = TrieScorer.prompted(*chatty, TASK, max_tokens=300)
    (scored,) = scorer.score([text])
    assert 290 <= scored.n_tokens == len(scorer.prompt(text)) <= 300
    read = chatty[1].decode(scorer.prompt(text))
    assert read.startswith("<s>system\nClassify the user's message.")
    assert "<s>user\nfirst where is my card" in read
    assert read.endswith("my card last</s>\n<s>assistant\n")


def test_scorers_that_cannot_work_are_refused(chatty: Loaded, tiny_fp32: Loaded) -> None:
    with pytest.raises(ConfigError, match="the instructions alone take more than 40 tokens"):
        TrieScorer.prompted(*chatty, TASK, max_tokens=40)
    with pytest.raises(ConfigError, match="the answers of rules are not a closed set"):
        TrieScorer.fine_tuned(*chatty, Answer(name="rules"))
    tiny_fp32[0].config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match='the attention "flash_attention_2" sees every earlier token'):
        TrieScorer.fine_tuned(*tiny_fp32, TASK)


END = 9


def test_common_tokens_of_answers_are_one_node() -> None:
    tree = TokenTree.grow([(1, 2, END), (1, END), (1, 3, 2, END)])
    assert tree.tokens == (1, 2, 3, 2)
    assert tree.parents == (0, 1, 1, 3)
    assert tree.depths == (1, 2, 2, 3)
    assert tree.edges == ((0, 1), (1, 2), (2, END), (1, END), (1, 3), (3, 2), (4, END))
    assert tree.paths == ((0, 1, 2), (0, 3), (0, 4, 5, 6))


def test_a_node_sees_itself_and_its_ancestors_only() -> None:
    tree = TokenTree.grow([(1, 2, END), (1, END), (1, 3, 2, END)])
    assert tree.visibility().int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


@given(st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12))
def test_every_path_spells_its_answer(bodies: set[tuple[int, ...]]) -> None:
    answers = [(*body, END) for body in sorted(bodies)]
    tree = TokenTree.grow(answers)
    assert [tuple(tree.edges[edge][1] for edge in path) for path in tree.paths] == answers
    for path, answer in zip(tree.paths, answers, strict=True):
        last = tree.edges[path[-1]][0]
        seen = tree.visibility()[last - 1].nonzero().flatten().tolist()
        assert tuple(tree.tokens[node] for node in seen) == answer[:-1]  # ancestors are numbered in reading order
        assert tree.depths[last - 1] == len(answer) - 1
    assert len(tree.tokens) == len({answer[:n] for answer in answers for n in range(1, len(answer))})


@given(st.sets(st.lists(st.integers(0, 2), max_size=4).map(tuple), min_size=1, max_size=12), st.integers(1, 9))
def test_probabilities_of_all_answers_sum_to_one(bodies: set[tuple[int, ...]], seed: int) -> None:
    """If the edges of every node sum to 1, so do the answers."""
    tree = TokenTree.grow([(*body, END) for body in sorted(bodies)])
    drawn = {edge: 1 + (seed * (at + 3)) % 7 for at, edge in enumerate(tree.edges)}
    of_node = {node: sum(w for (n, _), w in drawn.items() if n == node) for node, _ in tree.edges}
    probabilities = [drawn[edge] / of_node[edge[0]] for edge in tree.edges]
    assert sum(math.prod(probabilities[edge] for edge in path) for path in tree.paths) == pytest.approx(1)


def test_answers_with_equal_tokens_are_all_named() -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1, "card": 2, "pin": 3}, "<unk>"))
    words.normalizer = tokenizers.normalizers.Lowercase()
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert encode_answers(tokenizer, [" card", " card pin"], 1) == [(2, 1), (2, 3, 1)]
    with pytest.raises(ConfigError) as caught:
        encode_answers(tokenizer, [" card", " Card", " pin </s>", " other", " else"], 1)
    assert str(caught.value).splitlines()[0] == (
        'labels cannot be distinguished: "card" and "Card" have the same tokens; '
        '"pin </s>" contains the token that ends an answer; "other" and "else" have the same tokens'
    )
