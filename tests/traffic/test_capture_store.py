"""The capture store keeps what may be kept, no longer and no more than it was told, and readably only with its key."""

import sqlite3
from datetime import UTC, datetime, timedelta

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.traffic.capture_store import CaptureStore, CaptureUnavailable
from smallfirst.traffic.exchange import Exchange

START = datetime(2026, 11, 27, tzinfo=UTC)


def exchange(i=0, text="My card is lost", **more):
    request = {"model": "m", "messages": [{"role": "user", "content": text}]}
    response = {"choices": [{"message": {"content": f"answer {i}"}}]}
    given = {"id": f"r{i}", "at": START + timedelta(hours=i), "request": request, "response": response}
    return Exchange(**(given | more))


def ids(found):
    return [one.id for one in found]


@pytest.fixture
def open_store(tmp_path):
    opened = []

    def open_it(**settings):
        opened.append(CaptureStore(tmp_path / "capture.db", **settings))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


def raw(tmp_path):
    return b"".join(file.read_bytes() for file in tmp_path.glob("capture.db*"))


def content_of(tmp_path, id):
    with sqlite3.connect(tmp_path / "capture.db") as other:
        return other.execute("SELECT content FROM exchanges WHERE id = ?", (id,)).fetchone()[0]


def test_what_goes_in_comes_out(open_store):
    one = exchange(tenant="shop", cost_usd=0.001, prompt_tokens=12)
    store = open_store()
    assert store.append([one, exchange(1)]) == 2
    assert next(open_store().exchanges()) == one
    store.append([one])  # its id is there
    assert len(ids(store.exchanges())) == 2


def test_personal_data_and_media_are_not_written(open_store, tmp_path):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 500}}
    asked = exchange(request={"messages": [{"role": "user", "content": [image, {"text": "write to ann@example.com"}]}]})
    store = open_store()
    store.append([asked])
    kept = next(store.exchanges())
    (content,) = [message["content"] for message in kept.request["messages"]]
    assert content[1] == {"text": "write to [EMAIL]"}
    assert content[0]["image_url"] == {"url": "[2,022 characters of data]"}


def test_half_a_surrogate_pair_is_no_text(open_store):
    store = open_store()
    store.append([exchange(text="ü\ud83d")])
    assert next(store.exchanges()).request["messages"][0]["content"] == "ü?"


def test_rows_and_days_are_bounded(open_store):
    store = open_store(max_rows=3, keep_days=1)
    store.append([exchange(i) for i in range(5)])
    assert ids(store.exchanges()) == ["r2", "r3", "r4"]
    assert store.expire(START + timedelta(days=1, hours=3)) == 1
    assert ids(store.exchanges()) == ["r3", "r4"]


def test_one_that_is_too_long_is_not_kept(open_store):
    store = open_store()
    assert store.append([exchange(text="long words " * 200_000), exchange(1)]) == 1
    assert ids(store.exchanges()) == ["r1"]


def test_many_come_in_the_order_in_which_they_were_written(open_store):
    store = open_store()
    store.append([exchange(i) for i in range(500)])
    assert ids(store.exchanges()) == [f"r{i}" for i in range(500)]  # over several pages


def test_another_process_reads_while_this_one_writes(open_store):
    store = open_store()
    store.append([exchange(i) for i in range(300)])
    reading = open_store().exchanges()
    assert next(reading).id == "r0"
    store.append([exchange(300)])
    assert ids(reading)[-1] == "r300"


def test_with_a_key_nothing_is_readable_without_it(open_store, tmp_path):
    plain = open_store()
    plain.append([exchange()])
    content = content_of(tmp_path, "r0")
    assert content in raw(tmp_path)
    kept = open_store(key="correct horse")
    kept.append([exchange(1)])
    assert content[1:] not in raw(tmp_path)
    assert ids(open_store(key="correct horse").exchanges()) == ["r0", "r1"]
    with pytest.raises(ConfigError, match="encrypted with another key"):
        open_store(key="battery staple")
    with pytest.raises(ConfigError, match="is encrypted") as refused:
        open_store()
    assert "SMALLFIRST_CAPTURE_KEY" in str(refused.value)
    with pytest.raises(ConfigError, match="is encrypted"):
        list(plain.exchanges())  # opened before


def test_an_encrypted_row_is_bound_to_its_id(open_store, tmp_path):
    store = open_store(key="correct horse")
    store.append([exchange(0), exchange(1)])
    with sqlite3.connect(tmp_path / "capture.db") as other:
        other.execute("UPDATE exchanges SET content = (SELECT content FROM exchanges WHERE id = 'r1') WHERE id = 'r0'")
    with pytest.raises(ConfigError, match="r0 cannot be decrypted"):
        list(store.exchanges())


def test_no_trace_of_an_expired_text_remains(open_store, tmp_path):
    store = open_store()
    store.append([exchange(i) for i in range(20)])
    content = content_of(tmp_path, "r3")
    assert content in raw(tmp_path)
    assert store.expire(START + timedelta(days=30, hours=3.5)) == 4
    assert content not in raw(tmp_path)


def test_a_file_that_takes_nothing_says_so_and_is_tried_again(open_store, tmp_path):
    store = open_store()
    with sqlite3.connect(tmp_path / "capture.db") as other:
        (pages,) = other.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # as a full disk does
    with pytest.raises(CaptureUnavailable, match="takes no exchange"):
        store.append([exchange(i, text=str(list(range(i, i + 3000)))) for i in range(9)])
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert store.append([exchange()]) == 1


def test_a_file_of_another_kind_is_refused(open_store, tmp_path):
    (tmp_path / "capture.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="cannot keep exchanges"):
        open_store()
