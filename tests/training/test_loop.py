"""The loop: a loss that is plain cross-entropy, an AdamW that is AdamW, and runs that repeat to the byte."""

from pathlib import Path
from typing import Any

import pytest
import torch

from smallfirst.base.errors import TrainingError
from smallfirst.data.dataset import Dataset
from smallfirst.models.local.tokenizer import choose_label_tokens
from smallfirst.models.local.weights import load_causal
from smallfirst.tasks.classify import Classify
from smallfirst.training.causal_lm import CausalBackend
from smallfirst.training.config import TokenizedRow, TrainConfig
from smallfirst.training.loop import MasterAdamW, StepMetrics, TrainingLoop, count_steps, learning_rate_at
from smallfirst.training.recipe import encode_task_rows

CONFIG = TrainConfig(duration="12ep", learning_rate=5e-3, batch_tokens=64, max_seq_tokens=64)


@pytest.fixture
def rows(tiny_folder: Path, toy_rows: Dataset, toy_task: Classify) -> list[TokenizedRow]:
    _, tokenizer = load_causal(tiny_folder)
    codes = choose_label_tokens(toy_task.labels, tokenizer)
    return encode_task_rows(toy_rows, toy_task, tokenizer, 64, codes)


def content(model: Any) -> bytes:
    return b"".join(p.detach().view(-1).view(torch.uint8).numpy().tobytes() for p in model.parameters())


def test_the_rate_rises_to_the_peak_and_falls_to_the_floor() -> None:
    config = TrainConfig(learning_rate=1e-3, warmup_share=0.1, final_rate_share=0.02)
    rates = [learning_rate_at(step, 100, config) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == pytest.approx(1e-3)
    assert rates[54] == pytest.approx(0.51e-3)  # half way down: 0.02 + 0.98 / 2
    assert rates[99] == pytest.approx(2e-5)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


@pytest.mark.parametrize("clip_norm", [0.05, 1e9])
def test_on_fp32_weights_it_is_pytorchs_adamw(clip_norm: float) -> None:
    torch.manual_seed(0)
    ours = torch.nn.Linear(5, 3)
    theirs = torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    config = TrainConfig(weight_decay=0.1, clip_norm=clip_norm)
    optimizer = MasterAdamW(list(ours.parameters()), config)
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    for rate in (1e-3, 5e-3, 2e-3):
        for param, copy in zip(ours.parameters(), theirs.parameters(), strict=True):
            param.grad = torch.randn_like(param)
            copy.grad = param.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        for group in reference.param_groups:
            group["lr"] = rate
        optimizer.gather()
        optimizer.step(rate)
        reference.step()
    for param, copy in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(param, copy, atol=1e-6, rtol=0)
        assert param.grad is None
    for param, master in zip(ours.parameters(), optimizer.masters, strict=True):
        assert master.data_ptr() == param.data_ptr()  # no second copy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_an_embedding_that_are_trained_move_as_by_adamw_and_the_others_stay(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Embedding(9, 4).to(dtype), torch.nn.Embedding(9, 4)
    theirs.load_state_dict(ours.state_dict())
    before, used = ours.weight.detach().clone(), [2, 3, 7]
    ours.sparse, ours.weight.trained_rows = True, torch.tensor(used)  # type: ignore[attr-defined]
    optimizer = MasterAdamW(list(ours.parameters()), TrainConfig(weight_decay=0.1, clip_norm=0.5))
    reference = torch.optim.AdamW(theirs.parameters(), weight_decay=0.1, betas=(0.9, 0.98))
    for ids in ([2, 7, 7], [3], [7, 2]):  # momentum and decay go on where a token does not occur
        for embedding in (ours, theirs):
            embedding(torch.tensor(ids)).float().pow(2).sum().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.gather()
        optimizer.step(1e-3)
        reference.step()
        reference.zero_grad()
    assert optimizer.masters[0].shape == (3, 4)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours.weight[used].float(), theirs.weight[used], atol=tolerance, rtol=0)
    others = [0, 1, 4, 5, 6, 8]
    assert torch.equal(ours.weight[others], before[others])
    assert not torch.equal(ours.weight[used], before[used])


