"""One gradient: however rows are packed, a batch is cut, a base is stored or memory is saved."""

import importlib.util
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.rows import answered_rows as rows
from fixtures.training import Bench
from fixtures.warm_processes import WarmProcess

from smallfirst.base.errors import DataError, TrainingError
from smallfirst.data.dataset import Dataset
from smallfirst.models.local.tokenizer import choose_label_tokens
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract
from smallfirst.training import causal_lm
from smallfirst.training.causal_lm import (
    CausalBackend,
    accumulate_gradient,
    as_kept,
    forward,
    learn_in_fp32,
    mean_loss,
    require_isolated_rows,
    shared_prefix_tokens,
    target_loss,
    validate_generation,
    validate_labels,
)
from smallfirst.training.config import TokenizedRow, TrainConfig
from smallfirst.training.loop import MasterAdamW, micro_batches

BEGINNING = tuple(range(10, 22))
ROWS = [
    TokenizedRow((*BEGINNING, 30, 31, 300, 301), 14),
    TokenizedRow((*BEGINNING, 40, 300, 301, 302), 13),
    TokenizedRow((*BEGINNING, 50, 51, 52, 53, 300), 16),
]
# Rows with one, two and five targets: a mean of means would weigh them wrongly.
CUT_ROWS = [
    TokenizedRow((0, 5, 9, 300, 301), 4),
    TokenizedRow((0, 7, 300, 301, 302), 3),
    TokenizedRow((0, 11, 12, 300), 3),
    TokenizedRow((0, 4, 300, 301, 302, 303, 304), 2),
    TokenizedRow((0, 21, 22, 23, 24, 25, 26, 300), 7),
]


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    return load_causal(tiny_folder)[0].float().train()


