"""Text of PDF, DOCX and HTML, read in a process that parses each document in a child with little time and memory.

Nothing in a document is run, and nothing is fetched: PDFium is built without JavaScript, lxml resolves no entities, and
of HTML the words alone are taken. Run as a program it reads, until its input ends, a line with suffix and size and then
the bytes of a document, and writes a line of JSON: its text or its rule.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import select
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from smallfirst.data.pages import PAGE_BREAK, SCANNED

MAX_PAGES = 500
MAX_TEXT_BYTES = 1_000_000
"""As of any row."""
MAX_MEMORY_BYTES = 500_000_000
"""Of the process that parses a document; macOS does not enforce it."""
MAX_CPU_S, MAX_S = 20, 40
MAX_XML_BYTES = 50_000_000
MAX_TAG_WORDS = 20_000
"""Of an element of HTML: to read its attributes takes their number squared."""
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_UNSEEN_DOCX = ("instrText", "del", "delText", "moveFrom")
_CHARACTERS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "\u2011"}
_BLOCKS = (
    *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "fieldset", "figure", "footer"),
    *("form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section"),
    *("table", "tr", "ul"),
)
_UNSEEN = ("head", "script", "style", "template", "noscript", "svg", "object", "iframe", "select", "textarea")
_WIDE = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
"""Encodings by the first bytes of a page."""


class Unreadable(Exception):
    """A document that breaks a rule, in words."""


def read_pdf(raw: bytes) -> str:
    """Return the text; a page that shows something and has no text is SCANNED. Raise Unreadable."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(raw)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("encrypted: it asks for a password; save it without one") from None
        raise Unreadable("broken: no PDF that can be opened; write it anew") from None
    if len(document) > MAX_PAGES:
        raise Unreadable(f"{len(document):,} pages; at most {MAX_PAGES} are read: split it")
    pages, n_bytes = list[str](), 0
    for number in range(len(document)):
        try:
            page = document[number]
            words = page.get_textpage()
            text = words.get_text_range().replace("\r\n", "\n").replace(PAGE_BREAK, "\n").replace("\ufffe", "-")
            if not text.strip() and any(True for _ in page.get_objects(max_depth=1)):
                text = SCANNED
            words.close()
            page.close()
        except pypdfium2.PdfiumError:
            raise Unreadable(f"broken: page {number + 1} cannot be read; write it anew") from None
        pages.append(text)
        n_bytes += len(text)
        if n_bytes > MAX_TEXT_BYTES:
            break  # refused for its size
    if pages and all(text == SCANNED for text in pages):
        raise Unreadable(f"scanned: its {len(pages)} page(s) are pictures without text; ocrmypdf IN OUT   reads them")
    return PAGE_BREAK.join(pages)