def test_updates_too_small_for_bfloat16_add_up() -> None:
    # At 1.0 the next smaller bfloat16 is 0.00390625 away; one update moves by 0.0001.
    ours = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    plain = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = MasterAdamW([ours], TrainConfig(weight_decay=0))
    rounded = torch.optim.AdamW([plain], lr=1e-4, weight_decay=0)
    for _ in range(100):
        ours.grad, plain.grad = torch.ones_like(ours), torch.ones_like(plain)
        optimizer.gather()
        optimizer.step(1e-4)
        rounded.step()
    assert plain.unique().tolist() == [1.0]
    assert optimizer.masters[0].unique().tolist() == pytest.approx([0.99], abs=1e-4)
    assert ours.unique().tolist() == [0.98828125]  # 0.99 rounded to bfloat16
    assert ours.dtype == torch.bfloat16


def test_a_plan_counts_epochs_batches_and_tokens(rows: list[TokenizedRow]) -> None:
    tokens = sum(len(row.ids) - 1 for row in rows)
    _, per_epoch = count_steps(CausalBackend(), rows, CONFIG)
    assert per_epoch >= 3
    for duration, total in (
        ("4ep", 4 * per_epoch),
        ("7ba", 7),
        (f"{2 * tokens}tok", 2 * per_epoch),
        (f"{2 * tokens + 1}tok", 2 * per_epoch + 1),
        ("1tok", 1),
    ):
        config = CONFIG.model_copy(update={"duration": duration})
        assert count_steps(CausalBackend(), rows, config) == (total, per_epoch)


def test_each_step_tells_how_far_the_run_is(tiny_folder: Path, rows: list[TokenizedRow]) -> None:
    seen: list[list[TokenizedRow]] = []
    backend = CausalBackend()
    plain = backend.gradient
    backend.gradient = lambda model, rows, *rest: (seen.append(rows), plain(model, rows, *rest))[1]  # type: ignore[method-assign]
    _, per_epoch = count_steps(backend, rows, CONFIG)
    config = CONFIG.model_copy(update={"duration": f"{2 * per_epoch + 1}ba"})  # the third epoch is not finished
    steps = list(TrainingLoop(backend, load_causal(tiny_folder)[0], rows, config).steps())
    total = 2 * per_epoch + 1
    assert [step.step for step in steps] == list(range(1, total + 1))
    assert [step.progress for step in steps] == pytest.approx([n / total for n in range(1, total + 1)])
    assert [step.step for step in steps if step.ends_epoch] == [per_epoch, 2 * per_epoch, total]
    assert steps[per_epoch - 1].epoch == 1.0
    assert steps[per_epoch - 1].tokens == sum(len(row.ids) - 1 for row in rows)
    assert all(step.tokens_per_s > 0 for step in steps)
    assert [step.learning_rate for step in steps] == [learning_rate_at(n, total, CONFIG) for n in range(1, total + 1)]
    assert steps[-1].loss < steps[0].loss
    epochs = seen[:per_epoch], seen[per_epoch : 2 * per_epoch]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == sorted(rows)
    assert epochs[0] != epochs[1]  # each has its own order


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tiny_folder: Path, rows: list[TokenizedRow]
) -> None:
    found = []
    for seed in (0, 0, 1):
        model, _ = load_causal(tiny_folder)
        config = CONFIG.model_copy(update={"duration": "1ep", "seed": seed})
        list(TrainingLoop(CausalBackend(), model, rows, config).steps())
        found.append(content(model))
    assert found[0] == found[1] != found[2]


def test_only_weights_that_may_move_do_and_between_steps_the_model_is_in_evaluation_mode(
    tiny_folder: Path, rows: list[TokenizedRow]
) -> None:
    model, _ = load_causal(tiny_folder)
    model.model.layers[0].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    modes: list[bool] = []
    model.model.register_forward_hook(lambda *_: modes.append(model.training))
    loop = TrainingLoop(CausalBackend(), model, rows, CONFIG.model_copy(update={"duration": "2ba"}))
    between = [model.training for _ in loop.steps()]
    assert (set(modes), set(between)) == ({True}, {False})
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert not any(name.startswith("model.layers.0.") for name in moved)
    assert moved >= {n for n, p in before.items() if p.dim() == 2 and not n.startswith("model.layers.0.")}


def test_a_loss_that_is_no_number_stops_the_run(tiny_folder: Path, rows: list[TokenizedRow]) -> None:
    model, _ = load_causal(tiny_folder)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    told: list[StepMetrics] = []
    with pytest.raises(TrainingError) as caught:
        told.extend(TrainingLoop(CausalBackend(), model, rows, CONFIG).steps())
    assert str(caught.value) == "the loss became nan at step 1\n  next: lower learning_rate"
    assert told == []
