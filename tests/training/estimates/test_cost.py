"""Time of a fine-tune: work counted by hand, rates that turn it into a range, and words that claim no more."""

from __future__ import annotations

import pytest
from fixtures.training import TOY_SIZE as SIZE

from smallfirst.training.batches import TokenizedRow
from smallfirst.training.config import TrainConfig
from smallfirst.training.estimates.cost import (
    EpochWork,
    TrainingEstimate,
    TrainingSpeed,
    ValidationWork,
    count_epochs,
    epoch_work,
    estimate_seconds,
    estimate_training,
    speed_from_earlier_run,
    speed_from_matmul,
    train_flops,
)
from smallfirst.training.estimates.hardware import MatmulRate
from smallfirst.training.estimates.memory import Range

WORK = EpochWork(tokens=90, padded=100, targets=10, pairs=1000, steps=5, reads=5)
NO_EXAM = ValidationWork(0, 0)
EVEN = TrainingSpeed(1e3, 1e3, "as said", measured=False)
BODY, HEAD, ATTENTION = 800, 25 * 8, 4 * 8 * 1000


def rows(*lengths: int) -> list[TokenizedRow]:
    """Rows of so many tokens, the last of which is the target."""
    return [TokenizedRow(tuple(range(n)), n - 1) for n in lengths]


def test_the_work_of_an_epoch_is_what_its_batches_hold() -> None:
    work = epoch_work(rows(11, 11, 11, 11), TrainConfig(batch_tokens=32))  # three rows of 10 a batch
    assert work == EpochWork(tokens=40, padded=40, targets=4, pairs=400, steps=2, reads=2)


def test_padding_is_counted_and_a_batch_may_be_several_reads() -> None:
    work = epoch_work(rows(33, 31), TrainConfig(batch_tokens=64))  # 32 and 30 tokens side by side
    assert (work.tokens, work.padded, work.pairs) == (62, 64, 2 * 32**2)
    work = epoch_work(rows(33, 31), TrainConfig(batch_tokens=64, micro_tokens=32))
    assert (work.padded, work.steps, work.reads) == (62, 1, 2)


@pytest.mark.parametrize(("duration", "epochs"), [("3ep", 3.0), ("10ba", 2.0), ("45tok", 0.5)])
def test_a_duration_is_so_many_epochs(duration: str, epochs: float) -> None:
    assert count_epochs(WORK, TrainConfig(duration=duration)) == epochs


def test_a_trained_weight_costs_six_operations_a_token() -> None:
    expected = 6 * BODY * 100 + 12 * ATTENTION + 6 * HEAD * 10
    assert train_flops(SIZE, TrainConfig(), WORK, 1) == expected
    assert train_flops(SIZE, TrainConfig(), WORK, 3) == 3 * expected


def test_under_adapters_the_base_costs_four_and_the_adapters_six() -> None:
    adapters = 2 * 50
    expected = (4 * BODY + 6 * adapters) * 100 + 12 * ATTENTION + 4 * HEAD * 10
    assert train_flops(SIZE, TrainConfig(method="lora", lora_rank=2), WORK, 1) == expected


def test_time_is_work_over_rate() -> None:
    config = TrainConfig(duration="2ep")
    work = train_flops(SIZE, config, WORK, 2)
    span = estimate_seconds(SIZE, config, WORK, NO_EXAM, EVEN)
    assert (span.low, span.high) == (work / 1e3, work / 1e3)
    span = estimate_seconds(SIZE, config, WORK, NO_EXAM, EVEN._replace(fast=4e3))
    assert (span.low, span.high) == (work / 4e3, work / 1e3)


def test_an_exam_comes_after_each_epoch_and_writing_costs_eight_times() -> None:
    config = TrainConfig(duration="2ep")
    more = (2 * BODY * (30 + 8 * 7) + 2 * HEAD * 7) * 2 / 1e3
    without = estimate_seconds(SIZE, config, WORK, NO_EXAM, EVEN).high
    assert estimate_seconds(SIZE, config, WORK, ValidationWork(30, 7), EVEN).high == pytest.approx(without + more)


def test_a_run_that_may_stop_early_has_a_lower_low_end() -> None:
    whole = estimate_seconds(SIZE, TrainConfig(duration="10ep"), WORK, NO_EXAM, EVEN)
    early = estimate_seconds(SIZE, TrainConfig(duration="10ep", patience=1), WORK, NO_EXAM, EVEN)
    assert (early.low, early.high) == (pytest.approx(whole.low / 5), whole.high)


