"""Documents become text with pages; what cannot be read is named with its rule, and hostile ones harm nobody."""

import json
from pathlib import Path

import pytest
from fixtures.documents import docx, pdf

from smallfirst.base.errors import DataError
from smallfirst.data.pages import PAGE_BREAK, SCANNED
from smallfirst.data.row_formats import Columns
from smallfirst.data.sources import document_text
from smallfirst.data.sources.documents import DocumentReader
from smallfirst.data.sources.load import load_noted
from smallfirst.path.candidates.language_model import SMALL
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import read_rows
from smallfirst.path.project.scaffold import scaffold
from smallfirst.path.project.task_file import read_task_file

CELLS = "<w:tbl><w:tr><w:tc><w:p><w:t>total</w:t></w:p></w:tc><w:tc><w:p><w:t>5 EUR</w:t></w:p></w:tc></w:tr></w:tbl>"
ENCRYPTED = f"/Encrypt<</Filter/Standard/V 1/R 2/O<{'00' * 32}>/U<{'11' * 32}>/P -4>>/ID[<00><00>]"
HTML = (
    "<html><head><title>no</title></head><body><script src='http://127.0.0.1:9/x.js'>no()</script>Invoice<b> 7</b>"
    "<p>of M\xfcller<p hidden>never <i>seen</i></p><iframe src='file:///etc/passwd'></iframe></body></html>"
)
BOMB = b"BT /F1 9 Tf 50 700 Td " + b"(aaaaaaaaaaaaaaaa)Tj " * 6_000_000 + b"ET"
_MC = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
HIDDEN_TWICE_MOVED = (
    '<w:p><w:pPr><w:tabs><w:tab w:pos="9"/></w:tabs></w:pPr><w:r><w:t>10</w:t><w:noBreakHyphen/><w:t>7</w:t></w:r>'
    "<w:r><w:ptab/></w:r><w:r><w:rPr><w:vanish/></w:rPr><w:t>never</w:t></w:r>"
    '<w:r><w:rPr><w:vanish w:val="0"/></w:rPr><w:t>one</w:t></w:r></w:p>'
    f"<w:p><?x y?><!-- z --><mc:AlternateContent {_MC}>"
    "<mc:Choice><w:t>box</w:t></mc:Choice><mc:Fallback><w:t>box</w:t></mc:Fallback>"
    "</mc:AlternateContent><w:moveFrom><w:t>moved</w:t></w:moveFrom><w:moveTo><w:t>moved</w:t></w:moveTo></w:p>"
)
ENTITY = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>'


@pytest.fixture(scope="module")
def reader():
    with DocumentReader() as opened:
        yield opened


@pytest.mark.parametrize(
    ("name", "raw", "text"),
    [
        (
            "a.pdf",
            pdf("Invoice 7\nof Ham Ltd", "", "total: 5.00", None),
            f"Invoice 7\nof Ham Ltd\f\ftotal: 5.00\f{SCANNED}",
        ),
        (
            "a.docx",
            docx(f'<w:p><w:t>Invoice 7</w:t><w:br w:type="page"/></w:p>{CELLS}'),
            "Invoice 7\f\ntotal\n\t5 EUR\n\t",
        ),
        ("a.HTML", HTML.encode("cp1252"), "Invoice 7\nof Müller"),
        ("b.html", b"<p>one<p hidden>two<p>three<ul><li hidden>four<li>five</ul>", "one\n\nthree\n\nfive"),
        ("e.html", b"a<br>b&#12;c<?x?><!-- d -->e", "a\nb ce"),
        ("c.html", "<p>Müller".encode("utf-16"), "Müller"),
        ("d.html", "<p>Müller".encode("utf-16-be"), "Müller"),
        ("b.docx", docx(HIDDEN_TWICE_MOVED), "10\u20117\tone\nboxmoved"),
        ("a.txt", "\ufeffone\ftwo".encode(), "one\ftwo"),
    ],
)
def test_a_format_is_read_page_by_page(reader: DocumentReader, name: str, raw: bytes, text: str) -> None:
    found = reader.read(name, raw)
    assert (found.rule, found.text) == ("", text)