def read_docx(raw: bytes) -> str:
    """Return the text, cells between tabs; pages are those that its program last showed. Raise Unreadable."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if archive.getinfo("word/document.xml").file_size > MAX_XML_BYTES:
                raise Unreadable(f"unpacks to more than {MAX_XML_BYTES:,} bytes")
            with archive.open("word/document.xml") as stream:
                content = stream.read(MAX_XML_BYTES + 1)
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, NotImplementedError, RuntimeError):
        raise Unreadable("broken: no DOCX that can be opened; save it anew") from None
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError:
        raise Unreadable("broken: its XML cannot be read; save it anew") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise Unreadable("its XML declares entities, which no DOCX does")
    return "".join(_docx_text(etree.iterwalk(root, events=("start", "end")))).strip("\n")


def _docx_text(walk: Any) -> Iterator[str]:
    for event, node in walk:
        kind = node.tag.removeprefix(_W)
        if event == "end":
            yield {"p": "\n", "tc": "\t", "tr": "\n"}.get(kind, "")
        elif kind.endswith("Pr") or kind in _UNSEEN_DOCX or _is_fallback(node) or _is_hidden(node):
            walk.skip_subtree()
        elif kind == "t":
            yield (node.text or "").replace(PAGE_BREAK, " ")
        elif kind == "lastRenderedPageBreak" or (kind == "br" and node.get(f"{_W}type") == "page"):
            yield PAGE_BREAK
        else:
            yield _CHARACTERS.get(kind, "")


def _is_fallback(node: Any) -> bool:
    """Return True for what stands a second time for programs that do not know a part of the format."""
    return bool(node.tag == f"{_MC}Fallback" and node.getparent().find(f"{_MC}Choice") is not None)


def _is_hidden(node: Any) -> bool:
    mark = node.find(f"{_W}rPr/{_W}vanish") if node.tag == f"{_W}r" else None
    return mark is not None and mark.get(f"{_W}val") not in ("0", "false", "off")


def read_html(raw: bytes) -> str:
    """Return the words that a reader sees, blocks on lines of their own."""
    wide = next((name for mark, name in _WIDE.items() if raw.startswith(mark)), "utf-8-sig")
    said = re.search(rb"charset=[\"']?([A-Za-z0-9_-]{1,40})", raw[:2048])
    for encoding in (wide, "utf-8-sig", said[1].decode() if said else "cp1252", "cp1252"):
        try:
            text = raw.decode(encoding)
            break
        except (UnicodeDecodeError, LookupError):
            continue
    else:
        text = raw.decode("utf-8", "replace")
    from lxml import etree

    if any(len(tag[0].split()) > MAX_TAG_WORDS for tag in re.finditer("<[a-zA-Z][^>]*", text)):
        raise Unreadable(f"an element of more than {MAX_TAG_WORDS:,} attributes; write it anew")
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError:
        return ""
    if any("depth" in error.message.lower() for error in parser.error_log):
        raise Unreadable("its elements stand in one another too deeply; write it anew")
    words = "" if root is None else "".join(_html_text(etree.iterwalk(root, events=("start", "end"))))
    lines = (line.strip() for line in re.sub(rf"[ \r{PAGE_BREAK}]+", " ", words).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _html_text(walk: Any) -> Iterator[str]:
    for event, node in walk:
        if event == "start":
            style = (node.get("style") or "").replace(" ", "").lower()
            yield "\n" if node.tag in _BLOCKS else "\t" if node.tag in ("td", "th") else ""
            if (
                "hidden" in node.attrib
                or "display:none" in style
                or "visibility:hidden" in style
                or node.tag in _UNSEEN
            ):
                walk.skip_subtree()
            else:
                yield re.sub(r"[\n\t]+", " ", node.text or "")
        else:
            yield "\n" if node.tag in _BLOCKS and node.tag not in ("br", "hr") else ""
            yield re.sub(r"[\n\t]+", " ", node.tail or "")


READERS: dict[str, Callable[[bytes], str]] = {
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".html": read_html,
    ".htm": read_html,
}
"""By the suffix of a file."""


def read(suffix: str, raw: bytes) -> dict[str, str]:
    """Return `text`, or `rule`: why there is none."""
    try:
        text = READERS[suffix](raw).replace("\0", "")
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    except Unreadable as error:
        return {"rule": str(error)}
    except MemoryError:
        return {"rule": f"takes more than {MAX_MEMORY_BYTES:,} bytes of memory"}
    except Exception as error:  # a library may fail on a document in any way
        return {"rule": f"broken: {type(error).__name__}; write it anew"}
    if len(text.encode()) > MAX_TEXT_BYTES:
        return {"rule": f"more than {MAX_TEXT_BYTES:,} bytes of text; split it"}
    return {"text": text} if text.strip() else {"rule": "there is no text in it"}


def read_apart(suffix: str, raw: bytes) -> dict[str, str]:
    """Return what `read` returns, from a child with limits on time and memory that can start and write nothing."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(out)
            _limit()
            with open(into, "wb") as stream:
                stream.write(json.dumps(read(suffix, raw)).encode())
        finally:
            os._exit(0)
    os.close(into)
    said, until, in_time = bytearray(), time.monotonic() + MAX_S, False
    with open(out, "rb", buffering=0) as stream:
        while select.select([stream], [], [], max(0.0, until - time.monotonic()))[0]:
            if not (piece := stream.read(1 << 16)):
                in_time = True
                break
            said += piece
    os.kill(child, signal.SIGKILL)  # one that has ended is still there to be waited for
    ended = os.WTERMSIG(os.waitpid(child, 0)[1])
    try:
        found: dict[str, str] = json.loads(said)
        return found
    except ValueError:
        if not in_time or ended == signal.SIGXCPU:
            return {"rule": f"takes more than {MAX_CPU_S} seconds to read; write it anew or split it"}
        much = f"takes more than {MAX_MEMORY_BYTES:,} bytes of memory, or ends the program that reads"
        return {"rule": f"{much}; write it anew"}


def _limit() -> None:
    limits: dict[int, Any] = {
        resource.RLIMIT_CPU: MAX_CPU_S,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = MAX_MEMORY_BYTES
    for name, most in limits.items():
        resource.setrlimit(name, (most, most))


def main() -> None:
    """Answer documents until the input ends."""
    import lxml.etree  # noqa: F401  once, before the children
    import pypdfium2  # noqa: F401

    for head in iter(sys.stdin.buffer.readline, b""):
        suffix, size = head.split()
        found = read_apart(suffix.decode(), sys.stdin.buffer.read(int(size)))
        sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
