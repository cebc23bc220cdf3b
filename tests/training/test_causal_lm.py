"""One gradient: whether a shared beginning is read once, however a batch is cut, of a base in 4 bits or 16."""

from __future__ import annotations

import importlib.util
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.warm_processes import WarmProcess

from smallfirst.base.errors import MissingExtra, TrainingError
from smallfirst.data.dataset import Dataset
from smallfirst.models.local.weights import load_causal
from smallfirst.registry.runs import open_run
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify
from smallfirst.training import causal_lm
from smallfirst.training.batches import TokenizedRow, micro_batches
from smallfirst.training.causal_lm import (
    CausalBackend,
    accumulate_gradient,
    forward,
    require_isolated_rows,
    shared_prefix_tokens,
    target_loss,
)
from smallfirst.training.config import TrainConfig
from smallfirst.training.device import replace_norms
from smallfirst.training.loop import MasterAdamW
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import train

BEGINNING = tuple(range(10, 22))
ROWS = [
    TokenizedRow((*BEGINNING, 30, 31, 300, 301), 14),
    TokenizedRow((*BEGINNING, 40, 300, 301, 302), 13),
    TokenizedRow((*BEGINNING, 50, 51, 52, 53, 300), 16),
]


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    found, _ = load_causal(tiny_folder)
    return found.float()


def gradients(model: Any, **settings: Any) -> list[torch.Tensor]:
    model.zero_grad()
    loss = target_loss(model, ROWS, **settings)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_the_shared_beginning_ends_before_the_token_that_predicts_the_first_target() -> None:
    assert shared_prefix_tokens(ROWS) == 12
    assert shared_prefix_tokens(ROWS[:1]) == 0
    assert shared_prefix_tokens([TokenizedRow((*BEGINNING, 1), 12), TokenizedRow((*BEGINNING, 2), 12)]) == 11
    assert shared_prefix_tokens([TokenizedRow((1, *BEGINNING, 9), 12), TokenizedRow((2, *BEGINNING, 9), 12)]) == 0
    assert shared_prefix_tokens([TokenizedRow((8, 1, 5), 2), TokenizedRow((8, 2, 5), 2)]) == 0
    assert (
        shared_prefix_tokens([TokenizedRow(BEGINNING, 0), TokenizedRow(BEGINNING, 0)]) == 0
    )  # plain text: every token is a target


def test_a_beginning_read_once_gives_the_loss_and_gradient_of_reading_it_with_every_row(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = gradients(model)
    monkeypatch.setattr(causal_lm, "MIN_SHARED_PREFIX_TOKENS", 1000)
    apart = gradients(model)
    assert len(once) == len(apart) > 10
    for one, other in zip(once, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_layers_see_the_shared_beginning_once_and_no_padding(model: Any) -> None:
    seen = []
    model.model.layers[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2]))
    assert forward(model, ROWS).states.shape == (6, 32)
    assert seen == [(1, 12 + 3 + 3 + 4)]


def test_states_before_each_target_are_those_of_transformers_own_pass_over_each_row(
    model: Any, tiny_folder: Path
) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, attn_implementation="eager"
    )
    replace_norms(model)
    found = forward(model, ROWS)
    assert found.tokens.tolist() == [300, 301, 300, 301, 302, 300]
    with torch.inference_mode():
        states = [
            theirs.model(input_ids=torch.tensor([row.ids[:-1]])).last_hidden_state[0, row.n_prompt - 1 :]
            for row in ROWS
        ]
    torch.testing.assert_close(found.states, torch.cat(states), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["shared beginning", "one row"])
def test_everything_that_a_step_computes_is_on_the_device_of_the_model(model: Any, rows: list[TokenizedRow]) -> None:
    model.to("meta")  # like a GPU it refuses to mix its tensors with the processor's
    target_loss(model, rows).backward()
    assert {p.grad.device.type for p in model.parameters()} == {"meta"}


def test_a_model_whose_packed_rows_see_one_another_is_refused(model: Any) -> None:
    require_isolated_rows(model)
    plain = model.model.forward
    model.model.forward = lambda packed, **rest: plain(**rest)
    with pytest.raises(TrainingError, match="cannot read rows packed behind one another"):
        require_isolated_rows(model)


TWO_ROWS = [TokenizedRow((0, 5, 9, 300, 301), 3), TokenizedRow((0, 5, 7, 8, 300, 301, 302), 4)]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra gpu)"
)


