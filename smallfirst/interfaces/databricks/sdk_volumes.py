"""WorkspaceClient for code that puts its rows into a volume before it fine-tunes, where volumes are folders.

Existing code uploads to `/Volumes/catalog/schema/volume/…` with databricks-sdk, then names that path to `fm.create`,
which reads it below SMALLFIRST_VOLUMES if that is set. So the upload must go there too: `files` and `volumes` of the
client are then this machine's, and all else is asked of the SDK's own client, which needs a workspace.
"""

from __future__ import annotations

import importlib
import os
import shutil
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from smallfirst.data.sources.folders import safe_join
from smallfirst.data.sources.volumes import VOLUMES_VARIABLE, folder_from_variable, volume_path
from smallfirst.errors import DataError, SmallfirstError

SKIP_DEPLOY = "a model is not deployed from here: DSPy leaves it out with skip_deploy=True; smallfirst serves it itself"


def install() -> None:
    """Nothing back; from now on `databricks.sdk.WorkspaceClient` is ours, if SMALLFIRST_VOLUMES is set.

    Without the variable, or without databricks-sdk, nothing is touched. Importing the SDK takes about a second.
    """
    if not _volumes_are_here():
        return
    try:
        sdk: Any = importlib.import_module("databricks.sdk")
    except ImportError:
        return
    if sdk.WorkspaceClient is not LocalWorkspace:
        LocalWorkspace.theirs = sdk.WorkspaceClient
        sdk.WorkspaceClient = LocalWorkspace


class LocalWorkspace:
    """A WorkspaceClient whose volumes are folders below SMALLFIRST_VOLUMES."""

    theirs: Any = None
    """The SDK's own class."""

    def __new__(cls, *arguments: Any, **settings: Any) -> Any:
        """The SDK's own client if SMALLFIRST_VOLUMES is no longer set."""
        return super().__new__(cls) if _volumes_are_here() else cls.theirs(*arguments, **settings)

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """Takes what the SDK's client takes; it is used only for what is not on this machine."""
        self._given = (arguments, settings)
        self.files = VolumeFiles()
        self.volumes = Volumes()

    @cached_property
    def _theirs(self) -> Any:
        arguments, settings = self._given
        try:
            return self.theirs(*arguments, **settings)
        except ValueError as error:
            raise SmallfirstError(f"no workspace of Databricks is configured: {error}", hint=SKIP_DEPLOY) from None

    def __getattr__(self, name: str) -> Any:
        """What is not on this machine. Raises SmallfirstError if no workspace is configured."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._theirs, name)


class Volumes:
    """The volumes of Unity Catalog, as far as they are folders here."""

    def read(self, name: str, **_: Any) -> Any:
        """The volume `catalog.schema.volume`. Raises the SDK's NotFound if there is no such folder."""
        from databricks.sdk.errors import NotFound
        from databricks.sdk.service.catalog import VolumeInfo

        if name.count(".") != 2 or "/" in name:
            raise NotFound(f'"{name}" is no volume: its name is catalog.schema.volume')
        catalog, schema, volume = name.split(".")
        folder = _there(f"/Volumes/{catalog}/{schema}/{volume}")
        return VolumeInfo(
            catalog_name=catalog, schema_name=schema, name=volume, full_name=name, storage_location=str(folder)
        )


class VolumeFiles:
    """The Files API, as far as it puts files into a volume."""

    def get_directory_metadata(self, directory_path: str) -> None:
        """Nothing back. Raises the SDK's NotFound if there is no such folder."""
        from databricks.sdk.errors import NotFound

        if not _there(directory_path).is_dir():
            raise NotFound(f"{directory_path} is no folder")

    def create_directory(self, directory_path: str) -> None:
        """Nothing back; the folder is there, and those above it up to the volume, which must exist."""
        _place(directory_path).mkdir(parents=True, exist_ok=True)

    def upload(self, file_path: str, contents: BinaryIO, *, overwrite: bool | None = None, **_: Any) -> None:
        """Nothing back; the file appears when it is whole. Raises the SDK's AlreadyExists unless it may `overwrite`."""
        from databricks.sdk.errors import AlreadyExists

        place = _place(file_path)
        if overwrite is False and place.exists():
            raise AlreadyExists(f"{file_path} is there already")
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                shutil.copyfileobj(contents, file)
            draft.replace(place)
        finally:
            draft.unlink(missing_ok=True)


def _volumes_are_here() -> bool:
    return bool(os.environ.get(VOLUMES_VARIABLE, "").strip())


def _there(address: str) -> Path:
    """Where the address leads. Raises the SDK's NotFound if it leads nowhere."""
    from databricks.sdk.errors import NotFound

    try:
        return volume_path(address)
    except DataError as error:
        raise NotFound(f"{error}; a volume is a folder {_pattern()}") from None


def _place(address: str) -> Path:
    """Where the address would lead, below a volume that exists. Raises the SDK's NotFound without the volume."""
    parts = PurePosixPath(address.removeprefix("dbfs:")).parts
    return safe_join(_there("/".join(("", *parts[1:5]))), parts[5:])


def _pattern() -> str:
    return str(folder_from_variable(VOLUMES_VARIABLE, os.environ[VOLUMES_VARIABLE]) / "catalog" / "schema" / "volume")
