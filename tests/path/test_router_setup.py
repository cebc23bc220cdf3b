"""Acceptance and gain are learnt on rows that choose; calibration rows pass every filter, as served requests do."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.certificates import certificate as make_certificate
from fixtures.preflight import task_of
from fixtures.server import SayingModel

from smallfirst.base.errors import StageMissing
from smallfirst.data.dataset import Dataset
from smallfirst.measuring.out_of_fold import FoldAnswers, RawAnswer
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.linear.classifier import ENCODER_FOLDER, LinearClassifier
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Completion, Request
from smallfirst.models.recorded import record
from smallfirst.path import router_setup
from smallfirst.path.calibrate import served_rows
from smallfirst.path.project.project import Project, load_small
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import LargeConfig, RoutingConfig
from smallfirst.path.router_setup import (
    GAIN,
    PROFILE_FOLDER,
    HeldOut,
    RouterParts,
    accepted_confidences,
    check_filters,
    fit_acceptance,
    fit_gain,
    fit_profile,
    foreign_drafts,
    held_out_drafts,
    load_ood_detector,
    served_filters,
)
from smallfirst.routing.acceptance import AcceptanceScore
from smallfirst.routing.domain import OWN, fit_task_profile
from smallfirst.routing.gain import GainModel
from smallfirst.routing.router import Router, Stage

LABELS = ("billing", "delivery")


def number(text: str) -> int:
    return int(text.split()[1])


def words() -> SayingModel:
    """Right on even rows, on odd ones it says the other label; always sure."""
    return SayingModel("words", lambda request: LABELS[number(request.text) % 2], confidence=0.8)


def small() -> SayingModel:
    """Always says billing with the same confidence: only the words' view tells when it is wrong."""
    return SayingModel("small", LABELS[0], confidence=0.7)


async def ask(model: SayingModel, example: Any) -> Completion:
    return await model.complete(Request(messages=example.messages))


def even_rows(folder: Path) -> Project:
    """Every row is answered as the words say."""
    parts = {"train": 40, "validation": 400, "test": 10}
    rows = {p: [{"text": f"{p} {i}", "label": LABELS[i % 2]} for i in range(n)] for p, n in parts.items()}
    return task_of(folder, rows, labels=list(LABELS), routing={"selection_share": 0.6})


def folds_of_small(of: Project) -> FoldAnswers:
    """Return out-of-fold answers of a model that is right and sure about even numbers alone."""
    rows = of.rows.development
    right = [number(example.text) % 2 == 0 for example in rows.examples]
    first = [(LABELS.index(e.answer) == 0) is ok for e, ok in zip(rows.examples, right, strict=True)]
    answers = [RawAnswer(nats=(-0.01, -4.6) if one else (-4.6, -0.01)) for one in first]
    return FoldAnswers.fit(answers, rows, Manifest(kind="words", task=of.task, base=""), 5)


def test_scores_are_fitted_on_out_of_fold_answers_where_every_stage_has_them(tmp_path: Path) -> None:
    apart, drafting, first = even_rows(tmp_path), Stage("small", small()), Stage("words", words())
    folds = {"small": folds_of_small(apart)}
    data = apart.file.data.model_copy(update={"exchangeable": True})
    of = apart._replace(file=apart.file.model_copy(update={"data": data}))
    held = asyncio.run(held_out_drafts(of, (drafting,), folds))
    assert held.rows == of.rows.development
    assert [one.text for one in held.drafts["small"]] == [one.text for one in folds["small"].completions("small")]
    # The words have seen the training rows: only selection rows are left for both.
    both = asyncio.run(held_out_drafts(of, (first, drafting), folds))
    assert both.rows == of.rows.selection
    assert both.drafts["small"] == held.drafts["small"][-len(both.rows) :]
    # Of files of their own, training rows may be unlike those that certify.
    own = asyncio.run(held_out_drafts(apart, (drafting,), folds))
    assert (own.rows, own.drafts["small"]) == (both.rows, both.drafts["small"])


def chatty() -> SayingModel:
    """Answers any request, always sure; own rows are right."""

    def said(request: Request) -> str:
        own = request.text.split()[0] in ("train", "validation", "test")
        return LABELS[number(request.text) % 2 if own else 0]

    return SayingModel("words", said, confidence=0.8)


