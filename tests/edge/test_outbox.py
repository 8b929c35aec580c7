import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from event_samples import event, story, strip_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import OutboxError
from edge.events import OutgoingEvent
from edge.sinks.outbox import SCHEMA_VERSION, Outbox, Progress

TESTS = Path(__file__).parent.parent
UPDATED, CLOSED = "io.rust-edge.defect.updated.v1", "io.rust-edge.defect.closed.v1"


def small(number: int, update: bool = False, size: int = 1000) -> OutgoingEvent:
    """An event of `size` bytes all told, as the outbox counts."""
    name = f"{number:08d}"
    type_ = UPDATED if update else CLOSED
    return OutgoingEvent("defect", name, type_, "coil", b"x" * (size - len("defect" + name + type_ + "coil")))


def ids(outbox: Outbox) -> list[str]:
    return [waiting.event.event_id for waiting in outbox.pending(limit=1_000_000)]


def progress(line: int, strip_id: str = "coil-1", finished: bool = False) -> Progress:
    return Progress(strip_id, line, b"state at %d" % line, "config", "bundle", finished)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db") as opened:
        yield opened


def test_what_is_committed_is_there_after_reopening(tmp_path: Path) -> None:
    events = [*story(0), *strip_frame()]
    with Outbox(tmp_path / "outbox.db") as outbox:
        outbox.commit(events, progress(64))
    with Outbox(tmp_path / "outbox.db") as outbox:
        assert [waiting.event for waiting in outbox.pending()] == events
        assert outbox.progress("coil-1") == outbox.unfinished_strip() == progress(64)
        assert outbox.depth() == len(events)


def test_an_id_that_still_waits_is_not_stored_again_and_keeps_its_place(outbox: Outbox) -> None:
    outbox.commit(story(0))
    outbox.commit([*story(1), *story(0)])
    assert ids(outbox) == [one.event_id for one in [*story(0), *story(1)]]
    assert outbox.depth() == 6


def test_an_id_that_was_delivered_is_taken_again(outbox: Outbox) -> None:
    outbox.commit(story(0))
    outbox.acknowledge([waiting.seq for waiting in outbox.pending()])
    outbox.commit(story(0))
    assert ids(outbox) == [one.event_id for one in story(0)]


def test_pending_goes_on_behind_what_was_read(outbox: Outbox) -> None:
    outbox.commit([small(number) for number in range(10)])
    first = outbox.pending(limit=4)
    second = outbox.pending(after_seq=first[-1].seq, limit=4)
    assert [waiting.event.event_id for waiting in first + second] == [f"{number:08d}" for number in range(8)]


def test_numbers_are_never_used_again_even_when_the_outbox_runs_empty(tmp_path: Path) -> None:
    seen = 0
    for round_ in range(3):
        with Outbox(tmp_path / "outbox.db") as outbox:
            outbox.commit([small(round_)])
            (waiting,) = outbox.pending(after_seq=seen)
            seen = waiting.seq
            outbox.acknowledge([seen])


@given(st.lists(st.one_of(st.integers(0, 12), st.just(-1)), max_size=40))
@settings(max_examples=25, deadline=None)
def test_any_sequence_of_commits_and_acknowledgements_is_that_of_a_queue(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int]
) -> None:
    path = tmp_path_factory.mktemp("queue") / "outbox.db"
    queue: list[str] = []
    with Outbox(path) as outbox:
        for step in steps:
            if step >= 0:
                outbox.commit([small(step)])
                if f"{step:08d}" not in queue:
                    queue.append(f"{step:08d}")
            elif queue:
                outbox.acknowledge([outbox.pending(limit=1)[0].seq])
                queue.pop(0)
            assert ids(outbox) == queue
            assert outbox.depth() == len(queue)
            assert outbox.megabytes() == pytest.approx(len(queue) * 0.001)


def test_events_and_progress_are_stored_together_or_not_at_all(outbox: Outbox) -> None:
    outbox.commit(story(0), progress(64))
    broken = OutgoingEvent("defect", None, CLOSED, "coil-1", b"{}")  # type: ignore[arg-type]
    with pytest.raises((OutboxError, TypeError)):
        outbox.commit([*story(1), broken], progress(128))
    assert ids(outbox) == [one.event_id for one in story(0)]
    assert outbox.progress("coil-1") == progress(64)
    assert outbox.depth() == 3


def test_progress_is_that_of_the_last_commit_per_strip(outbox: Outbox) -> None:
    assert outbox.progress("coil-1") is None
    assert outbox.unfinished_strip() is None
    outbox.commit([], progress(64))
    outbox.commit([], progress(128))
    assert outbox.progress("coil-1") == progress(128)


def test_a_finished_strip_is_not_resumed_and_goes_when_the_next_begins(outbox: Outbox) -> None:
    outbox.commit([], progress(1000, finished=True))
    assert outbox.unfinished_strip() is None
    assert outbox.progress("coil-1") == progress(1000, finished=True)
    outbox.commit([], progress(64, "coil-2"))
    assert outbox.unfinished_strip() == progress(64, "coil-2")
    assert outbox.progress("coil-1") is None