@pytest.mark.parametrize(
    ("name", "raw", "rule"),
    [
        ("a.pdf", b"hello", "broken: no PDF"),
        ("a.pdf", pdf("secret", trailer=ENCRYPTED), "encrypted: it asks for a password"),
        ("a.pdf", pdf(None, None), "scanned: its 2 page(s) are pictures without text"),
        ("a.pdf", pdf(*["page"] * 501), "501 pages; at most 500 are read: split it"),
        ("a.pdf", pdf("x", content=BOMB), "takes more than"),
        ("a.docx", docx("<w:p><w:t>&f;</w:t></w:p>", ENTITY), "its XML declares entities"),
        ("u.docx", docx("<w:p><w:t>&f;</w:t></w:p>", ENTITY, "utf-16"), "its XML declares entities"),
        ("deep.html", b"<div hidden>" * 200_000, "its elements stand in one another too deeply"),
        ("wide.html", b"<p " + b"a=1 " * 200_000 + b">x", "an element of more than 20,000"),
        ("a.docx", docx(" " * 50_000_001), "unpacks to more than 50,000,000 bytes"),
        ("a.docx", b"PK\x03\x04", "broken: no DOCX"),
        ("a.html", b"<p>a</p>" * 400_000, "more than 1,000,000 bytes of text"),
        ("a.exe", b"MZ", "no format that is read: .pdf"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_has_a_rule(reader: DocumentReader, name: str, raw: bytes, rule: str) -> None:
    assert reader.read(name, raw).rule.startswith(rule)
    assert reader.read("b.html", b"<p>well</p>").text == "well"  # and the next one is read


def test_a_child_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(raw: bytes) -> str:
        while True:
            pass

    monkeypatch.setitem(document_text.READERS, ".html", never)
    monkeypatch.setattr(document_text, "MAX_S", 0.2)
    assert document_text.read_apart(".html", b"")["rule"].startswith("takes more than 20 seconds")


def test_a_run_goes_on_with_the_good_files_and_names_the_others(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.pdf").write_bytes(pdf("secret"))
    lines = ["file,seller,total"]
    for n in range(30):
        (tmp_path / "in" / f"{n}.pdf").write_bytes(pdf("Dear you", f"Ham {n} Ltd asks for\\n{n}.50 EUR"))
        lines.append(f"{n}.pdf,Ham {n} Ltd,{n}.50")
    (tmp_path / "in" / "3.pdf").write_bytes(b"broken")
    (tmp_path / "in" / "table.csv").write_text("\n".join([*lines, "../secret.pdf,no,1"]))
    made = scaffold(tmp_path / "task", str(tmp_path / "in"), {})
    assert (made.guess.kind, made.guess.columns["fields"]) == ("extract", "seller,total")
    assert [problem.rule.partition(":")[0] for problem in made.unused] == ["3.pdf", "../secret.pdf"]
    assert not any(line.startswith("columns that are not used") for line in made.in_words)
    rows = read_rows(read_task_file(made.task_yaml))
    texts = [e.text for part in (rows.train, rows.selection, rows.calibration, rows.test) for e in part.examples]
    assert len(texts) == 29
    assert all(text.startswith("Dear you" + PAGE_BREAK) for text in texts)
    why = SMALL.why_unsuitable(Project.read(read_task_file(made.task_yaml)))
    assert why == "it reads short texts; these are documents of several pages"
    row = json.dumps({"file": "3.pdf", "target": {"total": "3.50"}})
    (tmp_path / "in" / "more.jsonl").write_text((tmp_path / "task" / "rows.jsonl").read_text() + row)
    with pytest.raises(DataError, match=r"3\.pdf: broken: no PDF"):
        load_noted(tmp_path / "in" / "more.jsonl", columns=Columns(file="file"))
    kept = load_noted(tmp_path / "in" / "more.jsonl", columns=Columns(file="file"), skip_bad_rows_up_to=0.1)
    assert (len(kept.data), kept.n_bad) == (29, 1)


def test_a_row_with_a_text_and_a_document_is_refused(tmp_path: Path) -> None:
    """The text took the place of the document, and nothing said so."""
    (tmp_path / "7.txt").write_text("of the document")
    rows = tmp_path / "rows.csv"
    rows.write_text("file,text,label\n7.txt,of the row,a\n7.txt,,b\n")
    with pytest.raises(DataError, match=r'rows\.csv:2 .*7\.txt: has a text in "text" beside its document'):
        load_noted(rows, columns=Columns(file="file"))
    kept = load_noted(rows, columns=Columns(file="file"), skip_bad_rows_up_to=0.5)
    assert [example.text for example in kept.data.examples] == ["of the document"]
