"""One gradient, however its batch is cut: whole, in micro-batches, or among two processes."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.warm_processes import WarmProcess

from smallfirst.data.dataset import Dataset
from smallfirst.models.local.weights import load_causal
from smallfirst.tasks.answer import Answer
from smallfirst.training.batches import TokenizedRow, micro_batches
from smallfirst.training.causal_lm import accumulate_gradient
from smallfirst.training.config import TrainConfig
from smallfirst.training.loop import MasterAdamW

# Rows with one, two and five targets: a mean of means would weigh them wrongly.
ROWS = [
    TokenizedRow((0, 5, 9, 300, 301), 4),
    TokenizedRow((0, 7, 300, 301, 302), 3),
    TokenizedRow((0, 11, 12, 300), 3),
    TokenizedRow((0, 4, 300, 301, 302, 303, 304), 2),
    TokenizedRow((0, 21, 22, 23, 24, 25, 26, 300), 7),
]
PROCESS = """
    import sys, torch, torch.distributed as dist
    from pathlib import Path
    from smallfirst.models.local.weights import load_causal
    from smallfirst.training.batches import TokenizedRow
    from smallfirst.training.config import TrainConfig
    from smallfirst.training.causal_lm import accumulate_gradient
    from smallfirst.training.loop import MasterAdamW
    folder, meeting, rank, out = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    model, _ = load_causal(Path(folder))
    model.float()
    rows = [TokenizedRow(tuple(ids), n) for ids, n in ROWS]
    optimizer = MasterAdamW(list(model.parameters()), TrainConfig())
    config = TrainConfig.model_construct(**{**TrainConfig().model_dump(), "micro_tokens": 12})
    loss = accumulate_gradient(model, rows, config, optimizer)
    torch.save([torch.tensor(loss), *(m.grad for m in optimizer.masters)], out)
"""


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    found, _ = load_causal(tiny_folder)
    return found.float()


def gradients(model: Any, rows: list[TokenizedRow], **settings: Any) -> list[torch.Tensor]:
    config = TrainConfig(**settings)
    optimizer = MasterAdamW(list(model.parameters()), config)
    loss = accumulate_gradient(model, rows, config, optimizer)
    return [torch.tensor(loss), *(m.grad for m in optimizer.masters if m.grad is not None)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_mean_over_all_target_tokens(model: Any) -> None:
    by_hand = []
    with torch.no_grad():
        for row in ROWS:
            logs = model(input_ids=torch.tensor([row.ids[:-1]])).logits[0].log_softmax(-1)
            by_hand += [-logs[at - 1, row.ids[at]].item() for at in range(row.n_prompt, len(row.ids))]
    assert len(by_hand) == 10
    assert gradients(model, ROWS)[0].item() == pytest.approx(sum(by_hand) / 10, abs=1e-5)


def test_micro_batches_give_the_gradient_of_the_whole(model: Any) -> None:
    assert len(micro_batches(ROWS, 1024)) == 1
    assert len(micro_batches(ROWS, 12)) == 3
    whole = gradients(model, ROWS)
    cut = TrainConfig.model_construct(**{**TrainConfig().model_dump(), "micro_tokens": 12})
    optimizer = MasterAdamW(list(model.parameters()), cut)
    loss = accumulate_gradient(model, ROWS, cut, optimizer)
    assert_same([torch.tensor(loss), *(m.grad for m in optimizer.masters)], whole)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_two_processes_give_the_gradient_of_one(
    model: Any, tiny_folder: Path, tmp_path: Path, warm_parent: None, rows: list[TokenizedRow]
) -> None:
    """One has a micro-batch more than the other, or all the rows that there are."""
    program = f"ROWS = {[(list(r.ids), r.n_prompt) for r in rows]}\n" + textwrap.dedent(PROCESS)
    meeting, outs = tmp_path / "meeting", [tmp_path / "0.pt", tmp_path / "1.pt"]
    children = [
        WarmProcess([sys.executable, "-c", program, str(tiny_folder), str(meeting), str(rank), str(out)])
        for rank, out in enumerate(outs)
    ]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    whole = gradients(model, rows)
    for out in outs:
        assert_same(torch.load(out, weights_only=True), whole)


def test_micro_batches_keep_every_row_in_order_within_the_budget() -> None:
    parts = micro_batches(ROWS, 12)
    assert [row for part in parts for row in part] == ROWS
    assert all(max(len(r.ids) - 1 for r in part) * len(part) <= 12 for part in parts)
    assert micro_batches([TokenizedRow(tuple(range(50)), 3)], 32) == [[TokenizedRow(tuple(range(50)), 3)]]


def test_prompt_tokens_beyond_what_a_row_is_never_enter_the_loss(model: Any) -> None:
    """Another row in the batch changes no row's own loss."""
    alone = sum(gradients(model, [row])[0].item() * (len(row.ids) - row.n_prompt) for row in ROWS)
    assert gradients(model, ROWS)[0].item() * 10 == pytest.approx(alone, abs=1e-4)


def test_every_written_row_ends_with_the_end_token(toy_rows: Dataset, tiny_folder: Path) -> None:
    from smallfirst.training.batches import encode_text_rows

    _, tokenizer = load_causal(tiny_folder)
    rows = encode_text_rows(toy_rows, Answer(name="toy"), tokenizer=tokenizer, max_tokens=64)
    assert {row.ids[-1] for row in rows} == {tokenizer.eos_token_id}
    assert all(row.n_prompt < len(row.ids) - 1 for row in rows)
