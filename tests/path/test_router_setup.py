"""Calibration rows pass every filter of the served path, and a certificate is served behind those filters only."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.certificates import certificate as make_certificate

from smallfirst.base.errors import StageMissing
from smallfirst.base.progress import Progress
from smallfirst.data.dataset import Dataset
from smallfirst.path.calibrate import served_rows
from smallfirst.path.confidence_heads import ConfidenceHeads
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import RoutingConfig, read_task_file
from smallfirst.path.router_setup import (
    PROFILE_FOLDER,
    check_filters,
    load_ood_detector,
    served_filters,
)
from smallfirst.routing.acceptance import AcceptanceScore
from smallfirst.routing.domain import fit_task_profile

THINGS = ("card", "refund", "pin", "transfer", "voucher", "fee")
WISHES = ("where is my {}", "the {} does not work", "i lost the {} yesterday", "why was a {} declined")
ENDS = ("", " please", " today", " now")
FOREIGN = "explain to a child how photosynthesis works in the leaves of an oak"


def project(folder: Path, validation: list[str], **routing: Any) -> Project:
    train = [f"{wish.format(thing)}{end}" for wish in WISHES for thing in THINGS for end in ENDS]
    for part, texts in (("train", train), ("validation", validation), ("test", ["a test", "another"])):
        lines = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = {part: f"{part}.jsonl" for part in ("train", "validation", "test")}
    settings = {"name": "desk", "labels": ["a", "b"], "data": data, "routing": {"domain": "off", **routing}}
    (folder / "task.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return Project.read(read_task_file(folder), Progress(quiet=True))


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
    rows, scores, told = asyncio.run(served_rows(of, RunFolder(tmp_path), ConfidenceHeads(), of.rows.calibration))
    expected = [e for e in of.rows.calibration.examples if "hard" in e.text or "easy 1" in e.text]
    assert list(rows.examples) == expected
    assert 0 < len(expected) < len(of.rows.calibration)
    held, *unknown = told["limits_of_validity"]
    assert (scores, len(told["filters"]["policies"])) == ([], 3)
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


SCORED = ConfidenceHeads(
    acceptance={"small": AcceptanceScore(weights=(1.0, 0.5), intercept=0.0, n_own=40, n_foreign=40)}
)


def test_where_the_confidence_counts_the_distance_every_row_certifies(tmp_path: Path) -> None:
    of, run_folder = gated(tmp_path)
    rows, scores, told = asyncio.run(served_rows(of, run_folder, SCORED, of.rows.calibration))
    assert list(rows.examples) == list(of.rows.calibration.examples)
    assert told == {"filters": {"domain check": True, "policies": []}, "limits_of_validity": ()}
    foreign = [s for s, e in zip(scores, rows.examples, strict=True) if FOREIGN in e.text]
    own = [s for s, e in zip(scores, rows.examples, strict=True) if FOREIGN not in e.text]
    assert np.median(foreign) > 0.97 > np.median(own)
    off = project(tmp_path, ["a"], domain="off").file
    assert load_ood_detector(off, run_folder, SCORED) is None
    default = off.model_copy(update={"routing": RoutingConfig()})
    assert load_ood_detector(default, run_folder, ConfidenceHeads()) is None  # its calibration had no check


def test_a_certificate_is_served_behind_its_own_filters_only(tmp_path: Path) -> None:
    of, run_folder = gated(tmp_path)
    detector = load_ood_detector(of.file, run_folder, SCORED)
    certificate = make_certificate(filters=served_filters(of.file, detector))
    check_filters(certificate, of.file, detector)
    with pytest.raises(StageMissing, match="desk: its certificate holds behind the domain check of its calibration"):
        check_filters(certificate, of.file, None)
    check_filters(certificate.model_copy(update={"issued": False}), of.file, None)
    policies = [{"kind": "rule", "to": "small", "longer_than_chars": 9}]
    other = project(tmp_path, ["a"], domain="scored", policies=policies).file
    with pytest.raises(StageMissing, match="behind the policies of its calibration"):
        check_filters(certificate, other, detector)
