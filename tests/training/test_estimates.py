"""Memory of a fine-tune by hand and by PyTorch's own count, and who is refused; its time, the pace and the words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.training import TOY_SIZE as SIZE

from smallfirst.base.errors import TrainingError
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.models.local import packed_rows
from smallfirst.training import estimates
from smallfirst.training.causal_lm import add_adapters
from smallfirst.training.config import TokenizedRow, TrainConfig
from smallfirst.training.estimates import (
    SMALLER,
    FreeMemory,
    MicroBatchShape,
    Pace,
    ValidationWork,
    activation_bytes,
    base_bytes,
    count_epochs,
    estimate_training,
    expected_memory,
    fits_in_fp32,
    least_bytes,
    needs_checkpointing,
    peak_memory,
    require_memory,
    system_memory,
    trainable_parameters,
)
from smallfirst.training.run import training_pace

FULL, LORA = TrainConfig(), TrainConfig(method="lora", lora_rank=2)
FREE = FreeMemory(15_800_000_000, 0, gpu=False)


def free_is(monkeypatch: pytest.MonkeyPatch, n_bytes: float, swap: float = 0) -> None:
    monkeypatch.setattr(estimates, "free_memory", lambda: FreeMemory(int(n_bytes), int(swap), gpu=False))


def test_the_peak_is_the_larger_of_two_moments() -> None:
    nothing, encoder = MicroBatchShape(0, 0, 0), SIZE.model_copy(update={"causal": False})
    assert (trainable_parameters(SIZE, FULL), trainable_parameters(SIZE, LORA)) == (1000, 100)
    # 2 bf16 + 4 master + 8 moments, and a gradient: fp32 while the optimizer works.
    assert peak_memory(SIZE, FULL, nothing).at_least == 18_000
    read = MicroBatchShape(10, 10, 0)
    kept = activation_bytes(SIZE, FULL, read, gpu=True)
    assert peak_memory(SIZE, FULL, read, gpu=True) == (16_000, kept)
    assert peak_memory(SIZE, FULL, read, gpu=True, several=True) == (20_000, kept)
    # An encoder: 4 weights + 4 master + 8 moments + 4 gradient.
    assert peak_memory(encoder, FULL, read).at_least == 20_000
    # Adapters: the base in bf16, 12 bytes for each of theirs, and the blocks a second time once they are merged.
    assert peak_memory(SIZE, LORA, nothing).at_least == 2_000 + 1_200 + 1_600
    for kept in (LORA.model_copy(update={"adapters": "kept"}), LORA):
        assert peak_memory(SIZE, kept, nothing, gpu=True).at_least == 2_000 + 1_200 + 400
    # The blocks in 4 bits, with an 8-bit scale for 64 weights and an fp32 one for 256 scales; the embedding in bf16.
    packed = peak_memory(SIZE, LORA.model_copy(update={"method": "qlora"}), nothing, gpu=True)
    assert packed.at_least == pytest.approx(400 + 800 * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 1_200 + 400)


def test_checkpointed_layers_keep_their_inputs_and_one_layer_whole() -> None:
    read, config = MicroBatchShape(3, 10, 2_000), TrainConfig(gradient_checkpointing=True)
    logits = 1_024 * 10 * 25  # of more targets than this the rest are computed again
    assert activation_bytes(SIZE, config, read, gpu=True) == 3 * 10 * (4 * 2 * 8 + 304) + logits
    assert activation_bytes(SIZE, FULL, read, gpu=True) == 3 * 10 * 4 * 304 + logits


def test_layers_are_checkpointed_by_themselves_only_where_they_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [TokenizedRow(tuple(range(101)), 100)] * 4
    peak = expected_memory(SIZE, FULL, rows, gpu=False)
    need = peak.weights - 2 * SIZE.parameters + 1.3 * peak.read  # the base is loaded when it is asked
    free_is(monkeypatch, need + 1)
    assert not needs_checkpointing(SIZE, FULL, rows)
    free_is(monkeypatch, need - 1)
    assert needs_checkpointing(SIZE, FULL, rows)
    assert not needs_checkpointing(SIZE, TrainConfig(gradient_checkpointing=False), rows)
    assert not needs_checkpointing(None, FULL, rows)
    assert needs_checkpointing(None, TrainConfig(gradient_checkpointing=True), rows)


def test_a_run_in_fp32_needs_room_for_twice_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [TokenizedRow(tuple(range(30)), 20)]
    peak = expected_memory(SIZE, FULL, rows, gpu=False)
    in_bf16 = peak.weights - base_bytes(SIZE, FULL)
    free_is(monkeypatch, in_bf16 + peak.read)
    assert not fits_in_fp32(SIZE, FULL, rows)
    free_is(monkeypatch, in_bf16 + 1.3 * 2 * peak.read + 1)
    assert fits_in_fp32(SIZE, FULL, rows)
    assert not fits_in_fp32(SIZE, LORA, rows)


@pytest.mark.parametrize(("width", "method", "within"), [(32, "full", 0.03), (300, "full", 0.03), (32, "lora", 0.1)])
def test_the_formula_is_what_pytorch_keeps(tmp_path: Path, width: int, method: Any, within: float) -> None:
    model, size = seeded_llama(tmp_path)
    config = TrainConfig(method=method)
    model = add_adapters(model, config) if method != "full" else model
    formula = activation_bytes(size, config, MicroBatchShape(4, width, 0), gpu=False)
    assert kept_by(model, 4, width) == pytest.approx(formula, rel=within)


def seeded_llama(folder: Path) -> tuple[Any, BaseSize]:
    """A Llama wide enough that what the formula leaves out, a few bytes a token, is small."""
    shape = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attn_implementation=packed_rows.register(),
    )
    model = transformers.LlamaForCausalLM(shape).to(torch.bfloat16)
    model.save_pretrained(folder)
    size = read_base_size(folder)
    assert size is not None
    return model, size


def kept_by(model: Any, rows: int, width: int) -> int:
    """Bytes of distinct storages that are no weights and kept for the backward pass of one forward pass."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=torch.ones(rows, width, dtype=torch.long), use_cache=False)
    assert hidden.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_a_run_that_cannot_fit_is_refused(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = read_base_size(tiny_folder)
    assert size is not None
    need = least_bytes(size, FULL)
    free_is(monkeypatch, need - 1)
    with pytest.raises(TrainingError) as caught:
        require_memory(("tiny", tiny_folder), FULL)
    assert str(caught.value).startswith("full fine-tune of tiny (0 M weights) needs at least 0.0 GB of memory, 0.0 GB")
    assert caught.value.hint == SMALLER
    require_memory(("unknown", tmp_path), FULL)  # nobody is refused on what is not known
    free_is(monkeypatch, need + 1)
    require_memory(("tiny", tiny_folder), FULL)
    free_is(monkeypatch, 1, swap=1e12)  # it may be used before a run is refused
    require_memory(("tiny", tiny_folder), FULL)


def rows_of(*lengths: int) -> list[TokenizedRow]:
    """Rows of so many tokens, the last of which is the target."""
    return [TokenizedRow(tuple(range(n)), n - 1) for n in lengths]


@pytest.mark.parametrize(("duration", "epochs"), [("3ep", 3.0), ("10ba", 2.0), ("45tok", 0.5)])
def test_a_duration_is_so_many_epochs(duration: str, epochs: float) -> None:
    assert count_epochs(TrainConfig(duration=duration), 5, 90) == epochs


def test_time_is_tokens_over_the_pace_with_validation_after_each_epoch() -> None:
    config, pace = TrainConfig(duration="2ep", batch_tokens=32), Pace(8.0, "as said")
    rows = rows_of(11, 11, 11, 11)  # three rows of 10 a batch
    found = estimate_training("tiny", SIZE, config, rows, ValidationWork(0, 0), pace, FREE)
    assert (found.epochs, found.steps, found.tokens) == (2, 4, 80)
    assert (found.seconds.low, found.seconds.high) == (pytest.approx(10 / 1.3), pytest.approx(10 * 1.3))
    assert (found.parameters, found.trained, found.pace) == (1000, 1000, "as said")
    assert found.memory_bytes.high == pytest.approx(1.3 * 18_000 + 600e6, rel=0.001)
    exam = estimate_training("tiny", SIZE, config, rows, ValidationWork(30, 6), pace, FREE)  # 2 × 26 tokens as trained
    assert exam.seconds.high == pytest.approx(1.3 * (80 + 2 * (30 + 8 * 6) / 3) / 8)
    config = TrainConfig(duration="2ep", batch_tokens=32, patience=1)
    early = estimate_training("t", SIZE, config.model_copy(update={"duration": "10ep"}), rows, exam_of(0), pace, FREE)
    assert early.seconds.low == pytest.approx(found.seconds.low)  # two epochs of ten
    assert early.seconds.high == pytest.approx(5 * found.seconds.high)


def exam_of(n_tokens: int) -> ValidationWork:
    return ValidationWork(n_tokens, 0)


def test_the_words_claim_no_more_than_is_known() -> None:
    size = SIZE.model_copy(update={"parameters": 134_515_008, "linear_ends": 305_280})
    config = TrainConfig(duration="4ep")
    args = "tiny", size, config, rows_of(*[1001] * 142), exam_of(0), Pace(284.0, "as said"), FREE
    needs = estimate_training(*args, usd_per_hour=0.1)
    assert needs.in_words == [
        "fine-tune of tiny: full, 135 M weights",
        "  work    568,000 tokens in 568 steps, 4 epochs",
        "  time    about 26 min to 43 min (as said)",
        "  memory  about 2.7 to 3.7 GB; 16 GB is free",
        "  cost    about $0.043 to $0.072",
    ]
    lora = config.model_copy(update={"method": "lora"})
    less = estimate_training("tiny", size, lora, *args[3:])
    assert less.in_words[0] == "fine-tune of tiny: lora, 135 M weights, 4.9 M of them trained"
    assert less.in_words[-1].startswith("  memory  about ")


KB = 1024


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        (None, 0, FreeMemory(600 * KB, 50 * KB, gpu=False)),
        ("max", 10, FreeMemory(600 * KB, 50 * KB, gpu=False)),
        ("99999999", 10, FreeMemory(600 * KB, 50 * KB, gpu=False)),
        ("300000", 200_000, FreeMemory(150_007, 0, gpu=False)),  # it gives back what files take
        ("1000", 99_000, FreeMemory(0, 0, gpu=False)),  # overdrawn
    ],
)
def test_memory_that_can_be_had_counts_and_a_container_may_allow_less(
    tmp_path: Path, limit: str | None, used: int, free: FreeMemory
) -> None:
    meminfo = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nSwapFree:         50 kB\n"
    (tmp_path / "meminfo").write_text(meminfo)
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 50000\nactive_file 7\n")
    assert system_memory(tmp_path / "meminfo", tmp_path) == free


