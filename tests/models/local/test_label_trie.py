"""Label probabilities over a tree: those of writing each label out, whatever is read beside it."""

from __future__ import annotations

import math
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
    """The same by transformers' own code alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def chatty(plain: Loaded) -> Loaded:
    """The same with a chat template."""
    model, tokenizer = plain
    return model, with_template(tokenizer)


def with_template(tokenizer: Any) -> Any:
    copy = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    copy.chat_template = TEMPLATE
    return copy


def by_writing(model: Any, prompt: list[int], answers: list[list[int]]) -> list[float]:
    """Log-probability of each answer over all of them, from one plain forward pass an answer."""
    sums = []
    for answer in answers:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
        steps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        sums.append(steps[torch.arange(len(answer)), torch.tensor(answer)].sum())
    return torch.stack(sums).log_softmax(0).tolist()


def written(tokenizer: Any, texts: tuple[str, ...]) -> list[list[int]]:
    return [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]


@pytest.mark.parametrize("batch_tokens", [1, 120, 4096])
def test_a_label_has_the_probability_of_being_written_out(loaded: Loaded, plain: Loaded, batch_tokens: int) -> None:
    scorer = TrieScorer.fine_tuned(*loaded, TASK)
    scorer.batch_tokens = batch_tokens
    answers = written(plain[1], tuple(f" {label}" for label in LABELS))
    assert len({len(answer) for answer in answers}) > 2
    for text, scored in zip(TEXTS, scorer.score(TEXTS), strict=True):
        prompt = encode_prompt(plain[1], f"{text.strip()} =>", 512)
        assert scored.log_probabilities == pytest.approx(by_writing(plain[0], prompt, answers), abs=1e-4)
        assert scored.n_tokens == len(prompt)
        assert scored.busy_s > 0


@pytest.mark.parametrize("shared_from", [16, 10_000], ids=["shared beginning read once", "everything read"])
def test_an_untouched_model_is_asked_by_its_chat_template(
    loaded: Loaded, chatty: Loaded, shared_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trie, "MIN_PREFIX_TOKENS", shared_from)
    shots = (Shot("gone!", "lost"), Shot("euro rate", "exchange rate"))
    scorer = TrieScorer.prompted(loaded[0], chatty[1], TASK, shots=shots)
    scorer.batch_tokens = 400
    told = "".join(f"<s>{m.role}\n{m.content}</s>\n" for m in TASK.instructions(shots))
    for _ in range(2):  # the second time with what was read the first time
        for text, scored in zip(TEXTS, scorer.score(TEXTS), strict=True):
            asked = f"{told}<s>user\n{text}</s>\n<s>assistant\n"
            prompt = chatty[1].encode(asked, add_special_tokens=False)
            expected = by_writing(chatty[0], prompt, written(chatty[1], LABELS))
            assert scored.log_probabilities == pytest.approx(expected, abs=1e-4)
            assert scored.n_tokens == len(prompt)


def test_however_many_labels_a_batch_takes_two_passes(chatty: Loaded) -> None:
    many = TASK.model_copy(update={"labels": tuple(f"card number {i}" for i in range(60))})
    for task in (TASK, many):
        scorer = TrieScorer.prompted(*chatty, task)
        widths: list[int] = []
        hook = chatty[0].model.register_forward_pre_hook(
            lambda _, __, given, seen=widths: seen.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        scorer.score(["where is my card"])
        assert len(widths) == 3  # the shared beginning, the rest of the prompt, the tree
        assert widths[1] < widths[0]
        assert widths[2] == len(scorer.tree.tokens)
        scorer.score(["lost pin"])
        hook.remove()
        assert len(widths) == 5


def test_two_hundred_labels(plain: Loaded) -> None:
    labels = tuple(f"{a} {b} {i}" for i in range(10) for a in ("card", "refund", "lost", "B") for b in "vwxyz")
    scorer = TrieScorer.fine_tuned(*plain, Classify(name="many", labels=labels))
    (scored,) = scorer.score(["where is my card"])
    prompt = encode_prompt(plain[1], "where is my card =>", 512)
    expected = by_writing(plain[0], prompt, written(plain[1], tuple(f" {label}" for label in labels)))
    assert len(scored.log_probabilities) == 200
    assert scored.log_probabilities == pytest.approx(expected, abs=1e-4)


def test_the_only_label_is_certain(plain: Loaded) -> None:
    model, tokenizer = plain
    for label in ("card arrival late", "A"):
        scorer = TrieScorer(
            model, tokenizer, answers=(label,), prompt=lambda text: tokenizer.encode(text), end=tokenizer.eos_token_id
        )
        assert scorer.score(["where is my card"])[0].log_probabilities == [pytest.approx(0.0, abs=1e-9)]


@settings(max_examples=15)
@given(
    st.lists(st.text(st.sampled_from("cardpin =>"), max_size=40), max_size=6), st.sampled_from(TEXTS), st.integers(0, 6)
)
def test_what_stands_beside_a_text_changes_nothing(plain: Loaded, others: list[str], text: str, at: int) -> None:
    scorer = TrieScorer.fine_tuned(*plain, TASK)
    among = [*others[:at], text, *others[at:]]
    (alone,) = scorer.score([text])
    together = scorer.score(among)[min(at, len(others))]
    assert together.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-5)
    assert together.n_tokens == alone.n_tokens


@settings(max_examples=15)
@given(st.permutations(range(len(LABELS))))
def test_the_order_of_labels_changes_nothing(plain: Loaded, order: list[int]) -> None:
    scored = TrieScorer.fine_tuned(*plain, TASK).score(TEXTS)
    moved = TrieScorer.fine_tuned(*plain, TASK.model_copy(update={"labels": tuple(LABELS[i] for i in order)}))
    for ours, theirs in zip(scored, moved.score(TEXTS), strict=True):
        expected = [ours.log_probabilities[i] for i in order]
        assert theirs.log_probabilities == pytest.approx(expected, abs=1e-5)


def test_a_prompt_that_begins_like_no_other_is_read_whole(plain: Loaded) -> None:
    model, tokenizer = plain

    def prompt(text: str) -> list[int]:
        told = "tell me more about your " * 8 if len(text) < 10 else "can you help with a " * 12
        ids: list[int] = tokenizer.encode(f"{told}{text} =>")
        return ids

    scorer = TrieScorer(model, tokenizer, answers=LABELS, prompt=prompt, end=tokenizer.eos_token_id)
    for text, scored in zip(TEXTS, scorer.score(TEXTS), strict=True):
        expected = by_writing(model, prompt(text), written(tokenizer, LABELS))
        assert scored.log_probabilities == pytest.approx(expected, abs=1e-4)


def test_no_texts_give_no_results(plain: Loaded) -> None:
    assert TrieScorer.fine_tuned(*plain, TASK).score([]) == []


def test_a_folder_is_read_like_the_model_in_it(tiny_folder: Path) -> None:
    ours = TrieScorer.load(tiny_folder, TASK, shots=(Shot("gone!", "lost"),)).score(TEXTS)
    theirs = TrieScorer.prompted(*load_causal(tiny_folder), TASK, shots=(Shot("gone!", "lost"),)).score(TEXTS)
    assert [row.log_probabilities for row in ours] == [row.log_probabilities for row in theirs]
    for row in ours:
        assert torch.tensor(row.log_probabilities).exp().sum().item() == pytest.approx(1)


def test_a_model_without_a_chat_template_is_asked_as_a_fine_tuned_one(plain: Loaded) -> None:
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


def test_instructions_that_leave_no_room_are_refused(chatty: Loaded) -> None:
    with pytest.raises(ConfigError, match="the instructions alone take more than 40 tokens"):
        TrieScorer.prompted(*chatty, TASK, max_tokens=40)


def test_attention_that_takes_no_mask_is_refused(tiny_fp32: Loaded) -> None:
    model, tokenizer = tiny_fp32
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match='the attention "flash_attention_2" sees every earlier token'):
        TrieScorer.fine_tuned(model, tokenizer, TASK)


def test_open_answers_have_no_tree(plain: Loaded) -> None:
    with pytest.raises(ConfigError, match="the answers of rules are not a closed set"):
        TrieScorer.fine_tuned(*plain, Answer(name="rules"))


END = 9


def test_what_answers_share_stands_once() -> None:
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
        assert tuple(tree.tokens[node] for node in seen) == answer[:-1]  # ancestors stand in the order they are read
        assert tree.depths[last - 1] == len(answer) - 1
    assert len(tree.tokens) == len({answer[:n] for answer in answers for n in range(1, len(answer))})


@given(st.sets(st.lists(st.integers(0, 2), max_size=4).map(tuple), min_size=1, max_size=12), st.integers(1, 9))
def test_shares_at_every_node_give_shares_over_all_answers(bodies: set[tuple[int, ...]], seed: int) -> None:
    """With edge probabilities that share out each node, the answers share out 1."""
    tree = TokenTree.grow([(*body, END) for body in sorted(bodies)])
    drawn = {edge: 1 + (seed * (at + 3)) % 7 for at, edge in enumerate(tree.edges)}
    of_node = {node: sum(w for (n, _), w in drawn.items() if n == node) for node, _ in tree.edges}
    shares = [drawn[edge] / of_node[edge[0]] for edge in tree.edges]
    assert sum(math.prod(shares[edge] for edge in path) for path in tree.paths) == pytest.approx(1)


def test_answers_that_a_tokenizer_cannot_tell_apart_are_all_named() -> None:
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
