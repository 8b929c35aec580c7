"""Where events wait until the broker has acknowledged them: one SQLite file, which also holds how far a strip has come.

A commit is on disk when it returns (WAL, synchronous=FULL), events and progress together or not at all. Order is that
of commits. One connection behind one lock serves the inference thread, which commits, and the publisher thread, which
reads and acknowledges: SQLite has one writer anyway, and a lock hands over at once where its own busy handler sleeps.
The file is locked against other processes: two stations on one outbox would publish each other's events.

Source: SQLite documentation, "Write-Ahead Logging", "PRAGMA synchronous", "PRAGMA locking_mode".
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edge.errors import OutboxError
from edge.events import OutgoingEvent

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x52454447  # "REDG": tells this file from any other SQLite database
_TABLES = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    topic_suffix TEXT NOT NULL,
    type TEXT NOT NULL,
    strip_id TEXT NOT NULL,
    is_update INTEGER NOT NULL,
    written_s REAL NOT NULL,
    size INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX events_by_worth ON events (is_update DESC, seq);
CREATE TABLE dropped (type TEXT PRIMARY KEY, events INTEGER NOT NULL);
CREATE TABLE progress (
    strip_id TEXT PRIMARY KEY,
    resume_line INTEGER NOT NULL,
    state BLOB NOT NULL,
    config_hash TEXT NOT NULL,
    bundle_hash TEXT NOT NULL,
    finished INTEGER NOT NULL,
    written_s REAL NOT NULL
);
"""
_BUSY_TIMEOUT_S = 5.0
"""A supervisor may start the next daemon while the last one is still dying; its lock goes with it."""
_AGE_CHECK_S = 60.0
"""Ages are limited in hours: looking once a minute is exact enough."""
_DROP_BATCH = 64
"""Rows looked at together when room is made; bounds memory, changes nothing else."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a strip has come: where to go on after a crash, and what the tracker knew there (opaque).

    resume_line: first line to be fed again. config_hash, bundle_hash: what the state was made with; a resumption with
    others would not give the same defects.
    """

    strip_id: str
    resume_line: int
    state: bytes
    config_hash: str
    bundle_hash: str
    finished: bool = False


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """An event in the outbox. `seq` grows with every commit and is never used again."""

    seq: int
    event: OutgoingEvent


