import os
import random

from smallfirst.gateway.ring import Ring, shared_memory


def test_entries_come_out_as_they_went_in_across_the_end_of_the_memory() -> None:
    fd = shared_memory(64 + 1000)
    writer, reader = Ring(fd, 1064), Ring(fd, 1064)
    draws, expected = random.Random(1), []
    for _ in range(500):
        parts = [draws.randbytes(draws.randrange(150)) for _ in range(3)]
        if writer.put(parts):
            expected.append(b"".join(parts))
        if draws.random() < 0.5:
            found, end = reader.entries(2)
            assert found == expected[: len(found)]
            reader.take(end, stored=len(found), unreadable=0)
            del expected[: len(found)]
    assert reader.entries(100)[0] == expected
    assert writer.counts["no_room"] > 0
    assert writer.counts["stored"] + writer.counts["no_room"] + len(expected) == 500


def test_what_was_not_taken_is_there_for_the_next_reader() -> None:
    fd = shared_memory(4096)
    Ring(fd, 4096).put([b"kept"])
    assert Ring(fd, 4096).entries(1)[0] == [b"kept"]
    found, end = Ring(os.dup(fd), 4096).entries(9)
    Ring(fd, 4096).take(end, stored=1, unreadable=0)
    assert (found, Ring(fd, 4096).counts["waiting_bytes"]) == ([b"kept"], 0)


def test_an_entry_that_never_fits_is_refused() -> None:
    ring = Ring(shared_memory(164), 164)
    assert ring.put([b"x" * 97]) is False
    assert ring.put([b"x" * 96])
    assert ring.counts["no_room"] == 1