def test_when_room_runs_out_the_oldest_updates_go_first(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db", max_mb=0.010) as outbox:
        outbox.commit([small(number, update=number % 2 == 0) for number in range(10)])
        assert outbox.dropped() == {}
        outbox.commit([small(10), small(11)])
        assert ids(outbox) == [f"{number:08d}" for number in (1, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
        assert outbox.dropped() == {UPDATED: 2}


def test_when_no_update_is_left_the_oldest_of_the_others_go(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db", max_mb=0.010) as outbox:
        outbox.commit([small(number, update=number < 3) for number in range(10)])
        outbox.commit([small(number) for number in range(10, 15)])
        assert ids(outbox) == [f"{number:08d}" for number in range(5, 15)]
        assert outbox.dropped() == {UPDATED: 3, CLOSED: 2}
        assert outbox.megabytes() <= 0.010


def test_what_was_given_up_is_still_counted_after_reopening(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db", max_mb=0.003) as outbox:
        outbox.commit([small(number) for number in range(200)])
    with Outbox(tmp_path / "outbox.db") as outbox:
        assert outbox.dropped() == {CLOSED: 197}
        outbox.drop(outbox.pending(limit=1)[0].seq)
        assert outbox.dropped() == {CLOSED: 198}
        assert outbox.depth() == 2


def test_what_has_waited_too_long_goes_whatever_it_is(tmp_path: Path) -> None:
    second_h = 1 / 3600
    with Outbox(tmp_path / "outbox.db") as outbox:
        outbox.commit([small(0), small(1, update=True)])
    time.sleep(1.1)
    with Outbox(tmp_path / "outbox.db", max_age_h=second_h) as outbox:
        outbox.commit([small(2)])
        assert ids(outbox) == ["00000002"]
        assert outbox.dropped() == {CLOSED: 1, UPDATED: 1}


@pytest.mark.parametrize("size", [300, 2100, 9000])
def test_the_file_is_at_most_twice_as_large_as_what_may_wait(tmp_path: Path, size: int) -> None:
    with Outbox(tmp_path / "outbox.db", max_mb=1.0) as outbox:
        for start in range(0, 2_000_000 // size, 10):
            outbox.commit([small(number, size=size) for number in range(start, start + 10)])
        assert outbox.dropped()
    assert (tmp_path / "outbox.db").stat().st_size < 2 * 1e6 + 65536


def test_two_threads_lose_nothing_and_keep_the_order(outbox: Outbox) -> None:
    received: list[str] = []
    count = 200

    def publish() -> None:
        after = 0
        while len(received) < count:
            waiting = outbox.pending(after, limit=20)
            if waiting:
                received.extend(one.event.event_id for one in waiting)
                after = waiting[-1].seq
                outbox.acknowledge([one.seq for one in waiting])

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()
    for number in range(count):
        outbox.commit([small(number)], progress(number))
    publisher.join(60)
    assert received == [f"{number:08d}" for number in range(count)]
    assert outbox.depth() == 0


def fill(outbox: Outbox) -> None:
    """Pairs of events, each pair with the progress that counts it, until the disk is full."""
    for number in range(0, 1_000_000, 2):
        outbox.commit([small(number), small(number + 1)], progress(number + 2))


def test_a_full_disk_is_one_clear_line_and_nothing_is_half_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with Outbox(disk / "outbox.db") as outbox:
            with pytest.raises(OutboxError, match="make room on the disk") as caught:
                fill(outbox)
            assert str(disk / "outbox.db") in str(caught.value)
            stored = outbox.depth()
            assert stored > 0
            assert ids(outbox) == [f"{number:08d}" for number in range(stored)]
            assert outbox.progress("coil-1") == progress(stored)
        with Outbox(disk / "outbox.db") as outbox:
            assert outbox.depth() == stored
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_second_process_on_the_same_file_is_refused(outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.sinks.outbox._BUSY_TIMEOUT_S", 0.05)
    with pytest.raises(OutboxError, match="another process"):
        Outbox(tmp_path / "outbox.db")
    outbox.commit(story(0))


def test_a_corrupt_file_is_told_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Outbox(path) as outbox:
        outbox.commit([small(number) for number in range(200)])
    whole = bytearray(path.read_bytes())
    whole[4096:40960] = bytes(40960 - 4096)
    path.write_bytes(whole)
    with pytest.raises(OutboxError, match="move it away"):
        Outbox(path)
    assert path.read_bytes() == bytes(whole)


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    with pytest.raises(OutboxError, match="another program"):
        Outbox(path)


def test_an_outbox_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    Outbox(path).close()
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    with pytest.raises(OutboxError, match=f"version {SCHEMA_VERSION + 1}.*update rust-edge"):
        Outbox(path)


COMMITTER = """
import sys
from pathlib import Path
from event_samples import event
from edge.sinks.outbox import Outbox, Progress

with Outbox(Path(sys.argv[1])) as outbox:
    for number in range(100_000):
        outbox.commit([event(number)], Progress("coil-1", number, b"", "config", "bundle"))
        print(number, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_committed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))}
    chance = random.Random(7)
    for round_ in range(3):
        path = tmp_path / f"{round_}.db"
        process = subprocess.Popen([sys.executable, "-c", COMMITTER, str(path)], stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(chance.randrange(5, 60))]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().splitlines(keepends=True)
        process.wait()
        last = int([line for line in told if line.endswith(b"\n")][-1])
        with Outbox(path) as outbox:
            kept = ids(outbox)
            # The one that was at work when it was killed may be there, told or not: with its progress.
            assert len(kept) in (last + 1, last + 2)
            assert kept == [event(number).event_id for number in range(len(kept))]
            resumed = outbox.unfinished_strip()
            assert resumed is not None
            assert resumed.resume_line == len(kept) - 1
