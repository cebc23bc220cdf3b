"""The model registry: versions in MLflow under `catalog.schema.model`, aliases, and the verdict each version passed.

Files are copied first, with a list of their digests, then the version is created, and an alias moves last, so a kill
leaves the old state or the new. Files are verified before they are used.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse
from urllib.request import url2pathname

from smallfirst.base.errors import ConfigError, GateFailed, RegistryError, did_you_mean
from smallfirst.base.files import locked, sha256, write_atomically
from smallfirst.base.paths import home, tracking_uri
from smallfirst.base.records import Record
from smallfirst.measuring.verdict import Verdict
from smallfirst.registry.runs import TAG_CHARS, TrackedRun, client, open_run, store_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

CHAMPION = "champion"
PREVIOUS = "previous"
SHADOW = "shadow"
"""Alias of the newest version of which nothing may be answered: it drafts beside the large model."""
MANIFEST_FILENAME = "smallfirst-manifest.json"
ALLOWED_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".md", ".jinja", ".model", ".gguf", ".yaml")
"""Formats that hold data only: loading them cannot run code, as loading a pickle can."""
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){2}")


class ModelVersion(Record):
    """One registered version of a model."""

    name: str
    """Three-level name, `catalog.schema.model`."""
    version: int
    """Counted from 1 by the registry."""
    aliases: tuple[str, ...]
    """Such as `champion`, `previous`, `challenger`."""
    folder: Path
    """Local folder of the model files, verified if the version comes from `resolve`."""
    run_id: str
    """The MLflow run that holds the files."""
    tags: dict[str, str]
    """`candidate`, `verdict` (JSON) if one was given, `signed_by` and `because` if overridden, fingerprints."""
    created_at: datetime
    """When it was registered, UTC."""


def register(
    folder: Path,
    verdict: Verdict | None,
    *,
    name: str,
    run_id: str | None,
    tags: Mapping[str, str],
    only_drafts: bool = False,
) -> ModelVersion:
    """Copy the files in `folder` into run `run_id`, or a new one, and register them as a version of `name`.

    It is not live until `promote`. `verdict` is None where nobody declared a gate. Raises GateFailed if it did not
    pass, unless the version `only_drafts` in shadow; RegistryError for an invalid name or a folder that cannot be
    stored.
    """
    check_name(name)
    manifest = build_manifest(folder)
    evidence = {"model_fingerprint": manifest.fingerprint()}
    if verdict is not None:
        if not (verdict.passed or only_drafts):
            raise _refusal(verdict)
        evidence |= {"candidate": verdict.candidate, "verdict": verdict.model_dump_json()}
        evidence["evaluation_fingerprint"] = verdict.evaluation_fingerprint
        evidence |= {"signed_by": verdict.signed_by, "because": verdict.because or ""} if verdict.signed_by else {}
    with ExitStack() as opened:
        if run_id is None:
            run_id = opened.enter_context(open_run("registry", f"register {name}", tags={"model": name})).run_id
        stored = upload(run_id, folder, manifest)
        return _create(name, stored, {**tags, **evidence, "entry": stored.entry})


def promote(name: str, version: int) -> ModelVersion:
    """Verify the version's files and make it champion; the former champion becomes `previous`.

    Raise RegistryError if the champion is being changed by somebody else, as `rollback` does.
    """
    with _only_mover(name):
        aliases = _aliases(name)
        chosen, former = resolve(f"{name}/{version}"), aliases.get(CHAMPION)
        if former != version:
            _move_aliases(name, aliases, {PREVIOUS: former, CHAMPION: version})
    return chosen.model_copy(update={"aliases": _aliases_of(version, _aliases(name))})


def name_shadow(name: str, version: int) -> None:
    """Give a version the alias `shadow`; whoever is live stays so."""
    with store_errors():
        client().set_registered_model_alias(name, SHADOW, str(version))


def tag(name: str, version: int, tags: Mapping[str, str]) -> None:
    """Set tags of a version, cut to what every store takes."""
    with store_errors():
        for key, value in tags.items():
            client().set_model_version_tag(name, str(version), key, value[:TAG_CHARS])


def rollback(name: str) -> ModelVersion:
    """Make the former champion champion again. Raise RegistryError without one, or if its files are damaged."""
    with _only_mover(name):
        aliases = _aliases(name)
        back, live = aliases.get(PREVIOUS), aliases.get(CHAMPION)
        if back is None or back == live:
            raise RegistryError(
                f"{name} has no earlier champion to roll back to", hint=f"promote one of its versions: {_choices(name)}"
            )
        chosen = resolve(f"{name}/{back}")
        _move_aliases(name, aliases, {CHAMPION: back, PREVIOUS: live})
    return chosen.model_copy(update={"aliases": _aliases_of(back, _aliases(name))})


def resolve(reference: str) -> ModelVersion:
    """Return the version that `reference` names, with its files local and verified.

    A reference is `main.claims.tickets@champion`, `main.claims.tickets/3`, or the bare name for the champion, with or
    without MLflow's `models:/`. Raises RegistryError if there is none, or if its files are not the registered ones.
    """
    name, version = _parse(reference)
    row = _row(name, version)
    verify(_stored(row).fetch(), f"{name}/{version}", fingerprint=row.tags.get("model_fingerprint"))
    return _version(row, _aliases(name))


def list_versions(name: str) -> list[ModelVersion]:
    """Return all versions of `name`, oldest first; their files are not verified and may not be local."""
    check_name(name)
    aliases = _aliases(name)
    return [_version(row, aliases) for row in _rows(name)]


def delete(name: str, numbers: Iterable[int]) -> None:
    """Delete versions with their aliases; of all that there are, the model with them. Files stay in their runs."""
    with _only_mover(name), store_errors():
        store, gone = client(), set(numbers)
        for row in _rows(name):
            if int(row.version) in gone:
                store.delete_model_version(name, row.version)
        if not _rows(name):
            store.delete_registered_model(name)


def attach(name: str, version: int, filename: str, content: bytes) -> None:
    """Store `content` beside the version as `filename`, replacing an earlier one; it is not a verified model file."""
    stored = _stored(_row(name, version))
    if (local := stored.local_folder()) is not None:
        write_atomically(local.parent / "attachments" / filename, content)
        return
    with store_errors(), tempfile.TemporaryDirectory() as temporary:
        path = write_atomically(Path(temporary) / filename, content)
        client().log_artifact(stored.run_id, str(path), f"{stored.entry}/attachments")


def read_attachment(name: str, version: int, filename: str) -> bytes | None:
    """Return what `attach` stored under `filename`, or None."""
    stored = _stored(_row(name, version))
    if (local := stored.local_folder()) is not None:
        path = local.parent / "attachments" / filename
        return path.read_bytes() if path.is_file() else None
    folder, store = f"{stored.entry}/attachments", client()
    with store_errors(), tempfile.TemporaryDirectory() as temporary:
        if f"{folder}/{filename}" not in [item.path for item in store.list_artifacts(stored.run_id, folder)]:
            return None
        return Path(store.download_artifacts(stored.run_id, f"{folder}/{filename}", temporary)).read_bytes()


def attach_folder(name: str, version: int, folder_name: str, paths: Iterable[Path]) -> None:
    """Store files and folders beside the version, for other machines; nothing where artifacts are on this one."""
    stored = _stored(_row(name, version))
    for path in paths if stored.local_folder() is None else ():
        TrackedRun(client(), stored.run_id).log_artifact(path, f"{stored.entry}/{folder_name}")


def fetch_folder(name: str, version: int, folder_name: str, to: Path) -> None:
    """Download what `attach_folder` stored to `to`, which does not exist yet; nothing if there is none."""
    stored, store = _stored(_row(name, version)), client()
    with store_errors():
        wanted = f"{stored.entry}/{folder_name}"
        if stored.local_folder() is not None or not store.list_artifacts(stored.run_id, wanted):
            return
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".") as temporary:
            downloaded = Path(store.download_artifacts(stored.run_id, wanted, temporary))
            with suppress(OSError):  # another process was faster
                downloaded.rename(to)


def check_name(name: str) -> str:
    """Return `name` if it is a three-level name. Raise RegistryError."""
    if not _NAME.fullmatch(name):
        rule = "it needs three parts, catalog.schema.model, each of letters, digits, _ and -"
        raise RegistryError(f'"{name}" is not a model name: {rule}', hint="for example main.default.tickets")
    return name


def _create(name: str, stored: StoredModel, tags: Mapping[str, str]) -> ModelVersion:
    """Create the version of files that are already complete."""
    store = client()
    from mlflow.exceptions import MlflowException

    with store_errors():
        try:
            store.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        row = store.create_model_version(name, stored.source, stored.run_id, tags=tags)
    return _version(row, _aliases(name))


def _refusal(verdict: Verdict) -> GateFailed:
    lines = [f"{verdict.candidate} did not pass its gate and is not registered"]
    for check in verdict.failed_checks:
        lines.append(f"  FAIL  {check.requirement}: {check.measured}")
        lines += [f"        {check.advice}"] if check.advice else []
    hint = "follow the advice, or have a person override the verdict (smallfirst override)"
    return GateFailed("\n".join(lines), hint=hint)


def _parse(reference: str) -> tuple[str, int]:
    text = reference.strip().removeprefix("models:/")
    name, mark, rest = [*re.split("([@/])", text, maxsplit=1), "", ""][:3]
    check_name(name)
    if mark == "/":
        if not rest.isdecimal():
            raise RegistryError(f'"{rest}" is not a version number of {name}', hint=f"use one of: {_choices(name)}")
        return name, int(rest)
    alias, aliases = rest if mark else CHAMPION, _aliases(name)
    if alias not in aliases:
        raise RegistryError(
            f'{name} has no version called "{alias}"{did_you_mean(alias, aliases)}',
            hint=f"promote a version, or use one of: {_choices(name)}",
        )
    return name, aliases[alias]


def _only_mover(name: str) -> AbstractContextManager[None]:
    """Hold the model's aliases against other processes that share the state folder."""
    busy = RegistryError(
        f"{name} is being promoted or rolled back by another process; nothing was changed here",
        hint="see which version is champion now, then decide again",
    )
    return locked(home() / f"promote-{check_name(name)}.lock", otherwise=busy)


