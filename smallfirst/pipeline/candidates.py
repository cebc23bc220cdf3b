"""Who may answer: the rungs of the ladder, and the domain gate in front of them."""

from __future__ import annotations

from smallfirst.data.dataset import Dataset
from smallfirst.data.split import sample_share
from smallfirst.errors import DataError
from smallfirst.models.catalog import find_weights
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Model, Request
from smallfirst.pipeline import large_model as large_path
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import TaskFile
from smallfirst.registry import runs
from smallfirst.routing.ood.detector import fit_task_profile
from smallfirst.routing.ood.gate import ForeignTextClassifier, OodGate
from smallfirst.routing.types import OodDetector, OodScore

SIGNATURE_FOLDER = "signature"
"""Where in a run's folder the task's signature is."""


def fit_linear(project: Project, run_folder: RunFolder) -> None:
    """Nothing back; the linear rungs are fitted and kept in the run's folder."""
    from smallfirst.models.linear.classifier import LinearClassifier
    from smallfirst.training.validation import accuracy_and_temperature

    for kind in ("words", "encoder"):
        if kind not in project.ladder:
            continue
        encoder = None
        if kind == "encoder":
            from smallfirst.models.linear.sentence_encoder import SentenceEncoder

            encoder = SentenceEncoder(find_weights(project.file.small.encoder, log=project.progress.log))
        scorer = LinearClassifier.fit(kind, project.rows.train, project.task, encoder=encoder)
        scored = scorer.score([e.text for e in project.rows.selection.examples])
        accuracy, temperature = accuracy_and_temperature(scored, project.rows.selection, project.task)
        base = project.file.small.encoder if kind == "encoder" else ""
        manifest = Manifest(kind=kind, task=project.task, base=base, temperature=temperature)
        scorer.save(run_folder.model_folder(kind), manifest)
        project.progress.log(f"fitted {kind} + linear: {accuracy:.3f} on selection rows")


def tune_encoder(project: Project, run_folder: RunFolder) -> None:
    """Nothing back; the sentence encoder is fine-tuned into the run's folder, watched in an MLflow run of its own."""
    if "tuned" not in project.ladder:
        return
    from smallfirst.training.recipes.contrastive import EncoderRecipe
    from smallfirst.training.run import train

    small, folder = project.file.small, run_folder.folder / "tuned"
    recipe = EncoderRecipe(project.task, project.rows.train, project.rows.selection)
    base = (small.encoder, find_weights(small.encoder, log=project.progress.log))
    params = {"base": small.encoder, "n_train": len(project.rows.train), "task": project.file.name}
    params |= {f"train.{k}": v for k, v in small.encoder_training.model_dump().items()}
    with (
        runs.open_run(project.file.name, f"{run_folder.folder.name}-tuned", params=params) as tracked,
        project.progress.bar("tuning encoder", 100, unit="%") as update,
    ):
        run = train(
            recipe,
            small.encoder_training,
            base=base,
            tracked=tracked,
            folder=folder,
            on_step=lambda step: update(round(100 * step.progress), 100, f"loss {step.loss:.3f}"),
        )
    best = dict(run.validation_curve)[run.best_epoch]
    project.progress.log(f"tuned the encoder in {run.seconds / 60:.1f} min: {best:.3f} on selection rows")


def load_candidate(project: Project, run_folder: RunFolder, candidate: str) -> Model:
    """A rung of the ladder, ready to answer: kept in the run's folder, or the untouched base model."""
    name, price = f"{project.file.name}-{candidate}", project.file.prices.machine
    if candidate != "base":
        return load_model(run_folder.model_folder(candidate), name=name, price=price)
    return large_path.prompted_base(project.file, project.task, project.rows.train)


def fit_ood_detectors(project: Project, run_folder: RunFolder) -> None:
    """Nothing back; the task's signature is fitted, and a domain gate if there are open-ended requests to fit it on."""
    encoder = None
    if "encoder" in project.ladder:
        from smallfirst.models.linear.sentence_encoder import SentenceEncoder

        encoder = (project.file.small.encoder, SentenceEncoder(find_weights(project.file.small.encoder)))
    try:
        profile = fit_task_profile(project.rows.train, project.rows.selection, encoder=encoder)
        profile.save(run_folder.folder / SIGNATURE_FOLDER)
    except DataError as error:
        project.progress.log(f"auto will not know this task: {error.args[0]}")
    if project.rows.open_ended is None or project.file.routing.domain != "open_ended":
        return
    fitting, _ = sample_share(project.rows.open_ended, 0.5, "domain")
    classifier = ForeignTextClassifier.fit(project.rows.train, fitting, project.rows.selection, encoder=encoder)
    classifier.save(run_folder.folder / "domain")


def load_ood_detector(file: TaskFile, run_folder: RunFolder) -> OodDetector | None:
    """What tells the task's own requests from others; None if nothing does."""
    if file.routing.domain == "off":
        return None
    folder = SIGNATURE_FOLDER if file.routing.domain == "own_rows" else "domain"
    return OodGate.load(run_folder.folder / folder, price=file.prices.machine)


async def in_domain_rows(project: Project, run_folder: RunFolder) -> tuple[Dataset, tuple[OodScore, ...]]:
    """The calibration rows that reach the small model at all (the certificate speaks of these), and their doubts."""
    rows = project.rows.calibration
    domain = load_ood_detector(project.file, run_folder)
    if domain is None:
        return rows, ()
    found = [(e, await domain.score(Request(messages=e.messages))) for e in rows.examples]
    await domain.aclose()
    own = [(example, doubt) for example, doubt in found if doubt.value <= domain.threshold]
    return rows.subset("calibration", tuple(e for e, _ in own)), tuple(doubt for _, doubt in own)
