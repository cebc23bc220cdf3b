"""Names of hub data sets, and reading one from a cache made by hand, in a process of its own and without network."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from smallfirst.data.sources.hub import is_hub_name
from smallfirst.data.sources.load import load_rows
from smallfirst.errors import DataError

HAS_DATASETS = importlib.util.find_spec("datasets") is not None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("banking77/train", True),
        ("PolyAI/banking77/train", True),
        ("train", False),
        ("a/b/c/train", False),
        ("../train", False),
        ("/a/train", False),
        ("a/../train", False),
        ("a/train[:10%]", False),
        ("a/train.txt", False),
        ("a//train", False),
    ],
)
def test_a_hub_name_has_two_or_three_plain_parts(address: str, expected: bool) -> None:
    assert is_hub_name(address) is expected


@pytest.mark.skipif(HAS_DATASETS, reason="the package is installed")
def test_without_the_package_its_name_is_told() -> None:
    with pytest.raises(DataError) as caught:
        load_rows("PolyAI/banking77/train")
    assert str(caught.value) == (
        "PolyAI/banking77/train: no such file; as a data set of the Hugging Face hub it needs the package datasets\n"
        '  next: pip install "datasets>=4"   or save its rows as JSON Lines or Parquet and name that file'
    )


CACHED = """
import os, pathlib, sys
import datasets, pyarrow as pa
from smallfirst.data.sources.load import load_valid
from smallfirst.errors import DataError

folder = pathlib.Path(os.environ["HF_HOME"], "datasets", "acme___tickets", "default", "0.0.0", "ab12" * 10)
folder.mkdir(parents=True)
kinds = datasets.ClassLabel(names=["card", "cash"])
features = datasets.Features({"text": datasets.Value("string"), "label": kinds, "n": datasets.Value("int64")})
rows = {"text": ["a", "b", "c"], "label": [1, 0, -1], "n": [1, 2, 3]}
data = datasets.Dataset.from_dict(rows, features=features)
data.info.builder_name = data.info.dataset_name = "tickets"
data.info.config_name, data.info.version = "default", datasets.Version("0.0.0")
split = datasets.SplitInfo("train", num_bytes=10, num_examples=3, dataset_name="tickets")
data.info.splits = datasets.SplitDict({"train": split})
with pa.OSFile(str(folder / "tickets-train.arrow"), "wb") as file:
    with pa.ipc.new_stream(file, data.data.table.schema) as writer:
        writer.write_table(data.data.table)
data.info.write_to_directory(str(folder))

found, problems = load_valid("acme/tickets/train")
print(found.name, [(e.text, e.answer, e.path, e.line) for e in found.examples])
print(*problems)
pathlib.Path("train.txt").write_text("of this folder")
pathlib.Path("here").mkdir()
for address in ("acme/tickets/tset", "acme/none/train", "text/train", "here/train"):
    try:
        print(load_valid(address))
    except DataError as error:
        print(str(error).splitlines()[0])
"""


@pytest.mark.skipif(not HAS_DATASETS, reason="needs the package datasets")
def test_a_cached_data_set_is_read_without_network(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CACHED)],
        capture_output=True,
        text=True,
        cwd=tmp_path / "here",
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    none = "no such file, and not available as a data set of the Hugging Face hub"
    assert done.stdout.splitlines() == [
        "acme/tickets/train@ab12ab12ab12 [('a', 'cash', 'acme/tickets/train', 1), "
        "('b', 'card', 'acme/tickets/train', 2)]",
        'acme/tickets/train:3  "label" must be text, not null',
        f"acme/tickets/tset: {none}: Unknown split \"tset\". Should be one of ['train'].",
        f"acme/none/train: {none}: Couldn't reach 'acme/none' on the Hub (OfflineModeIsEnabled)",
        "text/train: no such file, and text is a format, not a data set of the Hugging Face hub",
        "here/train: no such file in the folder here",
    ]
