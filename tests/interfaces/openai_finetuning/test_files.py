"""Files for fine-tuning with the openai client: unchanged, private to a key, bounded, never found by a path."""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from smallfirst.base.paths import home
from smallfirst.interfaces.openai_finetuning.files import FileStore, StoredFile, safe_filename

FORM = "multipart/form-data; boundary=B"
PURPOSE = ('name="purpose"', "fine-tune")
ROWS = ('name="file"; filename="rows.jsonl"', "{}")


def stored() -> list[Path]:
    return sorted(path for path in (home() / "files").rglob("*") if path.is_file())


def post(url: str, body: bytes | Iterator[bytes], kind: str = FORM, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/files", content=body, headers={"content-type": kind, **headers}, timeout=60)


def form(*parts: tuple[str, str], end: str = "--B--\r\n") -> bytes:
    """A form of (text after `form-data;`, content)."""
    text = "".join(f"--B\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n" for head, content in parts)
    return (text + end).encode()


@pytest.fixture
def store() -> FileStore:
    return FileStore(max_files=9, max_bytes=99)


def publish(store: FileStore, filename: str = "rows.jsonl") -> StoredFile:
    return store.keep("owner", filename, io.BytesIO(b"{}"))


def test_a_file_is_kept_shown_and_deleted(start_api: Any, chat_file: bytes, tmp_path: Path) -> None:
    client = start_api().client()
    (tmp_path / "rows.jsonl").write_bytes(chat_file)
    before = int(time.time())
    with (tmp_path / "rows.jsonl").open("rb") as file:
        made = client.files.create(file=file, purpose="fine-tune")
    assert (made.object, made.bytes, made.filename) == ("file", len(chat_file), "rows.jsonl")
    assert (made.purpose, made.status) == ("fine-tune", "processed")
    assert before <= made.created_at <= time.time()
    assert client.files.wait_for_processing(made.id) == made
    assert client.files.retrieve(made.id) == made
    answer = client.files.content(made.id)
    assert answer.read() == chat_file
    assert answer.response.headers["content-disposition"] == 'attachment; filename="rows.jsonl"'
    assert answer.response.headers["x-content-type-options"] == "nosniff"
    assert [file.id for file in client.files.list()] == [made.id]
    deleted = client.files.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {made.id}"):
            ask(made.id)
    assert stored() == []


@pytest.mark.parametrize(("given", "shown"), [
    ("../../../../etc/cron.d/rows.jsonl", "rows.jsonl"), ("..", "upload.jsonl"),
    ("rows\\mine.jsonl", "mine.jsonl"), ("", "upload.jsonl"),
    ("a\r\nset-cookie: x.jsonl", "aset-cookie: x.jsonl"), ("zürich <b>.jsonl", "zürich <b>.jsonl"),
    ("x" * 300, "x" * 255),
])  # fmt: skip
def test_a_filename_is_shown_and_is_no_path(store: FileStore, given: str, shown: str) -> None:
    file = publish(store, given)
    assert file.filename == safe_filename(given) == shown
    folder = home() / "files" / "owner" / file.id
    assert stored() == [folder / "file.json", folder / "rows.jsonl"]
    assert store.path("owner", file).read_bytes() == b"{}"


def test_a_name_like_a_path_stays_in_the_folder(start_api: Any, chat_file: bytes) -> None:
    client = start_api().client()
    made = client.files.create(file=("../../evil.jsonl", chat_file), purpose="fine-tune")
    assert made.filename == "evil.jsonl"
    assert [path.name for path in stored()] == ["file.json", "rows.jsonl"]
    for id in ("../no-key", "..%2f..%2fledger.sqlite", "file-", made.id + "/../x", "file.json", made.id.upper()):
        answer = httpx.get(f"{client.base_url}files/{id}", timeout=60)
        assert answer.status_code == 404, id


def test_a_key_sees_its_own_files_only(start_api: Any, chat_file: bytes) -> None:
    server = start_api("one", "two")
    one, two = server.client("one"), server.client("two")
    made = one.files.create(file=("rows.jsonl", chat_file), purpose="fine-tune")
    assert [file.id for file in two.files.list()] == []
    for ask in (two.files.retrieve, two.files.content, two.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)
    with pytest.raises(openai.BadRequestError, match="does not exist") as caught:
        two.fine_tuning.jobs.create(model="tiny", training_file=made.id)
    assert (caught.value.param, caught.value.code) == ("training_file", "file_not_found")
    with pytest.raises(openai.AuthenticationError):
        server.client("three").files.create(file=("rows.jsonl", chat_file), purpose="fine-tune")
    assert one.files.retrieve(made.id) == made
    assert "one" not in str(stored())


def test_a_large_upload_is_refused_and_leaves_nothing(start_api: Any) -> None:
    server = start_api(max_upload_bytes=10_000)
    client = server.client()
    for size in (9_990, 15_000, 1_000_000):  # the envelope counts too
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("rows.jsonl", b"x" * size), purpose="fine-tune")
        assert caught.value.status_code == 413
        assert caught.value.code == "request_too_large"

    def chunks() -> Iterator[bytes]:  # no Content-Length: the size is only known by counting
        yield form(PURPOSE, ROWS, end="")
        for _ in range(150):
            yield b"x" * 100

    assert post(server.url, chunks()).status_code == 413
    assert client.files.create(file=("rows.jsonl", b"x" * 9_000), purpose="fine-tune").bytes == 9_000
    assert len(stored()) == 2