def gradients(model: Any, rows: list[TokenizedRow] = ROWS) -> list[torch.Tensor]:
    """The loss, then the gradient of each weight."""
    model.zero_grad()
    loss = target_loss(model, rows)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def saved_bytes(work: Callable[[], object]) -> int:
    """Of the tensors that the forward pass keeps for the backward pass."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(seen.values())


def test_the_shared_beginning_ends_before_the_token_that_predicts_the_first_target() -> None:
    assert shared_prefix_tokens(ROWS) == 12
    assert shared_prefix_tokens(ROWS[:1]) == 0
    assert shared_prefix_tokens([TokenizedRow((*BEGINNING, 1), 12), TokenizedRow((*BEGINNING, 2), 12)]) == 11
    assert shared_prefix_tokens([TokenizedRow((1, *BEGINNING, 9), 12), TokenizedRow((2, *BEGINNING, 9), 12)]) == 0
    assert shared_prefix_tokens([TokenizedRow((8, 1, 5), 2), TokenizedRow((8, 2, 5), 2)]) == 0
    assert shared_prefix_tokens([TokenizedRow(BEGINNING, 0), TokenizedRow(BEGINNING, 0)]) == 0  # plain text


def test_a_beginning_read_once_gives_the_loss_and_gradient_of_reading_it_with_every_row(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    model.model.layers[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2]))
    once = gradients(model)
    assert seen == [(1, 12 + 3 + 3 + 4)]
    monkeypatch.setattr(causal_lm, "MIN_SHARED_PREFIX_TOKENS", 1000)
    assert_same(gradients(model), once)


def test_states_before_each_target_are_those_of_transformers_own_pass_over_each_row(
    model: Any, tiny_folder: Path
) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, attn_implementation="eager"
    )
    found, tokens = forward(model, ROWS)
    assert tokens.tolist() == [300, 301, 300, 301, 302, 300]
    with torch.inference_mode():
        states = [
            theirs.model(input_ids=torch.tensor([row.ids[:-1]])).last_hidden_state[0, row.n_prompt - 1 :]
            for row in ROWS
        ]
    torch.testing.assert_close(found, torch.cat(states), atol=1e-5, rtol=1e-4)


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


def test_rows_of_4096_tokens_packed_give_the_gradient_of_each_alone(model: Any) -> None:
    torch.manual_seed(0)
    long, other = (tuple(torch.randint(5, 300, (n,)).tolist()) for n in (4096, 1500))
    rows = [TokenizedRow(long, 4080), TokenizedRow(other, 1490), ROWS[0]]
    alone = [gradients(model, [row]) for row in rows]
    assert_same(gradients(model, rows), [torch.stack(parts).sum(0) for parts in zip(*alone, strict=True)])


def test_the_loss_of_many_targets_is_computed_in_parts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, kept = gradients(model), saved_bytes(lambda: target_loss(model, ROWS))
    monkeypatch.setattr(causal_lm, "LOSS_TARGETS", 2)
    assert_same(gradients(model), whole)
    assert saved_bytes(lambda: target_loss(model, ROWS)) < kept


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointed_layers_give_the_same_loss_and_gradient_and_keep_less(method: str, tiny_folder: Path) -> None:
    found = []
    for setting in (False, True):
        config, backend = TrainConfig(method=method, gradient_checkpointing=setting), CausalBackend()
        torch.manual_seed(0)
        model, _ = backend.load(tiny_folder, config)
        backend.begin(model, ROWS, config)
        found.append([*gradients(model), torch.tensor(saved_bytes(lambda m=model: target_loss(m, ROWS)))])
    assert_same(found[1][:-1], found[0][:-1])
    assert found[1][-1] < found[0][-1] / 1.5


def test_what_learns_in_fp32_is_kept_in_bf16_and_then_exactly_what_it_was(model: Any) -> None:
    learn_in_fp32(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-6)  # less than bf16 tells apart
    exact = [parameter.detach().clone() for parameter in model.parameters()]
    places = [id(parameter) for parameter in model.parameters()]
    with as_kept(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert_same(list(model.parameters()), exact)
    assert [id(parameter) for parameter in model.parameters()] == places  # the optimizer's
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


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
    for name, weight in bits.items():
        part, before = whole.get_submodule(name.removesuffix(".base_layer")), weight.data
        numbers = dequantize_4bit(before, weight.quant_state)
        assert not torch.equal(part.weight, numbers)
        part.weight.data = numbers
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = []
    for model in (packed, adapted(tmp_path, method="lora")):
        loss = target_loss(model, CUT_ROWS[:2])
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
@pytest.mark.usefixtures("module_home")
def test_a_run_over_4_bits_learns_and_its_version_is_a_whole_model_in_16(bench: Bench, tmp_path: Path) -> None:
    run = bench.train(TrainConfig(method="qlora", duration="4ep", learning_rate=5e-3, batch_tokens=128), tmp_path)
    losses = [loss for _, loss in run.loss_curve]
    assert losses[-1] < 0.85 * losses[0]
    before, after = (dict(load_causal(folder)[0].named_parameters()) for folder in (bench.base, run.folder))
    assert before.keys() == after.keys()


PROCESS = """
    import sys, torch, torch.distributed as dist
    from pathlib import Path
    from smallfirst.models.local.weights import load_causal
    from smallfirst.training.config import TokenizedRow
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
    found = []
    for chosen in (rows, rows[:1]):
        loss = accumulate_gradient(model, chosen, config, optimizer)
        found.append([torch.tensor(loss), *(m.grad for m in optimizer.masters)])
        for master in optimizer.masters:
            master.grad = None
    torch.save(found, out)