def adapted(folder: Path, **settings: Any) -> Any:
    model, _ = CausalBackend().load(folder, TrainConfig(**settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=0.2)
    return model


@needs_bitsandbytes
def test_a_base_in_4_bits_gives_the_loss_and_gradient_of_its_numbers_in_16(tiny_folder: Path, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    packed = adapted(tiny_folder, method="qlora")
    bits = {name: part.weight for name, part in packed.named_modules() if name.endswith(".base_layer")}
    assert {type(weight).__name__ for weight in bits.values()} == {"Params4bit"}
    assert len(bits) == 2 * 7  # every matrix of both layers
    whole, tokenizer = load_causal(tiny_folder)
    changed = 0
    for name, weight in bits.items():
        part = whole.get_submodule(name.removesuffix(".base_layer"))
        numbers = dequantize_4bit(weight.data, weight.quant_state)
        changed += not torch.equal(part.weight, numbers)
        part.weight.data = numbers
    assert changed == len(bits)
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = adapted(tmp_path, method="lora")
    found = []
    for model in (packed, plain):
        loss = target_loss(model, TWO_ROWS)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(found[0]) == len(found[1]) == 1 + 2 * len(bits)
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0.02)  # products in bf16


@needs_bitsandbytes
def test_merging_writes_the_16_bit_model_that_was_trained(tiny_folder: Path, tmp_path: Path) -> None:
    model = adapted(tiny_folder, method="qlora")
    CausalBackend().save(model, load_causal(tiny_folder)[1], tmp_path)
    settings = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tiny_folder)]
    assert settings[0] == settings[1]
    whole, _ = load_causal(tmp_path)
    assert {p.dtype for p in whole.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        mine, theirs = (m(input_ids=torch.arange(5, 25)[None]).logits.float() for m in (whole, model))
    assert (mine - theirs).abs().max() < 0.05 * theirs.abs().max()


@needs_bitsandbytes
def test_a_run_learns_and_its_version_is_a_whole_model_in_16_bits(
    toy_task: Classify, toy_rows: Dataset, toy_selection: Dataset, tiny_folder: Path, tmp_path: Path
) -> None:
    config = TrainConfig(method="qlora", duration="4ep", learning_rate=5e-3, batch_tokens=128)
    with open_run("toy", "qlora") as tracked:
        recipe = TaskRecipe(toy_task, toy_rows, toy_selection)
        run = train(recipe, config, base=("tiny", tiny_folder), tracked=tracked, folder=tmp_path)
    losses = [loss for _, loss in run.loss_curve]
    assert losses[-1] < 0.85 * losses[0]
    before, after = (dict(load_causal(folder)[0].named_parameters()) for folder in (tiny_folder, run.folder))
    assert before.keys() == after.keys()


def test_without_bitsandbytes_the_extra_is_named(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="gpu"):
        load_causal(tiny_folder, nf4=True)


# Rows with one, two and five targets: a mean of means would weigh them wrongly.
CUT_ROWS = [
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
    rows = [TokenizedRow(tuple(ids), n) for ids, n in CUT_ROWS]
    optimizer = MasterAdamW(list(model.parameters()), TrainConfig())
    config = TrainConfig.model_construct(**{**TrainConfig().model_dump(), "micro_tokens": 12})
    loss = accumulate_gradient(model, rows, config, optimizer)
    torch.save([torch.tensor(loss), *(m.grad for m in optimizer.masters)], out)
"""


def step_gradients(model: Any, rows: list[TokenizedRow], **settings: Any) -> list[torch.Tensor]:
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
        for row in CUT_ROWS:
            logs = model(input_ids=torch.tensor([row.ids[:-1]])).logits[0].log_softmax(-1)
            by_hand += [-logs[at - 1, row.ids[at]].item() for at in range(row.n_prompt, len(row.ids))]
    assert len(by_hand) == 10
    assert step_gradients(model, CUT_ROWS)[0].item() == pytest.approx(sum(by_hand) / 10, abs=1e-5)


def test_micro_batches_give_the_gradient_of_the_whole(model: Any) -> None:
    assert len(micro_batches(CUT_ROWS, 1024)) == 1
    assert len(micro_batches(CUT_ROWS, 12)) == 3
    whole = step_gradients(model, CUT_ROWS)
    cut = TrainConfig.model_construct(**{**TrainConfig().model_dump(), "micro_tokens": 12})
    optimizer = MasterAdamW(list(model.parameters()), cut)
    loss = accumulate_gradient(model, CUT_ROWS, cut, optimizer)
    assert_same([torch.tensor(loss), *(m.grad for m in optimizer.masters)], whole)


@pytest.mark.parametrize("rows", [CUT_ROWS, CUT_ROWS[:1]])
def test_two_processes_give_the_gradient_of_one(
    model: Any, tiny_folder: Path, tmp_path: Path, warm_parent: None, rows: list[TokenizedRow]
) -> None:
    """One has a micro-batch more than the other, or all the rows that there are."""
    program = f"CUT_ROWS = {[(list(r.ids), r.n_prompt) for r in rows]}\n" + textwrap.dedent(PROCESS)
    meeting, outs = tmp_path / "meeting", [tmp_path / "0.pt", tmp_path / "1.pt"]
    children = [
        WarmProcess([sys.executable, "-c", program, str(tiny_folder), str(meeting), str(rank), str(out)])
        for rank, out in enumerate(outs)
    ]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    whole = step_gradients(model, rows)
    for out in outs:
        assert_same(torch.load(out, weights_only=True), whole)


def test_micro_batches_keep_every_row_in_order_within_the_budget() -> None:
    parts = micro_batches(CUT_ROWS, 12)
    assert [row for part in parts for row in part] == CUT_ROWS
    assert all(max(len(r.ids) - 1 for r in part) * len(part) <= 12 for part in parts)
    assert micro_batches([TokenizedRow(tuple(range(50)), 3)], 32) == [[TokenizedRow(tuple(range(50)), 3)]]


def test_prompt_tokens_beyond_what_a_row_is_never_enter_the_loss(model: Any) -> None:
    """Another row in the batch changes no row's own loss."""
    alone = sum(step_gradients(model, [row])[0].item() * (len(row.ids) - row.n_prompt) for row in CUT_ROWS)
    assert step_gradients(model, CUT_ROWS)[0].item() * 10 == pytest.approx(alone, abs=1e-4)


def test_every_written_row_ends_with_the_end_token(toy_rows: Dataset, tiny_folder: Path) -> None:
    from smallfirst.training.batches import encode_text_rows

    _, tokenizer = load_causal(tiny_folder)
    rows = encode_text_rows(toy_rows, Answer(name="toy"), tokenizer=tokenizer, max_tokens=64)
    assert {row.ids[-1] for row in rows} == {tokenizer.eos_token_id}
    assert all(row.n_prompt < len(row.ids) - 1 for row in rows)