def _move_aliases(name: str, seen: Mapping[str, int], targets: Mapping[str, int | None]) -> None:
    """Move aliases in the order given, so that a kill in between leaves a valid champion.

    Raise RegistryError if the champion is no longer the one `seen`: the registry may be shared with other machines.
    """
    store, now, before = client(), _aliases(name).get(CHAMPION), seen.get(CHAMPION)
    if now != before:
        raise RegistryError(
            f"the champion is version {now} now, it was version {before}: somebody else changed it meanwhile",
            hint="see which version is champion now, then decide again",
        )
    with store_errors():
        for alias, version in targets.items():
            if version is not None:
                store.set_registered_model_alias(name, alias, str(version))


def _aliases(name: str) -> dict[str, int]:
    if not (tracking_uri(create=False) or os.environ.get("MLFLOW_REGISTRY_URI")):
        raise _unknown(name, [])  # a reader creates no store
    store = client()
    from mlflow.exceptions import MlflowException

    with store_errors():
        try:
            found = store.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise _unknown(name, sorted(model.name for model in store.search_registered_models())) from None
    return {alias: int(version) for alias, version in found.aliases.items()}


def _unknown(name: str, known: list[str]) -> RegistryError:
    hint = f"known models: {', '.join(known)}" if known else "smallfirst run   promotes a model that passes its gate"
    return RegistryError(f"no model is registered as {name}{did_you_mean(name, known)}", hint=hint)