def test_the_files_of_a_key_are_limited(start_api: Any) -> None:
    client = start_api(max_files=2, max_stored_bytes=100).client()

    def upload(size: int) -> str:
        return client.files.create(file=("rows.jsonl", b"x" * size), purpose="fine-tune").id

    upload(40)
    with pytest.raises(openai.BadRequestError, match="100 bytes are kept") as caught:
        upload(61)
    assert caught.value.code == "storage_full"
    second = upload(60)
    with pytest.raises(openai.BadRequestError, match="at most 2 files and 100 bytes are kept; delete files"):
        upload(1)
    client.files.delete(second)
    upload(1)
    assert len(stored()) == 4


BROKEN_FORMS = [
    (form(PURPOSE, ROWS, end=""), "no whole file"),
    (form(PURPOSE), "no whole file"),
    (form(PURPOSE, ROWS, ROWS), "Too many files"),
    (form(PURPOSE, ('name="other"; filename="x"', "")), 'Unknown parameter: "other"'),
    (form(PURPOSE, ('name="file"; filename="x"', "")), "The file is empty"),
    (form(*[(f'name="f{i}"', "x") for i in range(9)], ROWS), "Too many fields"),
    (form(('name="purpose"', "x" * 5000), ROWS), "maximum size of 4KB"),
    (form(ROWS), "purpose is missing"),
    (form(('name="purpose"', "batch"), ROWS), 'purpose is "batch"; files here are for "fine-tune"'),
    (form(PURPOSE, ('name="purose"', "x"), ROWS), 'Unknown parameter: "purose"'),
    (form(('name="purpose"\r\nX-Long: ' + "x" * 9000, ""), ROWS), "Invalid multipart data"),
    (b"not a form at all", "cannot be read"),
    (b"", "no whole file"),
]


def test_an_invalid_form_is_refused(start_api: Any) -> None:
    url = start_api().url
    for body, message in BROKEN_FORMS:
        answer = post(url, body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
    assert stored() == []


def test_other_content_types_are_refused(start_api: Any) -> None:
    url = start_api().url
    assert post(url, b"{}", "application/json").status_code == 415
    assert post(url, b"", "multipart/form-data").status_code == 400
    assert post(url, form(PURPOSE, ROWS), f"multipart/form-data; boundary={'B' * 300}").status_code == 400
    assert post(url, b"", **{"content-encoding": "gzip"}).status_code == 415
    assert post(url, form(PURPOSE, ROWS)).status_code == 200


def test_files_are_listed_in_pages(start_api: Any) -> None:
    client = start_api().client()
    ids = [client.files.create(file=("x.jsonl", b"{}"), purpose="fine-tune").id for _ in range(5)]
    newest = [file.id for file in client.files.list(limit=2)]  # follows the pages
    assert sorted(newest) == sorted(ids)
    first = client.files.list(limit=2)
    assert (len(first.data), first.has_more) == (2, True)
    last = client.files.list(limit=2, after=newest[3])
    assert ([file.id for file in last.data], last.has_more) == ([newest[4]], False)
    assert [file.id for file in client.files.list(order="asc")] == newest[::-1]
    assert client.files.list(purpose="batch").data == []
    for asked in ({"limit": 0}, {"limit": 10_001}, {"after": "file-x"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.list(**asked)  # type: ignore[arg-type]
        assert caught.value.param == next(iter(asked))


class Broken(io.BytesIO):
    def read(self, *_: object) -> bytes:
        raise ConnectionError


def test_a_draft_is_no_file_and_an_old_one_is_removed(store: FileStore) -> None:
    with pytest.raises(ConnectionError):
        store.keep("owner", "rows.jsonl", Broken())
    assert stored() == []
    folder = home() / "files" / "owner"
    for name, age_s in (("old", 100_000), ("new", 60)):
        (folder / f".draft-{name}").mkdir()
        os.utime(folder / f".draft-{name}", (time.time() - age_s,) * 2)
    FileStore(max_files=9, max_bytes=99)
    assert [path.name for path in folder.iterdir()] == [".draft-new"]
    assert store.find("owner", ".draft-new") is None


def test_a_damaged_file_does_not_hide_the_others(store: FileStore) -> None:
    file = publish(store)
    damaged = home() / "files" / "owner" / f"file-{'0' * 24}"
    damaged.mkdir()
    (damaged / "file.json").write_text("{")
    assert store.all("owner") == [file]
