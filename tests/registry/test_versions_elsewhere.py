"""Files of a version where the registry is not on this machine: through MLflow's client, and in PostgreSQL and S3."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.postgresql import new_database

from smallfirst.registry import versions
from smallfirst.registry.runs import ARTIFACT_ROOT
from smallfirst.registry.versions import StoredModel
from tests.registry.test_versions import NAME, PASSED


def go_round(folder: Path, other_machine: Path, monkeypatch: pytest.MonkeyPatch) -> versions.ModelVersion:
    """Register, promote and attach here; resolve and fetch with another, empty state folder."""
    model, run = folder / "model", folder / "run-1"
    for path in (model, run / "signature"):
        path.mkdir(parents=True)
        (path / "a.json").write_text("{}")
    (run / "candidates.json").write_text("[]")
    version = versions.register(model, PASSED, name=NAME, run_id=None, tags={"run": "run-1"}).version
    versions.promote(NAME, version)
    versions.attach(NAME, version, "certificate.json", b"proof")
    versions.attach_folder(NAME, version, "run", sorted(run.iterdir()))
    monkeypatch.setenv("SMALLFIRST_HOME", str(other_machine))
    found = versions.resolve(f"{NAME}@champion")
    assert found.folder.is_relative_to(other_machine)
    assert versions.read_attachment(NAME, version, "certificate.json") == b"proof"
    assert versions.read_attachment(NAME, version, "other.json") is None
    for _ in range(2):  # the second finds what the first left
        versions.fetch_folder(NAME, version, "run", other_machine / "tasks" / "run-1")
    versions.fetch_folder(NAME, version, "nothing", other_machine / "nothing")
    fetched = other_machine / "tasks" / "run-1"
    assert sorted(path.relative_to(fetched).as_posix() for path in fetched.rglob("*.json")) == [
        "candidates.json", "signature/a.json",
    ]  # fmt: skip
    assert not (other_machine / "nothing").exists()
    return found


def test_another_machine_fetches_what_a_server_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts that are not seen as files go through MLflow's client, as those of a server do."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "here"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    monkeypatch.setattr(StoredModel, "local_folder", lambda _: None)
    go_round(tmp_path, tmp_path / "there", monkeypatch)


def test_a_registry_on_this_machine_needs_no_copy(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.json").write_text("{}")
    version = versions.register(tmp_path / "model", PASSED, name=NAME, run_id=None, tags={}).version
    versions.attach_folder(NAME, version, "run", [tmp_path / "missing"])
    versions.fetch_folder(NAME, version, "run", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket in an object store that speaks S3; skips where moto is not installed."""
    server = pytest.importorskip("moto.server", reason="needs moto: pip install 'smallfirst[dev]'")
    boto3 = pytest.importorskip("boto3", reason="needs boto3: pip install 'smallfirst[s3]'")
    store = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    url = "http://{}:{}".format(*store.get_host_and_port())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", url)
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="models")
    yield "s3://models/smallfirst"
    store.stop()


def test_versions_in_postgresql_and_files_in_an_object_store(
    tmp_path: Path, bucket: str, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "here"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(postgresql).replace("postgresql:", "postgresql+psycopg:"))
    monkeypatch.setenv(ARTIFACT_ROOT, f"{bucket}/")
    found = go_round(tmp_path, tmp_path / "there", monkeypatch)
    assert found.aliases == ("champion",)
    assert not (tmp_path / "here" / "artifacts").exists()