def _rows(name: str) -> list[MlflowVersion]:
    with store_errors():
        rows = client().search_model_versions(f"name='{name}'")  # the name rule allows no quote
    return sorted(rows, key=lambda row: int(row.version))


def _row(name: str, version: int) -> MlflowVersion:
    _aliases(check_name(name))  # an unknown name has its own error
    for row in _rows(name):
        if int(row.version) == version:
            return row
    raise RegistryError(f"{name} has no version {version}", hint=f"use one of: {_choices(name)}")


def _choices(name: str) -> str:
    return ", ".join(f"{name}/{row.version}" for row in _rows(name)) or "no version yet"


def _stored(row: MlflowVersion) -> StoredModel:
    return StoredModel(run_id=row.run_id or "", entry=row.tags.get("entry", ""), source=row.source or "")


def _aliases_of(version: int, aliases: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(sorted(alias for alias, target in aliases.items() if target == version))


def _version(row: MlflowVersion, aliases: Mapping[str, int]) -> ModelVersion:
    return ModelVersion(
        name=row.name,
        version=int(row.version),
        aliases=_aliases_of(int(row.version), aliases),
        folder=_stored(row).folder(),
        run_id=row.run_id or "",
        tags=dict(row.tags),
        created_at=datetime.fromtimestamp(row.creation_timestamp / 1000, UTC),
    )


class FileDigests(Record):
    """The files of a model folder."""

    files: dict[str, str]
    """SHA-256 in hex by path inside the folder, with `/` on every platform."""


class StoredModel(Record):
    """Location of the files of one registration."""

    run_id: str
    """MLflow run that holds them."""
    entry: str
    """Folder inside the run, new for each registration, with `model/` and `attachments/`."""
    source: str
    """URI of the model folder, as MLflow shows it."""

    def local_folder(self) -> Path | None:
        """Return the model folder, also if the project was moved, if artifacts are on this machine, else None."""
        address = urlparse(self.source)
        if address.scheme not in ("", "file"):
            return None
        recorded = Path(url2pathname(address.path) if address.scheme else self.source)
        moved = home() / "artifacts" / self.run_id / "artifacts" / self.entry / "model"
        return moved if moved.is_dir() and not recorded.is_dir() else recorded

    def folder(self) -> Path:
        return self.local_folder() or home() / "downloads" / self.run_id / self.entry / "model"

    def fetch(self) -> Path:
        folder = self.folder()
        if folder.is_dir() or self.local_folder() is not None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Downloaded to a temporary folder and moved, so that a killed download is not taken for the model.
        with store_errors(), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            downloaded = client().download_artifacts(self.run_id, f"{self.entry}/model", temporary)
            if not folder.is_dir():
                shutil.move(downloaded, folder)
        return folder


def upload(run_id: str, folder: Path, manifest: FileDigests) -> StoredModel:
    """Copy `folder` and its manifest into the run and return their location; no version refers to it yet."""
    entry, store = f"registered/{uuid.uuid4().hex[:12]}", client()
    with store_errors(), tempfile.TemporaryDirectory() as temporary:
        artifact_uri = store.get_run(run_id).info.artifact_uri
        for name in manifest.files:
            inside = f"{entry}/model/{name}".rpartition("/")[0]
            store.log_artifact(run_id, str(folder / name), inside)
        path = manifest.save(Path(temporary) / MANIFEST_FILENAME)  # last: it makes the copy complete
        store.log_artifact(run_id, str(path), f"{entry}/model")
    return StoredModel(run_id=run_id, entry=entry, source=f"{artifact_uri}/{entry}/model")


def build_manifest(folder: Path) -> FileDigests:
    """Return the manifest of `folder`. Raise RegistryError if it is empty or has a link or a file of another format."""
    if not folder.is_dir():
        raise RegistryError(f"{folder} is not a folder with a model", hint="train a model first")
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise RegistryError(f"{path} is a link: a registered model must contain its own files")
        if path.is_dir() or name == MANIFEST_FILENAME:
            continue
        if path.suffix.lower() not in ALLOWED_SUFFIXES:
            raise RegistryError(
                f"{path} has a format that is not stored; allowed: {' '.join(ALLOWED_SUFFIXES)}",
                hint="save weights as safetensors, settings as JSON: loading a pickle runs code",
            )
        files[name] = sha256(path)
    if not files:
        raise RegistryError(f"{folder} is empty: there is no model to register")
    return FileDigests(files=files)


def verify(folder: Path, what: str, *, fingerprint: str | None) -> None:
    """Raise RegistryError naming `what` unless `folder` has exactly the files of the manifest with this fingerprint."""
    hint = f"restore {folder}, or register the model again"
    try:
        manifest = FileDigests.load(folder / MANIFEST_FILENAME)
    except (OSError, ValueError, ConfigError):
        raise RegistryError(f"{what} is incomplete: it has no {MANIFEST_FILENAME}", hint=hint) from None
    if manifest.fingerprint() != fingerprint:
        raise RegistryError(f"{what} was changed: its manifest is not the registered one", hint=hint)
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise RegistryError(f"{what} is incomplete: {name} is missing", hint=hint)
        if sha256(folder / name) != digest:
            raise RegistryError(f"{what} was changed: {name} is not the registered file", hint=hint)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(present - manifest.files.keys() - {MANIFEST_FILENAME}):
        raise RegistryError(f"{what} was changed: {name} was added", hint=hint)
