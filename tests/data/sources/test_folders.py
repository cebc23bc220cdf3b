import os
from pathlib import Path

import pytest
from fixtures.rows import refused

from smallfirst.base.errors import DataError
from smallfirst.data.sources.folders import safe_join
from smallfirst.data.sources.load import load_noted, load_rows, load_valid


def put(path: Path, content: bytes | str = "some text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problems(folder: Path) -> list[tuple[str, str]]:
    """Path below the folder, and rule, of every problem."""
    return [(str(Path(p.path).relative_to(folder)), p.rule) for p in load_valid(folder)[1]]


def test_each_file_is_one_row_in_the_order_of_the_paths(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    put(folder / "b.md", b"\xef\xbb\xbf# B\r\n")
    put(folder / "a" / "z.TXT", "Z\n")
    put(folder / "a.txt", "A")
    put(folder / "_SUCCESS", "")
    put(folder / ".cache" / "c.txt", "hidden")
    data = load_rows(folder)
    assert data.name == "books"
    assert [(e.messages, e.answer, e.shape, Path(e.path), e.line) for e in data.examples] == [
        ((), "Z\n", "text", folder / "a" / "z.TXT", 1),
        ((), "A", "text", folder / "a.txt", 1),
        ((), "# B\r\n", "text", folder / "b.md", 1),
    ]


def test_every_file_that_is_no_text_is_named_with_its_rule(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    put(folder / "a.txt")
    put(folder / "d.txt", b"\xef\xbb\xbf\xc3\xa9 caf\xe9")
    put(folder / "f.txt", b"a\0b")
    put(folder / "g.pdf", b"%PDF")
    put(folder / "rows.jsonl", "{}")
    os.truncate(put(folder / "sparse.txt"), 2 * 1024**3)  # only claims gigabytes
    os.mkfifo(folder / "pipe.txt")
    assert problems(folder) == [
        ("d.txt", "not UTF-8: byte 0xe9"),
        ("f.txt", '"text" has a NUL character at position 2'),
        ("g.pdf", "broken: no PDF that can be opened; write it anew"),
        ("pipe.txt", "not a regular file"),
        ("rows.jsonl", "none of .pdf, .docx, .html, .htm, .txt, .md: a folder of text holds nothing else; move it out"),
        ("sparse.txt", "file of 2,147,483,648 bytes; at most 10,000,000 are read: split it"),
    ]


def test_sub_folders_are_labels_and_a_deeper_tree_is_text_to_continue(tmp_path: Path) -> None:
    for name in ("spam/1.txt", "spam/2.md", "ham/1.txt"):
        put(tmp_path / "mail" / name, f"{name}\r\n")
    read = load_noted(tmp_path / "mail")
    data, (note,) = read.data, read.notes
    assert note.what == f"{tmp_path}/mail: its texts are labelled by the names of their folders"
    assert [(e.text, e.answer, e.shape) for e in data.examples] == [
        ("ham/1.txt", "ham", "label"),
        ("spam/1.txt", "spam", "label"),
        ("spam/2.md", "spam", "label"),
    ]
    put(tmp_path / "mail" / "spam" / "old" / "3.txt", "deeper")
    assert {e.shape for e in load_rows(tmp_path / "mail").examples} == {"text"}


def test_links_are_read_inside_the_folder_only(tmp_path: Path) -> None:
    folder, secret = tmp_path / "books", put(tmp_path / "secret.txt", "secret")
    put(folder / "a.txt", "A")
    (folder / "b.txt").symlink_to("a.txt")
    (folder / "c.txt").symlink_to(secret)
    (folder / "d.txt").symlink_to("nothing.txt")
    (folder / "e.txt").symlink_to("e.txt")
    (folder / "more").symlink_to(tmp_path)
    data, _ = load_valid(folder)
    assert [e.answer for e in data.examples] == ["A", "A"]
    assert problems(folder) == [
        ("c.txt", "a link that leads out of the folder; put the file itself here"),
        ("d.txt", "a link to nothing"),
        ("e.txt", "a link that leads out of the folder; put the file itself here"),
        ("more", "a link to a folder; put the folder itself here"),
    ]


@pytest.mark.parametrize("parts", [("..", "a"), ("a", ".."), ("", "etc"), ("a/../../b",), (".",), ("a\0b",)])
def test_a_path_below_a_root_is_made_of_plain_names(tmp_path: Path, parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"is plain names, without \.\. and empty parts"):
        safe_join(tmp_path, parts)


def test_a_path_below_a_root_does_not_lead_out_by_a_link(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root / "a" / "b.txt")
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "a")
    assert safe_join(root, ("in", "b.txt")) == root / "in" / "b.txt"
    with pytest.raises(DataError, match="a link that leads out of"):
        safe_join(root, ("out", "secret.txt"))


ROW = b'{"text": "a", "label": "x"}\n'


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a volume main/desk/raw below a root that stands in for /Volumes."""
    folder = tmp_path / "volumes" / "main" / "desk" / "raw"
    folder.mkdir(parents=True)
    monkeypatch.setenv("SMALLFIRST_VOLUMES", str(tmp_path / "volumes"))
    return folder


@pytest.mark.parametrize("prefix", ["dbfs:", ""])
def test_a_file_of_a_volume_is_read_below_the_root(volume: Path, prefix: str) -> None:
    (volume / "train.jsonl").write_bytes(ROW)
    data = load_rows(f"{prefix}/Volumes/main/desk/raw/train.jsonl")
    assert (data.name, [e.path for e in data.examples]) == ("train.jsonl", [str(volume / "train.jsonl")])


@pytest.mark.parametrize("address", [
    "/Volumes/main/desk", "dbfs:/FileStore/train.jsonl", "dbfs:Volumes/main/desk/raw/train.jsonl",
    "/Volumes/main/desk/raw/../../../secret.jsonl", "/Volumes/../main/desk/raw/secret.jsonl",
])  # fmt: skip
def test_addresses_of_no_volume_are_refused(volume: Path, address: str) -> None:
    (volume.parents[2] / "secret.jsonl").write_bytes(ROW)
    assert refused(address) == f"{address}: expected [dbfs:]/Volumes/catalog/schema/volume/path, without .."