def test_small_batches_feel_the_optimizer_and_a_gpu_its_waiting() -> None:
    config = TrainConfig(duration="1ep")
    plain = estimate_seconds(SIZE, config, WORK, NO_EXAM, EVEN)
    cpu = estimate_seconds(SIZE, config, WORK, NO_EXAM, EVEN._replace(measured=True))
    assert cpu.low == plain.low
    assert cpu.high == pytest.approx(plain.high + 5 * 40 * 1000 / 20e9, rel=1e-12)
    gpu = estimate_seconds(SIZE, config, WORK, NO_EXAM, EVEN._replace(measured=True, gpu=True))
    assert gpu.low == pytest.approx(plain.low + 5 * 4 * 0.3e-3)
    assert gpu.high == pytest.approx(plain.high + 5 * 4 * 1.5e-3)


def test_an_earlier_run_gives_its_own_time_back() -> None:
    config = TrainConfig(duration="1ep")
    pace = speed_from_earlier_run(9.0, SIZE, config, WORK)  # 90 tokens at 9 a second
    span = estimate_seconds(SIZE, config, WORK, NO_EXAM, pace)
    assert (span.low, span.high) == (pytest.approx(10 / 1.3), pytest.approx(10 * 1.3))
    assert pace.words == "an earlier run read 9 tokens/s"


def test_half_of_a_matrix_product_is_promised_and_a_busy_machine_said_to_be_one() -> None:
    quiet = speed_from_matmul(MatmulRate(100e9, 110e9))
    assert (quiet.slow, quiet.fast) == (pytest.approx(50e9 / 1.5), pytest.approx(55e9 * 1.5))
    assert quiet.words == "half of the 100 GFLOP/s measured now"
    assert (
        speed_from_matmul(MatmulRate(100e9, 300e9)).words
        == "half of the 100 GFLOP/s measured now, 300 if nothing else runs"
    )


def test_all_needs_stand_together() -> None:
    needs = estimate_training(
        "tiny", SIZE, TrainConfig(duration="2ep", batch_tokens=32), rows(11, 11, 11, 11), NO_EXAM, EVEN
    )
    assert (needs.epochs, needs.steps, needs.tokens) == (2, 4, 80)
    assert (needs.parameters, needs.trained) == (1000, 1000)
    assert needs.free_bytes is needs.cost_usd is None
    assert needs.memory_bytes.low > needs.least_bytes


NEEDS = TrainingEstimate(
    base="tiny",
    parameters=134_515_008,
    trained=134_515_008,
    method="full",
    epochs=4,
    steps=616,
    tokens=570_672,
    flops=1e15,
    seconds=Range(low=1500, high=2600),
    pace="as said",
    memory_bytes=Range(low=3.16e9, high=4.51e9),
    least_bytes=3e9,
    free_bytes=15_800_000_000,
    cost_usd=Range(low=0.0417, high=0.0722),
)


def test_the_words_claim_no_more_than_is_known() -> None:
    assert NEEDS.in_words == [
        "fine-tune of tiny: full, 135 M weights",
        "  work    570,672 tokens in 616 steps, 4 epochs",
        "  time    about 25 to 45 min (as said)",
        "  memory  about 3.2 to 4.5 GB; 15.8 GB is free",
        "  cost    about $0.042 to $0.072",
    ]
    less = NEEDS.model_copy(update={"trained": 4_884_480, "free_bytes": None, "cost_usd": None})
    assert less.in_words[0] == "fine-tune of tiny: full, 135 M weights, 4.9 M of them trained"
    assert less.in_words[-1] == "  memory  about 3.2 to 4.5 GB"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (2880, 54_000, "50 min to 15 h"),
        (20, 70, "20 to 70 s"),
        (0.2, 0.9, "1 s"),
        (5400, 9000, "1.5 to 2.5 h"),
        (3e5, 9e5, "85 to 250 h"),
    ],
)
def test_times_are_rounded(low: float, high: float, words: str) -> None:
    needs = NEEDS.model_copy(update={"seconds": Range(low=low, high=high)})
    assert needs.in_words[2] == f"  time    about {words} (as said)"