def test_the_latest_run_that_is_alike_gives_the_pace(tmp_path: Path) -> None:
    for name, run in enumerate(
        [
            {"base": "tiny", "config": {"method": "full"}, "tokens_per_s": 100.0},
            {"base": "tiny", "config": {"method": "full"}, "tokens_per_s": 200.0},
            {"base": "another", "config": {"method": "full"}, "tokens_per_s": 300.0},
            {"base": "tiny", "config": {"method": "lora"}, "tokens_per_s": 400.0},
            {"base": "tiny", "config": None},
        ]
    ):
        (tmp_path / "desk" / str(name)).mkdir(parents=True)
        (tmp_path / "desk" / str(name) / "run.json").write_text(json.dumps(run))
    (tmp_path / "desk" / "4" / "run.json").write_text("{")
    found = training_pace(tmp_path, ("tiny", tmp_path), TrainConfig(), [])
    assert found == (200, "an earlier run read 200 tokens/s")


def test_else_its_first_steps_are_taken_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallfirst.training.run.MEASURED_S", 0.01)
    rows, config = [TokenizedRow((0, 5, 9, i, 300), 4) for i in range(10, 90)], TrainConfig(batch_tokens=32)
    found = training_pace(tmp_path, ("tiny", tiny_folder), config, rows)
    assert found.tokens_per_s > 0
    assert found.words == f"its first steps read {found.tokens_per_s:,.0f} tokens/s"
    assert training_pace(tmp_path, ("tiny", tiny_folder), config, rows) == found  # not measured again
    assert list(tmp_path.iterdir()) == []
