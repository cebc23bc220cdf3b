import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.errors import DataError
from smallfirst.data.dataset import Example, Message
from smallfirst.data.row_formats import Columns, to_row
from smallfirst.data.sources.load import load_noted, load_rows
from smallfirst.data.sources.text_files import MAX_ROW_BYTES, detect_delimiter, list_rows, table_rows, to_utf8


def written(folder: Path, content: str | bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def rules(path: Path, **options: object) -> list[tuple[int, str]]:
    """Line and rule of every problem that stops the file."""
    with pytest.raises(DataError) as caught:
        load_rows(path, **options)  # type: ignore[arg-type]
    return [(problem.line, problem.rule) for problem in caught.value.problems]


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def test_every_bad_row_is_named_at_once_in_one_error(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"text": "fine", "label": "card"}\n'
        '{"text": "broken" "label": "card"}\n'
        "\n"
        '{"text": "", "label": 3}\n'
        '{"text": "who", "label": "crad"}\n'
        '{"text": "who", "lable": "card"}\n'
        "[1]\n"
        "[2]\n",
    )
    with pytest.raises(DataError) as caught:
        load_rows(path, labels=["card", "cash"])
    assert str(caught.value) == (
        f"{path}: 6 bad and 1 good rows\n"
        f"  {path}:2  broken JSON at column 19: Expecting ',' delimiter\n"
        f'  {path}:4  "text" is empty\n'
        f'  {path}:5  label "crad" is not one of the 2 labels — did you mean "card"?\n'
        f'  {path}:6  no column "label"; the row has "text", "lable" — did you mean "lable"?\n'
        f"  2 rows, first {path}:7  not a JSON object: each line must be {{…}}\n"
        "  next: fix these lines; map columns of other names by columns: {text: …, label: …}"
    )


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, '{"text": "a", "text": "b", "label": "x"}')
    assert rules(path) == [(1, 'broken JSON: key "text" twice')]


def test_a_row_over_the_limit_is_refused(tmp_path: Path) -> None:
    row = jsonl({"text": "", "label": "x"})
    fits = row.replace('""', '"' + "a" * (MAX_ROW_BYTES + 1 - len(row)) + '"')
    path = written(tmp_path, fits + fits.replace("aa", "aaa", 1))
    assert rules(path) == [(2, "row of 1,000,001 bytes; at most 1,000,000 are read")]


def test_only_the_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0bd"
    content = json.dumps({"text": text, "label": "x"}, ensure_ascii=False)
    data = load_rows(written(tmp_path, content + "\r\n" + jsonl({"text": "b", "label": "x"})))
    # A vertical tab is a control character, which JSON writes as an escape.
    assert [(e.text, e.line) for e in data.examples] == [(text, 1), ("b", 2)]


@pytest.mark.parametrize(
    ("name", "content", "offset"),
    [
        ("rows.jsonl", b'{"text": "\xc3\xa9", "label": "x"}\n{"text": "\xe9", "label": "x"}\n', 39),
        ("rows.csv", b"text,label\ncaf\xe9 th\xc3\xa9,x\n", 14),
    ],
)
def test_a_damaged_byte_in_utf_8_is_named_by_line_and_offset(
    tmp_path: Path, name: str, content: bytes, offset: int
) -> None:
    path = written(tmp_path, content, name)
    assert rules(path) == [(2, f"not UTF-8: byte 0xe9 at offset {offset} of the file")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_encodings_are_told_from_the_content(tmp_path: Path, name: str, encoding: str) -> None:
    content = {
        "rows.csv": "text;label\nOù est ma carte ?;x\n",
        "rows.jsonl": '{"text": "Où est ma carte ?", "label": "x"}',
    }
    read = load_noted(written(tmp_path, content[name].encode(encoding), name))
    assert [(e.text, e.answer) for e in read.data.examples] == [("Où est ma carte ?", "x")]
    assert any(f"read as {encoding}" in note.what for note in read.notes) == (encoding != "utf-8-sig")
    assert len(read.notes) == (encoding != "utf-8-sig") + (name == "rows.csv")


def test_csv_lines_are_physical_lines_after_quoted_line_breaks(tmp_path: Path) -> None:
    path = written(tmp_path, 'text,label\r\n"one\r\ntwo",x\r\n\r\n"a ""b"", c",y\r\n', "rows.csv")
    data = load_rows(path)
    assert [(e.text, e.answer, e.line) for e in data.examples] == [("one\r\ntwo", "x", 2), ('a "b", c', "y", 5)]


def test_bad_csv_rows_are_all_named_by_their_first_line(tmp_path: Path) -> None:
    path = written(tmp_path, 'text,label\n"a\nb",x,z\nlonely\n"c"d,x\n,x\ne,x\n"never\nclosed,x\n', "rows.csv")
    assert rules(path) == [
        (2, "3 fields where the header has 2"),
        (4, "1 fields where the header has 2"),
        (5, "broken CSV: ',' expected after '\"'"),
        (6, '"text" is empty'),
        (8, "broken CSV: the quote opened here is never closed"),
    ]


def test_a_csv_field_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label\n" + "a" * 200_000 + ",x\n", "rows.csv")
    assert len(load_rows(path).examples[0].text) == 200_000


@pytest.mark.parametrize(
    ("header", "rule"),
    [
        ("text,lable", 'no column "label"; the row has "text", "lable" — did you mean "lable"?'),
        ("text,label,text", 'column "text" twice in the header'),
    ],
)
def test_a_bad_csv_header_is_one_problem_not_one_per_row(tmp_path: Path, header: str, rule: str) -> None:
    assert rules(written(tmp_path, f"{header}\na,x\nb,y\n", "rows.csv")) == [(1, rule)]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("b.jsonl", "\n \n"), ("c.csv", "text,label\n")])
