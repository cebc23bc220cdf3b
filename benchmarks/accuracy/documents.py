"""Fields of long documents in PDFs of five programs: layouts that were never seen, quotes, pages, time and memory.

python -m benchmarks.accuracy.documents FOLDER [--rows 500] [--pdfs 100] [--writer PYTHON] [--real FOLDER]

Each invoice of `hosted_invoices` is one page among pages of questions' contexts and articles; those of training and test
rows have no text in common. PYTHON has reportlab, fpdf2 and WeasyPrint; `chromium` and `soffice` print the others.
`--real` reads the PDFs of a folder as well, and compares the words of each page with those that `pdftotext` finds there.
A tagger that is in FOLDER already is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.datasets import data_folder, read_lines
from smallfirst.base.stats.intervals import wilson
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.data.pages import PAGE_BREAK
from smallfirst.data.sources.documents import DocumentReader
from smallfirst.models.catalog import find_weights
from smallfirst.models.manifest import read_manifest
from smallfirst.models.spans.tagger import Tagger
from smallfirst.registry.runs import UntrackedRun
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.fields import wrong_fields
from smallfirst.tasks.json.schema import infer_schema
from smallfirst.training.config import TrainConfig
from smallfirst.training.encoders import suited_to
from smallfirst.training.marking import TaggingRecipe
from smallfirst.training.run import train

FIELDS = ("vendor_name", "invoice_number", "invoice_date", "currency", "total_amount", "tax_amount", "po_number")
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
_WORD = re.compile(r"\w+")
WRITER = """
import glob, html, json, os, subprocess, sys
import weasyprint
from fpdf import FPDF
from reportlab.pdfbase import pdfmetrics, ttfonts
from reportlab.pdfgen import canvas
font = glob.glob("/usr/share/fonts/**/DejaVuSans.ttf", recursive=True)[0]
pdfmetrics.registerFont(ttfonts.TTFont("D", font))
for line in sys.stdin:
    name, program, pages = json.loads(line)
    if program == "reportlab":
        made = canvas.Canvas(name)
        for page in pages:
            words = made.beginText(40, 800)
            words.setFont("D", 9)
            words.textLines(page)
            made.drawText(words)
            made.showPage()
        made.save()
    elif program == "fpdf2":
        made = FPDF()
        made.add_font("D", "", font)
        made.set_auto_page_break(False)
        for page in pages:
            made.add_page()
            made.set_font("D", size=9)
            made.multi_cell(0, 4, page)
        made.output(name)
    else:
        source = name.replace(".pdf", ".html")  # of a <pre> LibreOffice makes a page a line, so lines end in <br>
        style = "<meta charset=utf-8><style>p{font:9pt sans-serif;page-break-before:always}</style>"
        lines = (html.escape(page).replace("\\n", "<br>") for page in pages)
        open(source, "w").write(style + "".join(f"<p style='page-break-before:always'>{page}</p>" for page in lines))
        if program == "weasyprint":
            weasyprint.HTML(source).write_pdf(name)
            continue
        command = ["soffice", "--headless", "--writer", "--convert-to", "pdf", "--outdir", os.path.dirname(name), source]
        if program == "chromium":
            options = ["--headless", "--no-sandbox", "--no-pdf-header-footer", f"--print-to-pdf={name}"]
            command = ["chromium", *options, f"file://{source}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
"""


def documents(rows: list[dict[str, Any]], pool: list[str], draw: random.Random) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        pages = []
        for _ in range(draw.randint(7, 11)):
            page: list[str] = []
            while sum(len(text.split()) for text in page) < 230:
                page.append("\n".join(textwrap.wrap(draw.choice(pool), 95)))
            pages.append("\n\n".join(page))
        pages.insert(at := draw.randint(0, len(pages)), row["text"].strip())
        found.append({"pages": pages, "page": at + 1, "target": {name: row["target"][name] for name in FIELDS}})
    return found


def examples(task: Extract, rows: list[dict[str, Any]]) -> Dataset:
    asked = [(Message(role="user", content=PAGE_BREAK.join(row["pages"])),) for row in rows]
    golds = [task.parse(json.dumps(row["target"])) or "" for row in rows]
    both = zip(asked, golds, strict=True)
    return Dataset(name="documents", examples=tuple(Example(messages=m, answer=g, shape="target") for m, g in both))


def measure(tagger: Tagger, task: Extract, name: str, items: list[tuple[dict[str, Any], str]]) -> None:
    whole = fields = quotes = pages = given = n_pages = 0
    began = time.perf_counter()
    for row, text in items:
        (answer,) = tagger.answer([text])
        wrong = wrong_fields(FIELDS, [task.parse(json.dumps(row["target"])) or ""], answer.text, task.normalise)
        whole, fields, own = whole + (not wrong), fields + len(FIELDS) - len(wrong), text.split(PAGE_BREAK)
        n_pages += len(own)
        for path in (path for path, value in json.loads(answer.text).items() if value is not None):
            given, place = given + 1, answer.read[path]
            quotes += bool(place) and own[place.page - 1][place.offset :].startswith(place.words)
            pages += bool(place) and place.page == row["page"]
    each = (time.perf_counter() - began) / n_pages
    print(
        f"{name}, {len(items)} documents: whole {wilson(whole, len(items))}, fields {wilson(fields, len(FIELDS) * len(items))}"
    )
    print(f"  quotes {quotes} of {given}, on the right page {wilson(pages, given)}, {each:.4f} s a page", flush=True)


def read_real(path: Path, tagger: Tagger, reader: DocumentReader) -> Counter[str]:
    """Return of a PDF as it comes its words, those that another program has on the same page, and the quotes found."""
    began = time.perf_counter()
    found = reader.read_file(path, path.parent)
    if found.rule:
        print(f"{path.name}: {found.rule}", flush=True)
        return Counter(refused=1)
    own, reading = found.text.split(PAGE_BREAK), time.perf_counter() - began
    (answer,) = tagger.answer([found.text])
    answering, places = time.perf_counter() - began - reading, [place for place in answer.read.values() if place]
    quotes = sum(own[place.page - 1][place.offset :].startswith(place.words) for place in places)
    theirs = subprocess.run(["pdftotext", path, "-"], capture_output=True, text=True).stdout.split(PAGE_BREAK)
    words = same = 0
    for page, other in zip(own, theirs[: len(own)], strict=True):
        ours = Counter(_WORD.findall(page))
        words, same = words + ours.total(), same + (ours & Counter(_WORD.findall(other))).total()
    if same < 0.95 * words:
        print(f"{path.name}: {same} of {words} words are on the same page for pdftotext", flush=True)
    counts = {"documents": 1, "pages": len(own), "words": words, "same": same, "given": len(places), "quotes": quotes}
    return Counter({**counts, "reading_ms": int(reading * 1000), "answering_ms": int(answering * 1000)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--pdfs", type=int, default=100)
    parser.add_argument("--writer", default=sys.executable)
    parser.add_argument("--real", type=Path)
    options = parser.parse_args()
    folder, draw = options.folder.absolute(), random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {row["context"] for row in read_lines(data_folder("xquad_en") / "test.jsonl")}
    pool = [*sorted(texts) * 4, *(row["answer"] for row in read_lines(data_folder("medquad_short") / "train.jsonl"))]
    draw.shuffle(pool)
    source = data_folder("hosted_invoices")
    rows = list(read_lines(source / "train.jsonl.gz"))
    draw.shuffle(rows)
    train_rows = documents(rows[: options.rows], pool[::2], draw)
    test_rows = documents(list(read_lines(source / "validation.jsonl.gz")), pool[1::2], draw)
    schema = infer_schema([row["target"] for row in train_rows])
    task = Extract(name="invoices", json_schema=schema, normalise={"vendor_name": "words"})
    recipe = TaggingRecipe(task, examples(task, train_rows[60:]), examples(task, train_rows[:60]))
    base = find_weights(ENCODER)
    config = suited_to(TrainConfig(duration="3ep", patience=9, max_seq_tokens=256, frozen_layers=2), base)
    run = train(recipe, config, base=(ENCODER, base), tracked=UntrackedRun(), folder=folder / "tagger")
    tagger = Tagger.load(run.folder, read_manifest(run.folder))
    measure(tagger, task, "text", [(row, PAGE_BREAK.join(row["pages"])) for row in test_rows[:200]])
    programs = ("reportlab", "fpdf2", "chromium", "weasyprint", "libreoffice")
    wanted = [
        (str(folder / f"{n}.pdf"), programs[n % 5], row["pages"]) for n, row in enumerate(test_rows[: options.pdfs])
    ]
    lines = "".join(f"{json.dumps(one)}\n" for one in wanted)
    subprocess.run([options.writer, "-c", WRITER], input=lines, text=True, check=True)
    with DocumentReader() as reader:
        began = time.perf_counter()
        read = [reader.read_file(Path(name), folder).text for name, _, _ in wanted]
        print(f"read: {(time.perf_counter() - began) / sum(text.count(PAGE_BREAK) + 1 for text in read):.4f} s a page")
    for number, program in enumerate(programs):
        measure(tagger, task, program, list(zip(test_rows[number : options.pdfs : 5], read[number::5], strict=True)))
    if options.real:
        with DocumentReader() as reader:
            found = sum((read_real(path, tagger, reader) for path in sorted(options.real.rglob("*.pdf"))), Counter())
        print(f"real: {dict(found)}, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB at most")


if __name__ == "__main__":
    main()
