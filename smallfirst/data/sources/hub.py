"""Rows from a data set of the Hugging Face hub, `[owner/]name/split`; no code of a data set is ever run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.parquet import batch_rows, import_pyarrow, parquet_errors, select_columns
from smallfirst.data.sources.reader import RawRow, ReadBudget, first_line
from smallfirst.errors import DataError, SmallfirstError

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)/(?P<split>[A-Za-z_]\w*)")
_ORIGIN = re.compile(r"[0-9a-f]{16,64}")
_SAVE = "or save its rows as JSON Lines or Parquet and name that file"


def is_hub_name(address: str) -> bool:
    """Return True if the address has the form `name/split` or `owner/name/split`."""
    return _NAME.fullmatch(address) is not None


def open_hub(address: str) -> Any:
    """Open the split of the data set. Raise DataError saying why that is not possible, and what to do."""
    found = _NAME.fullmatch(address)
    if not found:
        raise DataError(f"{address}: expected name/split or owner/name/split")
    name, split = found["name"], found["split"]
    datasets = _datasets(address)
    if Path(name).exists():  # the package would read that folder as a data set
        raise DataError(f"{address}: no such file in the folder {name}", hint=f"ls {name}")
    if name in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:  # it would read what lies in this folder
        raise DataError(f"{address}: no such file, and {name} is a format, not a data set of the Hugging Face hub")
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # of many kinds, from the network to the format
        raise DataError(
            f"{address}: no such file, and not available as a data set of the Hugging Face hub: {first_line(error)}",
            hint=f"check name and split; unset HF_HUB_OFFLINE to ask the hub; {_SAVE}",
        ) from None


def read_hub(
    data: Any, address: str, columns: Columns | None, budget: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """Yield the rows of an open split, numbered from 1. Columns that do not fit are one bad row."""
    classes = {name: names for name, feature in data.features.items() if (names := _class_names(feature))}
    schema = _by_name(data.features.arrow_schema, classes)
    rules, wanted = select_columns(schema, columns, answered=answered)
    yield from (RawRow(address, 1, rule) for rule in rules)
    if rules:
        return
    tables = data.select_columns(sorted(wanted)).with_format("arrow").iter(batch_size=1024)
    batches = (batch for table in tables for batch in table.to_batches())
    with parquet_errors(Path(address)):
        for n, values in batch_rows(batches, wanted, budget):
            yield RawRow(address, n, values if isinstance(values, str) else _named(values, classes))


def pinned_hub_name(data: Any, address: str) -> str:
    """Return the address, with the first digits of the data set's version where that is known."""
    for file in data.cache_files:
        if _ORIGIN.fullmatch(origin := Path(file["filename"]).parent.name):
            return f"{address}@{origin[:12]}"
    return address


def _datasets(address: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise _not_readable(address, "needs the package datasets") from None
    if int(datasets.__version__.split(".")[0]) < 4:  # older ones may run a data set's own code
        raise _not_readable(address, f"needs datasets 4 or newer, not {datasets.__version__}")
    return datasets


def _not_readable(address: str, why: str) -> SmallfirstError:
    return DataError(
        f"{address}: no such file; as a data set of the Hugging Face hub it {why}",
        hint=f'pip install "datasets>=4"   {_SAVE}',
    )


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of a class column, or of a column of lists of classes."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return list(names) if names else None


def _by_name(schema: Any, classes: dict[str, list[str]]) -> Any:
    """Return the schema with text where the class columns have numbers."""
    pa = import_pyarrow("reading a data set")
    for i, field in enumerate(schema):
        if field.name in classes:
            text = pa.string() if pa.types.is_integer(field.type) else pa.list_(pa.string())
            schema = schema.set(i, pa.field(field.name, text))
    return schema


def _named(values: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any] | str:
    """Return the values with names for class numbers, or the rule that a number breaks; -1 stands for no class."""
    named = dict(values)
    for key in values.keys() & classes.keys():
        names, numbers = classes[key], values[key]
        listed = numbers if isinstance(numbers, list) else [numbers]
        if wrong := [n for n in listed if n is not None and not -1 <= n < len(names)]:
            return f'"{key}" is {wrong[0]}, but there are {len(names)} classes'
        texts = [None if n is None or n < 0 else names[n] for n in listed]
        named[key] = texts if isinstance(numbers, list) else texts[0]
    return named