def test_a_file_without_rows_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    path = written(tmp_path, content, name)
    with pytest.raises(DataError) as caught:
        load_rows(path)
    assert str(caught.value) == f"{path}: there are no rows"


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_one_json_list_is_read(tmp_path: Path, name: str) -> None:
    read = load_noted(written(tmp_path, '[\n{"text": "a",\n "label": "x"},\n{"text": "b", "label": "x"}\n]\n', name))
    assert [(e.text, e.line) for e in read.data.examples] == [("a", 1), ("b", 2)]
    assert [note.what for note in read.notes] == [f"{tmp_path}/{name}: read as one JSON list"]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
texts = words.filter(str.strip)


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    shape = draw(st.sampled_from(["label", "prompt", "chat", "text"]))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        roles = ["user"]
        if shape == "chat":
            pairs = ["user", "assistant"] * draw(st.integers(0, 2))
            roles = [*(["system"] if draw(st.booleans()) else []), *pairs, "user"]
        said = texts.map(str.strip) if shape == "label" else texts  # labels and their texts have no outer spaces
        turns = [] if shape == "text" else [Message(role=r, content=draw(said)) for r in roles]
        rows.append(Example(messages=tuple(turns), answer=draw(said), shape=shape))
    return rows


@settings(max_examples=60, deadline=None)
@given(rows=examples(), ascii_only=st.booleans())
def test_rows_written_as_json_lines_are_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Example], ascii_only: bool
) -> None:
    lines = [json.dumps(to_row(row), ensure_ascii=ascii_only) for row in rows]
    data = load_rows(written(tmp_path_factory.mktemp("trip"), "\n".join(lines)))
    assert [e.model_copy(update={"path": "", "line": 0}) for e in data.examples] == rows
    assert [e.line for e in data.examples] == list(range(1, len(rows) + 1))


# --- one JSON list


def test_items_are_named_by_their_number() -> None:
    items = [{"text": f'é "{i}" ]}}', "n": i, "deep": {"a": [i]}} for i in range(5)]
    raw = b"\xef\xbb\xbf \n" + json.dumps(items, ensure_ascii=False, indent=1).encode() + b"\n"
    assert list(list_rows(raw)) == list(enumerate(items, start=1))


@pytest.mark.parametrize(
    ("raw", "rows"),
    [
        (b"[]", []),
        (b'[{"a": 1}, 5]', [(1, {"a": 1}), (2, "not a JSON object: each item must be {…}")]),
        (b'[{"a": 1},\n{"a": }]', [(1, {"a": 1}), (2, "broken JSON at line 2, column 7: Expecting value")]),
        (b'[{"a": 1}\n{"a": 2}]', [(1, {"a": 1}), (2, "broken JSON at line 2, column 1: Expecting ','")]),
        (b'[{"a": 1}', [(1, {"a": 1}), (2, "broken JSON at column 10: Expecting ','")]),
        (b'[{"a": 1}] x', [(1, {"a": 1}), (2, "broken JSON: something follows the list")]),
        (b"[{" + b'"a":{' * 200_000, [(1, "broken JSON: nested too deeply")]),
    ],
)
def test_what_is_wrong_with_a_list_is_named(raw: bytes, rows: list[object]) -> None:
    assert list(list_rows(raw)) == rows


@pytest.mark.parametrize(
    ("sample", "delimiter"),
    [
        ("text,label\na; b,x\n", ","),
        ("text;label\nhello, world;x\nhi, there;y\n", ";"),
        ("id;text, long;label\n1;a;x\n2;b;y\n", ";"),
        ("text|label\na|x\n", "|"),
        ("text\nalone, with commas\n", ","),
        ("a,b;text;label\n1;2;3\n", ";"),  # the names decide
    ],
)
def test_the_separator_is_the_one_that_makes_columns(sample: str, delimiter: str) -> None:
    assert detect_delimiter(sample, ",", Columns(), answered=False) == delimiter


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Où est mon dépôt ? «liberté\xa0»\n", "cp1252"),
        ("It costs 5 € – too much, “they” say\n" + "no accent here\n" * 9, "cp1252"),
        ("Proszę o zmianę hasła. Gdzie jest moja paczka? Już długo czekam na przesyłkę\n", "cp1250"),
        ("Где моя посылка? Я хочу изменить пароль\n", "cp1251"),
        ("荷物はどこですか。パスワードを変更したい\n", "cp932"),
    ],
)
def test_older_encodings_are_told_by_what_they_make_of_the_text(text: str, encoding: str) -> None:
    assert to_utf8(text.encode(encoding), "rows.csv") == (text.encode(), encoding)


@pytest.mark.parametrize(
    ("records", "rows"),
    [
        ([["", "\ufeff text ", "label"], ["0", "a", "x"]], [{"column 1": "0", "text": "a", "label": "x"}]),
        ([[""], ["text", "label"], ["", ""], ["a", "x", "", ""]], [{}, {"text": "a", "label": "x"}]),
    ],
)
def test_a_header_is_the_first_line_that_is_not_empty(records: list[list[str]], rows: list[object]) -> None:
    found = table_rows(iter(list(enumerate(records, start=1))), None, answered=False)
    assert [values for _, values in found] == rows
