"""A version is served behind the filters that its certificate assumes, with a large model or without."""

import asyncio
import json
from pathlib import Path

import pytest
from fixtures.certificates import certificate as make_certificate
from fixtures.deployment import measured
from fixtures.vllm_server import ScriptedVllm, scored_by

from smallfirst.base.errors import StageMissing
from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.deployment.task_deployment import TargetVersions, TaskDeployment
from smallfirst.ledger.ledger import Ledger
from smallfirst.measuring.outcome import Outcome
from smallfirst.models.local.weights import load_causal
from smallfirst.models.protocol import Request
from smallfirst.path.candidates.linear import WORDS
from smallfirst.path.parity import served_parity
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.router_setup import PARTS, PROFILE_FOLDER, RouterParts
from smallfirst.registry import versions
from smallfirst.routing.acceptance import AcceptanceScore
from smallfirst.routing.domain import fit_task_profile


def set_routing(path: Path, **routing: object) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"routing": routing}), encoding="utf-8")


def test_a_certificate_made_inside_the_domain_is_not_served_without_the_gate(desk) -> None:
    set_routing(desk.path, domain="scored")
    version = desk.register(0)
    found = make_certificate(0.0, filters={"domain check": True, "policies": []})
    versions.attach("main.desk.toy", version, "certificate.json", found.model_dump_json().encode())
    versions.promote("main.desk.toy", version)
    ledger = Ledger(home() / "ledger.db")
    deployment = TaskDeployment(desk.file, ledger)
    assert deployment.general is None
    with pytest.raises(StageMissing, match="toy: its certificate holds behind the domain check"):
        deployment.load(TargetVersions(version))

    rows = Project.read(desk.file, Progress(quiet=True)).rows
    fit_task_profile(rows.train, rows.selection).save(RunFolder.latest("toy").path / PROFILE_FOLDER)
    near = AcceptanceScore(weights=(1.0, 1.0), intercept=0.0, n_own=40, n_foreign=40)
    WORDS.fit(Project.read(desk.file, Progress(quiet=True)), RunFolder.latest("toy"))
    parts = RouterParts(acceptance={"small": near})
    versions.attach("main.desk.toy", version, PARTS, parts.model_dump_json().encode())
    router = deployment.load(TargetVersions(version)).router
    detector = router.router.ood_detector
    foreign = "Explain, with 12 equations, why the ΔG of photosynthesis is +2,870 kJ"
    for inside, text in {True: rows.train.examples[0].text, False: foreign}.items():
        assert (asyncio.run(detector.score(Request.ask(text))).value <= detector.threshold) == inside
    assert router.auditing.task == deployment._task
    asyncio.run(router.aclose())
    ledger.close()


def test_version_is_served_by_vllm_once_it_was_compared_there(desk, vllm: ScriptedVllm) -> None:
    settings = json.loads(desk.path.read_text(encoding="utf-8"))
    project, run_folder = measured(desk)
    version = desk.register(0)
    versions.promote("main.desk.toy", version)
    desk.path.write_text(json.dumps(settings | {"small": {"vllm": {"url": vllm.url}}}), encoding="utf-8")
    model, _ = load_causal(desk.tiny)
    ledger, vllm.complete = Ledger(home() / "ledger.db"), scored_by(model)
    vllm.models.add("toy-small")
    vllm.models.add(f"toy-small-{version}")
    deployment = TaskDeployment(desk.file, ledger)
    with pytest.raises(StageMissing, match=f"was not compared with its measured answers on vLLM at {vllm.url}"):
        deployment.load(TargetVersions(version))
    project = Project.read(desk.file, Progress(quiet=True))
    found = served_parity(project, run_folder, versions.resolve(f"main.desk.toy/{version}"), "small")
    assert (found.passed, found.engine) == (True, f"vLLM at {vllm.url}")
    assert vllm.bodies[0]["prompt"] == [0]  # rows wait for its start, which takes minutes
    deployed = deployment.load(TargetVersions(version))
    answer = asyncio.run(deployed.models.models["toy-small"].complete(Request.ask("where is my card")))
    assert answer.answered_by == f"toy-small@{version}"
    assert vllm.bodies[-1]["model"] == f"toy-small-{version}"
    asyncio.run(deployed.aclose())
    ledger.close()


def test_what_went_live_by_its_gate_is_served_without_a_certificate_and_a_shadow_only_without_a_champion(desk) -> None:
    first, second = desk.register(0), desk.register(1)
    refused = make_certificate(1.1, issued=False, below="keep", why="too few labels")
    alone = Outcome(kind="small alone", title="words + linear", why="too few labels")
    for version, outcome in ((first, alone), (second, alone.model_copy(update={"kind": "cannot be told yet"}))):
        versions.attach("main.desk.toy", version, "certificate.json", refused.model_dump_json().encode())
        versions.attach("main.desk.toy", version, "outcome.json", outcome.model_dump_json().encode())
    ledger = Ledger(home() / "ledger.db")
    versions.name_shadow("main.desk.toy", second)
    deployment = TaskDeployment(desk.file, ledger)
    assert deployment.target_versions() == TargetVersions(second)
    with pytest.raises(StageMissing, match="there is no large model that could answer instead"):
        deployment.load(TargetVersions(second))
    versions.promote("main.desk.toy", first)
    assert deployment.target_versions() == TargetVersions(first)
    versions.tag("main.desk.toy", first, {"second_look": "shown"})  # so that servers load its new certificate
    assert deployment.target_versions() == TargetVersions(first, second_look="shown")
    assert deployment.target_versions().description == f"version {first} after its second look"
    router = deployment.load(TargetVersions(first)).router
    assert (router.monitor.state, router.standing.promise) == ("live", "")
    answer = asyncio.run(router.complete(Request.ask("where is my card")))
    assert (answer.route.stage, answer.route.certified) == ("small", False)
    assert (
        answer.route.why == "answered without a promise: the model passed its gate alone, and no certificate was issued"
    )
    asyncio.run(router.aclose())
    ledger.close()
