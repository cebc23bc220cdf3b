"""Token sequences as one tree: what is shared stands once, and no answer sees another's tokens."""

from __future__ import annotations

import math

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.errors import ConfigError
from smallfirst.models.local.token_tree import TokenTree, encode_answers

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
    assert tree.sight().int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


@given(st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12))
def test_every_path_spells_its_answer(bodies: set[tuple[int, ...]]) -> None:
    answers = [(*body, END) for body in sorted(bodies)]
    tree = TokenTree.grow(answers)
    assert [tuple(tree.edges[edge][1] for edge in path) for path in tree.paths] == answers
    for path, answer in zip(tree.paths, answers, strict=True):
        last = tree.edges[path[-1]][0]
        seen = tree.sight()[last - 1].nonzero().flatten().tolist()
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
        'labels cannot be told apart: "card" and "Card" are the same to this tokenizer; '
        '"pin </s>" contains the token that ends an answer; "other" and "else" are the same to this tokenizer'
    )