class Outbox:
    """Events that wait, in order, and the progress of strips. Thread-safe. Raises OutboxError from every method.

    max_mb: limit of what waits (payloads and names; the file takes up to twice that, and never shrinks). max_age_h: what
    has waited longer goes. Beyond either the oldest go, and beyond `max_mb` updates before all others; `dropped` counts
    them for good. An event may be dropped while it is on its way to the broker: then it is counted and arrives.
    """

    def __init__(self, path: Path, max_mb: float = 512.0, max_age_h: float = 720.0) -> None:
        self.path = path
        self._max_bytes = int(max_mb * 1e6)
        self._max_age_s = max_age_h * 3600.0
        self._lock = threading.Lock()
        self._next_age_check = 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutboxError(
                f"{path}: its folder cannot be made ({error.strerror}); expected outbox.path in a folder "
                "that this user may write to"
            ) from error
        with self._explained("open"):
            self._database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            with self._explained("open"):
                self._open()
        except BaseException:
            self._database.close()
            raise

    def _open(self) -> None:
        run = self._database.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        application, version = run("PRAGMA application_id").fetchone()[0], run("PRAGMA user_version").fetchone()[0]
        fresh = run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not fresh and application != _APPLICATION_ID:
            raise OutboxError(f"{self.path}: a database of another program; expected outbox.path to be free or an outbox")
        if version > SCHEMA_VERSION:
            raise OutboxError(
                f"{self.path}: outbox version {version}, made by a newer rust-edge; expected at most "
                f"{SCHEMA_VERSION}: update rust-edge, or name another path"
            )
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("BEGIN IMMEDIATE")
        if fresh:
            for statement in _TABLES.split(";"):
                run(statement)
            run(f"PRAGMA application_id = {_APPLICATION_ID}")
            run(f"PRAGMA user_version = {SCHEMA_VERSION}")
        run("COMMIT")
        found = run("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(f"malformed: {found}")
        self._depth: int
        self._bytes: int
        self._depth, self._bytes = run("SELECT count(*), ifnull(sum(size), 0) FROM events").fetchone()
        self._dropped: Counter[str] = Counter(dict(run("SELECT type, events FROM dropped").fetchall()))

    def commit(self, events: Sequence[OutgoingEvent], progress: Progress | None = None) -> None:
        """Store events and progress in one transaction; on disk when it returns.

        An event whose id still waits is not stored again: it keeps its place in the order.
        """
        now = time.time()
        with self._lock, self._transaction("store events") as tally:
            for event in events:
                size = len(event.payload) + sum(map(len, (event.event_id, event.topic_suffix, event.type, event.strip_id)))
                added = self._database.execute(
                    "INSERT OR IGNORE INTO events (event_id, topic_suffix, type, strip_id, is_update, written_s, size, payload)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (event.event_id, event.topic_suffix, event.type, event.strip_id, event.is_update, now, size, event.payload),
                ).rowcount
                tally.depth += added
                tally.bytes += size * added
            if progress is not None:
                self._store_progress(progress, now)
            self._make_room(tally, now)

    def _store_progress(self, progress: Progress, now: float) -> None:
        # A strip that is finished is of no use once another one has begun.
        self._database.execute("DELETE FROM progress WHERE finished AND strip_id != ?", (progress.strip_id,))
        self._database.execute(
            "INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                progress.strip_id,
                progress.resume_line,
                progress.state,
                progress.config_hash,
                progress.bundle_hash,
                progress.finished,
                now,
            ),
        )

    def _make_room(self, tally: _Tally, now: float) -> None:
        if time.monotonic() >= self._next_age_check:
            self._next_age_check = time.monotonic() + _AGE_CHECK_S
            self._drop_while(lambda written_s: written_s < now - self._max_age_s, "seq", tally)
        self._drop_while(lambda _: tally.bytes > self._max_bytes, "is_update DESC, seq", tally)

    def _drop_while(self, excess: Callable[[float], bool], order: str, tally: _Tally) -> None:
        while True:
            rows = self._database.execute(
                f"SELECT seq, type, size, written_s FROM events ORDER BY {order} LIMIT {_DROP_BATCH}"
            ).fetchall()
            for seq, type_, size, written_s in rows:
                if not excess(written_s):
                    return
                self._drop(seq, type_, size, tally)
            if len(rows) < _DROP_BATCH:
                return

    def _drop(self, seq: int, type_: str, size: int, tally: _Tally) -> None:
        self._database.execute("DELETE FROM events WHERE seq = ?", (seq,))
        self._database.execute("INSERT OR IGNORE INTO dropped VALUES (?, 0)", (type_,))
        self._database.execute("UPDATE dropped SET events = events + 1 WHERE type = ?", (type_,))
        tally.depth -= 1
        tally.bytes -= size
        tally.dropped[type_] += 1

    def pending(self, after_seq: int = 0, limit: int = 20) -> list[WaitingEvent]:
        """The oldest events behind `after_seq`, in order, at most `limit`."""
        with self._lock, self._explained("read events"):
            rows = self._database.execute(
                "SELECT seq, topic_suffix, event_id, type, strip_id, payload FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
                (after_seq, limit),
            ).fetchall()
        return [WaitingEvent(row[0], OutgoingEvent(*row[1:])) for row in rows]

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Remove events that the broker has taken over.

        Not synced: after a power cut some of them may be there again and are delivered twice, which ids tell. The next
        commit syncs this too. So the publisher costs the inference thread no wait for the disk.
        """
        with self._lock, self._unsynced(), self._transaction("remove acknowledged events") as tally:
            for seq in seqs:
                row = self._database.execute("SELECT size FROM events WHERE seq = ?", (seq,)).fetchone()
                if row is not None:
                    self._database.execute("DELETE FROM events WHERE seq = ?", (seq,))
                    tally.depth -= 1
                    tally.bytes -= row[0]

    def drop(self, seq: int) -> None:
        """Give up an event that can never be delivered; it is counted."""
        with self._lock, self._transaction("drop an event") as tally:
            row = self._database.execute("SELECT type, size FROM events WHERE seq = ?", (seq,)).fetchone()
            if row is not None:
                self._drop(seq, row[0], row[1], tally)

    def depth(self) -> int:
        """Events that wait."""
        return self._depth

    def megabytes(self) -> float:
        """What they take, in 10^6 bytes, as `max_mb` counts."""
        return self._bytes / 1e6

    def dropped(self) -> dict[str, int]:
        """Events given up since the outbox was made, by type."""
        with self._lock:
            return dict(self._dropped)

    def progress(self, strip_id: str) -> Progress | None:
        """How far a strip has come; None if nothing is known of it."""
        return self._one_progress("strip_id = ?", strip_id)

    def unfinished_strip(self) -> Progress | None:
        """The strip that was last at work and never finished."""
        return self._one_progress("finished = ? ORDER BY written_s DESC LIMIT 1", 0)

    def _one_progress(self, condition: str, value: str | int) -> Progress | None:
        columns = "strip_id, resume_line, state, config_hash, bundle_hash, finished"
        with self._lock, self._explained("read progress"):
            row = self._database.execute(f"SELECT {columns} FROM progress WHERE {condition}", (value,)).fetchone()
        return Progress(row[0], row[1], row[2], row[3], row[4], bool(row[5])) if row else None

    def emit(self, events: Sequence[OutgoingEvent]) -> None:
        """Commit events without progress."""
        self.commit(events)

    def flush(self) -> None:
        """Nothing is left to do: every commit is on disk when it returns."""

    def close(self) -> None:
        """Close the file; harmless a second time."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _transaction(self, what: str) -> Iterator[_Tally]:
        """All of the block or nothing; the counters in memory follow only if it succeeded."""
        tally = _Tally(self._depth, self._bytes, Counter())
        with self._explained(what):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield tally
                self._database.execute("COMMIT")
            except BaseException:
                # SQLite itself rolls back some failures, a full disk among them.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        self._depth, self._bytes = tally.depth, tally.bytes
        self._dropped += tally.dropped

    @contextmanager
    def _unsynced(self) -> Iterator[None]:
        with self._explained("remove acknowledged events"):
            self._database.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            with self._explained("remove acknowledged events"):
                self._database.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutboxError(f"{self.path}: cannot {what} ({error}); {_advice(str(error))}") from error


@dataclass(slots=True)
class _Tally:
    depth: int
    bytes: int
    dropped: Counter[str]


def _advice(message: str) -> str:
    # Messages, since error codes reach Python only with 3.11. Source: sqlite3.c, sqlite3ErrStr.
    if "full" in message:
        return "make room on the disk, or name another outbox.path"
    if "locked" in message:
        return "another process has it open: give every station its own outbox.path"
    if "not a database" in message or "malformed" in message:
        return "move it away, or name another outbox.path; what is in it cannot be read any more"
    if "unable to open" in message or "readonly" in message:
        return "expected outbox.path to be a file in a folder that this user may write to"
    return "look at the disk, or name another outbox.path"