"""


def test_frozen_layers_and_the_embeddings_stay_those_of_the_base(
    bench: Bench, tmp_path: Path, tiny_folder: Path
) -> None:
    bench.train(TrainConfig(frozen_layers=1, duration="1ep", learning_rate=5e-3, batch_tokens=128), tmp_path)
    base, tuned = (dict(load_causal(folder)[0].named_parameters()) for folder in (tiny_folder, tmp_path / "model"))
    changed = {name for name, weight in base.items() if not torch.equal(weight, tuned[name])}
    assert changed == {name for name in base if "layers.1." in name or name == "model.norm.weight"}


def step_gradients(model: Any, rows: list[TokenizedRow], micro_tokens: int | None = None) -> list[torch.Tensor]:
    config = TrainConfig.model_construct(**{**TrainConfig().model_dump(), "micro_tokens": micro_tokens})
    optimizer = MasterAdamW(list(model.parameters()), config)
    loss = accumulate_gradient(model, rows, config, optimizer)
    return [torch.tensor(loss), *(m.grad for m in optimizer.masters if m.grad is not None)]


def test_the_loss_is_the_mean_over_all_target_tokens_and_no_row_changes_anothers(model: Any) -> None:
    by_hand = []
    with torch.no_grad():
        for row in CUT_ROWS:
            logs = model(input_ids=torch.tensor([row.ids[:-1]])).logits[0].log_softmax(-1)
            by_hand += [-logs[at - 1, row.ids[at]].item() for at in range(row.n_prompt, len(row.ids))]
    assert len(by_hand) == 10
    assert step_gradients(model, CUT_ROWS)[0].item() == pytest.approx(sum(by_hand) / 10, abs=1e-5)
    assert mean_loss(model, CUT_ROWS) == pytest.approx(sum(by_hand) / 10, abs=1e-5)


def test_micro_batches_and_processes_give_the_gradient_of_the_whole(
    model: Any, tiny_folder: Path, tmp_path: Path, warm_parent: None
) -> None:
    """Of two processes one has a micro-batch more than the other, or all the rows that there are."""
    program = f"CUT_ROWS = {[(list(r.ids), r.n_prompt) for r in CUT_ROWS]}\n" + textwrap.dedent(PROCESS)
    meeting, outs = tmp_path / "meeting", [tmp_path / "0.pt", tmp_path / "1.pt"]
    children = [
        WarmProcess([sys.executable, "-c", program, str(tiny_folder), str(meeting), str(rank), str(out)])
        for rank, out in enumerate(outs)
    ]
    assert len(micro_batches(CUT_ROWS, 12)) == 3
    whole = step_gradients(model, CUT_ROWS)
    assert_same(step_gradients(model, CUT_ROWS, micro_tokens=12), whole)
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    for out in outs:
        found = torch.load(out, weights_only=True)
        assert_same(found[0], whole)
        assert_same(found[1], step_gradients(model, CUT_ROWS[:1]))


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 1}},
    "required": ["n"],
    "additionalProperties": False,
}


def test_written_answers_are_scored_by_the_task(tiny_fp32: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The only valid answer is {"n": 1}, so exactly the rows that ask for it are right."""
    manifest = Manifest(kind="generative", task=Extract(name="one", json_schema=SCHEMA), base="tiny")
    said = (("a refund", '{"n": 2}'), ("a pin", '{"n": 1}'), ("a card", '{"n": 1}'), ("late", '{"n": 1}'))
    found = validate_generation(*tiny_fp32, manifest, rows("s.jsonl", *said))
    assert found.value == pytest.approx(0.75)
    assert found.manifest.calibration.n_rows == 0  # four rows fit nothing
    assert validate_generation(*tiny_fp32, manifest, Dataset(name="selection", examples=())).value == 0.0
    monkeypatch.setattr(causal_lm, "MAX_GENERATED_ROWS", 1)
    assert validate_generation(*tiny_fp32, manifest, rows("s.jsonl", *said)).value == 0.0


def test_codes_are_read_at_one_position(tiny_fp32: tuple[Any, Any], toy_task: Classify, toy_selection: Dataset) -> None:
    codes = choose_label_tokens(toy_task.closed, tiny_fp32[1])
    found = validate_labels(
        *tiny_fp32, Manifest(kind="label_tokens", task=toy_task, label_tokens=codes, base="tiny"), toy_selection
    )
    assert 0 <= found.value <= 1
    assert found.manifest.temperature != 1.0
    unknown = rows("s.jsonl", ("a", toy_task.labels[0]), ("b", "nothing"))
    with pytest.raises(DataError, match=r's\.jsonl:2.*unknown label "nothing"'):
        validate_labels(*tiny_fp32, found.manifest, unknown)