def test_foreign_requests_lower_the_confidence_with_which_a_draft_is_served(tmp_path: Path) -> None:
    of, stages = even_rows(tmp_path), (Stage("small", chatty()),)
    profile = fit_task_profile(of.rows.train, of.rows.selection)
    held = asyncio.run(held_out_drafts(of, stages))
    assert held.rows == of.rows.selection
    assert asyncio.run(fit_acceptance(of, stages, held, None)) == RouterParts()
    parts = asyncio.run(fit_acceptance(of, stages, held, profile))
    assert RouterParts.model_validate_json(parts.model_dump_json()) == parts
    (served,) = parts.on(stages)
    assert served.acceptance == parts.acceptance["small"]
    own = asyncio.run(accepted_confidences(parts, stages, of.rows.calibration, profile=profile))["small"]
    foreign = asyncio.run(foreign_drafts(of, parts, stages, profile))
    assert len(foreign[0]) > 40
    lower = [value < min(own.values()) - 0.1 for value in foreign[0]]  # though the model is as sure of both
    assert sum(lower) > 0.8 * len(lower)
    assert asyncio.run(foreign_drafts(of, RouterParts(), stages, profile)) == []


def test_the_gain_is_fitted_on_selection_rows_and_recorded_answers_of_the_large_model(tmp_path: Path) -> None:
    of = even_rows(tmp_path)
    rows = of.rows.selection.examples
    held = HeldOut(of.rows.selection, {"small": [asyncio.run(ask(small(), e)) for e in rows]})
    assert GainModel.load(tmp_path / GAIN) is None
    found, again = asyncio.run(fit_gain(of, held, "small", tmp_path)), GainModel.load(tmp_path / GAIN)
    assert again.fitted == found.fitted
    assert set(found.fitted.models) == {"small"}  # no large model: taken to be always right
    asked = rows[: len(rows) // 2]  # it says billing to everything
    header = {"model": "large", "made_at": "2026-01-01", "smallfirst": "0", "n": len(asked)}
    asyncio.run(record(small(), [Request(messages=e.messages) for e in asked], tmp_path / "l.jsonl", header=header))
    large = LargeConfig(recorded=tmp_path / "l.jsonl")
    with_large = of._replace(file=of.file.model_copy(update={"large": large}))
    known = asyncio.run(fit_gain(with_large, held, "small", tmp_path)).fitted.models["large"]
    right = [number(example.text) % 2 == 0 for example in asked]
    assert (known.n_rows, known.rate) == (len(asked), sum(right) / len(right))


THINGS = ("card", "refund", "pin", "transfer", "voucher", "fee")
WISHES = ("where is my {}", "the {} does not work", "i lost the {} yesterday", "why was a {} declined")
ENDS = ("", " please", " today", " now")
FOREIGN = "explain to a child how photosynthesis works in the leaves of an oak"


def project(folder: Path, validation: list[str], **routing: Any) -> Project:
    train = [f"{wish.format(thing)}{end}" for wish in WISHES for thing in THINGS for end in ENDS]
    texts = {"train": train, "validation": validation, "test": ["a test", "another"]}
    rows = {part: [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(of)] for part, of in texts.items()}
    return task_of(folder, rows, labels=["a", "b"], routing={"domain": "off", **routing})


def test_rows_that_a_policy_places_elsewhere_do_not_certify_the_rest(tmp_path: Path) -> None:
    easy = [f"easy {i}" for i in range(200)]
    hard = [f"a hard question of many words, number {i}" for i in range(200)]
    policies = [
        {"kind": "rule", "to": "cascade", "contains": ["easy 1"]},  # these skip the rules after it
        {"kind": "rule", "to": "large", "shorter_than_chars": 20},
        {"kind": "split", "to": "large", "share": 0.5, "by": "user"},
        {"kind": "rule", "to": "large", "tags": {"tier": "gold"}},
    ]
    of = project(tmp_path, easy + hard, policies=policies)
    rows, filters, limits = served_rows(of, RunFolder(tmp_path), RouterParts(), of.rows.calibration)
    expected = [e for e in of.rows.calibration.examples if "hard" in e.text or "easy 1" in e.text]
    assert list(rows.examples) == expected
    assert 0 < len(expected) < len(of.rows.calibration)
    held, *unknown = limits
    assert len(filters["policies"]) == 3
    assert held.startswith(f"it holds for requests that pass the policies, as {len(expected)} of")
    assert [sentence.partition(":")[0] for sentence in unknown] == [
        "a split leads to large",
        "a rule on tags leads to large",
    ]


def gated(folder: Path) -> tuple[Project, RunFolder]:
    """A task with a profile of its own rows, no large model, and rows of which some are foreign."""
    pairs = ((" please", " today"), (" now", " please"), (" today", " now"))
    own = [f"{wish.format(thing)}{a}{b}" for wish in WISHES for thing in THINGS for a, b in pairs]
    of = project(folder, [*own, *(f"{FOREIGN} number {i}" for i in range(40))], domain="scored")
    run_folder = RunFolder(folder / "run")
    profile = fit_task_profile(of.rows.train, Dataset(name="own", examples=of.rows.selection.examples[:0]))
    profile.save(run_folder.path / PROFILE_FOLDER)
    return of, run_folder


SCORED = RouterParts(acceptance={"small": AcceptanceScore(weights=(1.0, 0.5), intercept=0.0, n_own=40, n_foreign=40)})


def test_where_the_confidence_counts_the_distance_every_row_certifies(tmp_path: Path) -> None:
    of, run_folder = gated(tmp_path)
    rows, filters, limits = served_rows(of, run_folder, SCORED, of.rows.calibration)
    assert list(rows.examples) == list(of.rows.calibration.examples)
    assert (filters, limits) == ({"domain check": True, "policies": []}, [])
    off = project(tmp_path, ["a"], domain="off").file
    assert load_ood_detector(off, run_folder, SCORED, small()) is None
    default = off.model_copy(update={"routing": RoutingConfig()})
    assert load_ood_detector(default, run_folder, RouterParts(), small()) is None  # its calibration had no check


def test_a_certificate_is_served_behind_its_own_filters_only(tmp_path: Path) -> None:
    of, run_folder = gated(tmp_path)
    detector = load_ood_detector(of.file, run_folder, SCORED, small())
    certificate = make_certificate(filters=served_filters(of.file, checked=detector is not None))
    check_filters(certificate, of.file, detector)
    with pytest.raises(StageMissing, match="desk: its certificate holds behind the domain check of its calibration"):
        check_filters(certificate, of.file, None)
    check_filters(certificate.model_copy(update={"issued": False}), of.file, None)
    policies = [{"kind": "rule", "to": "small", "longer_than_chars": 9}]
    other = project(tmp_path, ["a"], domain="scored", policies=policies).file
    with pytest.raises(StageMissing, match="behind the policies of its calibration"):
        check_filters(certificate, other, detector)


def fitted_models(folder: Path, encoder: Path) -> tuple[Project, RunFolder]:
    """A task, and a run with words, a frozen encoder and one whose encoder has learnt."""
    pairs = [(f"{wish.format(thing)}{more}", thing) for wish in WISHES for thing in THINGS for more in ("", " please")]
    rows = [{"text": text, "label": label} for text, label in pairs] * 2
    parts = {"train": rows, "validation": [{**r, "text": f"hello, {r['text']}"} for r in rows], "test": rows[:2]}
    settings = {"routing": {"domain": "scored"}, "small": {"encoder": str(encoder)}}
    of = task_of(folder, parts, ladder=["words", "encoder", "tuned"], **settings)
    run_folder, read = RunFolder(folder / "run"), SentenceEncoder.for_inference(encoder)
    for name, kind in (("words", "words"), ("encoder", "encoder"), ("tuned", "encoder")):
        at = run_folder.model_folder(name)
        at.mkdir(parents=True)
        manifest = Manifest(kind=kind, task=of.task, base=str(encoder) if kind == "encoder" else "")  # type: ignore[arg-type]
        LinearClassifier.fit(kind, of.rows.train, of.task, encoder=read).save(at, manifest)  # type: ignore[arg-type]
    shutil.copytree(encoder, run_folder.model_folder("tuned") / ENCODER_FOLDER)
    return of, run_folder


def test_the_domain_check_compares_what_the_model_that_answers_reads(
    tmp_path: Path, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, run_folder = fitted_models(tmp_path, tiny_encoder_folder)

    def compared(candidate: str) -> str:
        found = fit_profile(of, run_folder, candidate)
        return found.parameters.encoder

    assert [compared(name) for name in ("words", "encoder", "tuned")] == ["", str(tiny_encoder_folder), OWN]
    monkeypatch.setattr(RunFolder, "folds", lambda self, name: object())
    assert compared("tuned") == ""  # fitted on all rows, it tells nothing of new ones
    monkeypatch.setattr(router_setup, "MIN_CAUGHT", 1.1)
    assert compared("words") == compared("tuned") == str(tiny_encoder_folder)  # where words do not tell enough


@pytest.mark.parametrize("candidate", ["encoder", "tuned"])
async def test_a_request_is_read_once_by_the_check_and_the_model(
    candidate: str, tmp_path: Path, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, run_folder = fitted_models(tmp_path, tiny_encoder_folder)
    fit_profile(of, run_folder, candidate)
    read: list[str] = []
    own = SentenceEncoder.tokens
    monkeypatch.setattr(SentenceEncoder, "tokens", lambda self, text: [read.append(text), own(self, text)][1])
    model = load_small(of.file, run_folder.model_folder(candidate), name="small")
    detector = load_ood_detector(of.file, run_folder, SCORED, model)
    stage = Stage("small", model, AcceptanceScore(weights=(1.0, 0.5, 0.5), intercept=0.0, n_own=40, n_foreign=40))
    router = Router((stage,), None, make_certificate(), ood_detector=detector)
    await asyncio.gather(*(router.complete(Request.ask(f"where is card {i}")) for i in range(20)))
    await router.aclose()
    assert sorted(read) == sorted(f"where is card {i}" for i in range(20))
