"""How long candidates take: timed, guessed before anything is fetched, or as the last run took."""

from pathlib import Path

import pytest
from fixtures.preflight import task_of

from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, LARGER_ENCODER
from smallfirst.models.manifest import MANIFEST, Manifest, write_manifest
from smallfirst.path import durations as module
from smallfirst.path.durations import forecast_candidates, forecast_in_words, model_bytes, time_needed
from smallfirst.path.project.candidates import get_candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FITTED, FittedCandidates, RunFolder
from smallfirst.training.estimates import EncoderPace

pytestmark = pytest.mark.usefixtures("module_home")


@pytest.fixture
def project(tmp_path: Path, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """100 rows, 20 selection, 60 calibration and 40 test rows."""
    monkeypatch.setattr(module, "encoder_pace", lambda folder, texts: EncoderPace(0.1, 0.4, 32, 1_000_000))
    rows = [{"text": f"{i * 7919} {i} {i * 31}", "label": ["card", "fee"][i % 2]} for i in range(220)]
    small = {
        "base": "no-such-model",
        "encoder": str(tiny_encoder_folder),
        "encoder_training": {"duration": "4ep", "batch_tokens": 320},
    }
    parts = {"train": rows[:100], "validation": rows[100:180], "test": rows[180:]}
    return task_of(tmp_path, parts, small=small, routing={"selection_share": 0.25})


@pytest.fixture
def many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection rows choose, as with 1,000 rows and more."""
    monkeypatch.setattr(module, "fits_in_folds", lambda project: False)


@pytest.mark.usefixtures("many_rows")
def test_a_frozen_encoder_reads_every_row_and_a_fine_tune_takes_its_epochs(project: Project) -> None:
    encoder, tuned = time_needed(project, get_candidate("encoder")), time_needed(project, get_candidate("tuned"))
    assert encoder is not None
    n_selection, n_held_out = len(project.rows.selection), 80 - len(project.rows.left_out) + 40
    head_s = 100 * (0.1 + module.REGRESSION_S)
    assert encoder == (pytest.approx(head_s + 0.1 * n_selection), pytest.approx(0.1 * n_held_out))
    # 3,200 tokens in batches of 320 are passed over three times an epoch: thirty updates of 40 bytes for each of a
    # million weights at 20 GB/s.
    epoch_s = 300 * 0.4 + 30 * 40e6 / 20e9 + 0.1 * n_selection
    assert tuned.fit_s == pytest.approx(module.BEGIN_S + head_s + 4 * epoch_s)


def test_of_a_long_document_the_windows_that_a_tagger_reads_are_timed(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def pace(folder: Path, texts: tuple[str, ...]) -> EncoderPace:
        timed.extend(texts)
        return EncoderPace(0.1, 0.4, 32, 1_000_000)

    monkeypatch.setattr(module, "encoder_pace", pace)
    found = []
    for n_words in (40, 2_000):
        texts = [" ".join(f"{i * 7919 + j * 104729}" for j in range(n_words)) for i in range(100)]
        rows = [{"text": text, "target": {"number": text.split()[0]}} for text in texts]
        (folder := tmp_path / str(n_words)).mkdir()
        small = {"encoder": project.file.small.encoder}
        parts = {"train": rows[:60], "validation": rows[60:80], "test": rows[80:]}
        long = task_of(folder, parts, kind="extract", small=small)
        found.append(time_needed(long, get_candidate("tagger")))
    assert max(len(text.split()) for text in timed) <= module.WINDOW_WORDS
    assert sum(len(text.split()) for text in timed) < 3 * module.SAMPLE_WORDS
    assert found[1].after_s == pytest.approx(2 * found[0].after_s)


def test_before_anything_is_fetched_time_downloads_and_memory_are_guessed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("smallfirst.models.catalog.pull_weights", no_network)
    monkeypatch.setattr("smallfirst.training.estimates._multiplied_per_s", lambda: 100e9)
    small = project.file.small.model_copy(update={"encoder": DEFAULT_ENCODER, "larger_encoder": LARGER_ENCODER})
    file = project.file.model_copy(
        update={"small": small, "ladder": ("words", "encoder", "tuned", "larger_encoder", "larger_tuned")}
    )
    project = project._replace(file=file)
    found = {one.name: one for one in forecast_candidates(project)}
    words, encoder, tuned, larger, larger_tuned = found.values()
    assert [one.fetch_mb for one in found.values()] == [0, 84, 0, 405, 0]  # an encoder is fetched once
    assert words.memory_bytes < encoder.memory_bytes < tuned.memory_bytes < larger_tuned.memory_bytes
    seconds = [one.seconds or 0 for one in (words, encoder, larger, tuned, larger_tuned)]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    first, second = forecast_in_words([*found.values()])
    assert "fetches 489 MB" in first
    assert "larger_tuned" in second


def test_what_the_last_run_on_these_rows_took_is_what_is_foretold(project: Project) -> None:
    run_folder = RunFolder.new(project.file.name)
    rows = project.rows.train.content_fingerprint
    values = {"ladder": ("words",), "fitted": ("words",), "minutes": {"words": 7.0}, "mlflow_run_id": "1"}
    FittedCandidates.model_validate({**values, "dataset_fingerprint": rows}).save(run_folder.path / FITTED)
    assert forecast_candidates(project)[0].seconds == 420


def test_the_size_of_a_model_includes_a_frozen_encoder_that_is_kept_elsewhere(
    project: Project, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    folder, encoder = tmp_path / "model", sum(f.stat().st_size for f in tiny_encoder_folder.glob("*.safetensors"))
    assert model_bytes(folder) == 0
    folder.mkdir()
    write_manifest(folder, Manifest(kind="encoder", task=project.task, base=str(tiny_encoder_folder)))
    assert model_bytes(folder) - encoder == (folder / MANIFEST).stat().st_size
    (folder / "encoder").mkdir()  # fine-tuned: it is here
    assert model_bytes(folder) == (folder / MANIFEST).stat().st_size
