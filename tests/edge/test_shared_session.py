"""One engine for several threads: what waits together goes in together, and nobody's answer is another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from toy_engines import write_segmenter

from edge.errors import SessionError
from edge.sessions import Batch, Scores
from edge.sessions.ort import OrtSession
from edge.sessions.shared import SharedSession


class HeldSession:
    """An engine that notes the batches it is asked, and answers none as long as it is held."""

    def __init__(self, session: OrtSession) -> None:
        self.backend, self.steps = session.backend, session.steps
        self.batches: list[Batch] = []
        self.go = threading.Event()
        self.go.set()
        self.faulty: set[int] = set()
        self._session = session

    def infer(self, batch: Batch) -> Scores:
        self.batches.append(batch.copy())
        assert self.go.wait(60)
        if len(self.batches) in self.faulty:
            raise SessionError(f"batch {len(self.batches)} is beyond me")
        return self._session.infer(batch)

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        self._session.prepare(shape)

    def __enter__(self) -> HeldSession:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Asker(threading.Thread):
    """One caller, and what became of its question."""

    def __init__(self, shared: SharedSession, batch: Batch) -> None:
        super().__init__(daemon=True)
        self.batch, self._shared = batch, shared
        self.answer: Scores | None = None
        self.error: SessionError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._shared.infer(self.batch)
        except SessionError as error:
            self.error = error


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrtSession]:
    bundle = write_segmenter(tmp_path_factory.mktemp("engine") / "toy")
    with OrtSession((bundle / "model.onnx").read_bytes(), threads=1) as session:
        yield session


@pytest.fixture
def held(engine: OrtSession) -> HeldSession:
    return HeldSession(engine)


def tiles(count: int, seed: int, side: int = 16) -> Batch:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, side, side), dtype=np.uint8)


def ask_while_busy(held: HeldSession, shared: SharedSession, batches: list[Batch]) -> list[Asker]:
    """The first batch is with the engine, and the others arrive one after the other; then it answers."""
    held.go.clear()
    askers = []
    for arrived, batch in enumerate(batches):
        askers.append(Asker(shared, batch))
        until(lambda: len(held.batches) == 1 and len(shared._waiting) == arrived)  # noqa: B023
    held.go.set()
    for asker in askers:
        asker.join(60)
        assert not asker.is_alive()
    return askers


def until(condition: Callable[[], bool]) -> None:
    ticks = iter(range(6000))
    while not condition():
        assert next(ticks, None) is not None, "it never happened"
        threading.Event().wait(0.01)


def test_tiles_that_arrive_while_the_engine_is_busy_are_one_batch_and_each_gets_the_answers_to_its_own(
    held: HeldSession, engine: OrtSession
) -> None:
    shared = SharedSession(held)
    shared.prepare((8, 1, 16, 16))
    batches = [tiles(2, 1), tiles(3, 2), tiles(1, 3), tiles(4, 4)]
    askers = ask_while_busy(held, shared, batches)
    assert [len(batch) for batch in held.batches] == [2, 8]
    np.testing.assert_array_equal(held.batches[1], np.concatenate(batches[1:]))
    for asker in askers:
        np.testing.assert_array_equal(asker.answer, engine.infer(asker.batch))
    assert (shared.batches, shared.joint) == (2, 1)


def test_a_batch_grows_no_larger_than_was_prepared_and_who_waits_longest_is_in_the_next(held: HeldSession) -> None:
    shared = SharedSession(held)
    shared.prepare((4, 1, 16, 16))
    askers = ask_while_busy(held, shared, [tiles(1, 1), tiles(3, 2), tiles(2, 3), tiles(1, 4), tiles(2, 5)])
    assert [len(batch) for batch in held.batches] == [1, 4, 4]
    np.testing.assert_array_equal(held.batches[1], np.concatenate([askers[1].batch, askers[3].batch]))
    np.testing.assert_array_equal(held.batches[2], np.concatenate([askers[2].batch, askers[4].batch]))


def test_what_nothing_was_prepared_for_goes_in_as_it_came(held: HeldSession) -> None:
    shared = SharedSession(held)
    shared.prepare((2, 1, 16, 16))
    ask_while_busy(held, shared, [tiles(1, 1), tiles(1, 2, side=32), tiles(5, 3), tiles(1, 4, side=32)])
    assert [batch.shape for batch in held.batches] == [(1, 1, 16, 16), (1, 1, 32, 32), (5, 1, 16, 16), (1, 1, 32, 32)]


def test_tiles_of_another_shape_have_their_turn_in_order_of_arrival(held: HeldSession) -> None:
    shared = SharedSession(held)
    for side in (16, 32):
        shared.prepare((8, 1, side, side))
    ask_while_busy(held, shared, [tiles(1, 1), tiles(1, 2, side=32), tiles(1, 3), tiles(1, 4, side=32), tiles(1, 5)])
    assert [(len(batch), batch.shape[2]) for batch in held.batches] == [(1, 16), (2, 32), (2, 16)]


def test_an_answer_stays_what_it_is_when_the_engine_is_asked_again(held: HeldSession) -> None:
    shared = SharedSession(held)
    first = shared.infer(tiles(3, 1))
    kept = first.copy()
    shared.infer(tiles(3, 2))
    np.testing.assert_array_equal(first, kept)
    assert (shared.batches, shared.joint) == (2, 0)


def test_what_a_batch_fails_of_each_of_its_callers_is_told_and_the_next_one_is_answered(
    held: HeldSession, engine: OrtSession
) -> None:
    shared = SharedSession(held)
    shared.prepare((4, 1, 16, 16))
    held.faulty = {2}
    askers = ask_while_busy(held, shared, [tiles(1, 1), tiles(2, 2), tiles(2, 3), tiles(3, 4)])
    assert [str(asker.error) for asker in askers] == ["None", "batch 2 is beyond me", "batch 2 is beyond me", "None"]
    assert askers[1].error is not askers[2].error
    np.testing.assert_array_equal(askers[3].answer, engine.infer(askers[3].batch))


def test_an_engine_that_dies_of_anything_is_a_session_error_and_nobody_waits_for_ever(held: HeldSession) -> None:
    shared = SharedSession(held)
    held._session = None  # type: ignore[assignment]
    (asker,) = ask_while_busy(held, shared, [tiles(1, 1)])
    assert str(asker.error).startswith("ort died: AttributeError: ")


def test_many_threads_with_tiles_of_many_sizes_get_what_each_would_get_alone(
    engine: OrtSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = OrtSession.infer

    def slow(session: OrtSession, batch: Batch) -> Scores:
        time.sleep(0.001)  # the others ask meanwhile
        return infer(session, batch)

    monkeypatch.setattr(OrtSession, "infer", slow)
    shared = SharedSession(engine)
    for side in (16, 20):
        shared.prepare((6, 1, side, side))
    wrong: list[int] = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for question in range(60):
            batch = tiles(int(rng.integers(1, 5)), seed * 1000 + question, side=int(rng.choice([16, 20])))
            mask = shared.infer(batch).argmax(axis=1)
            # the segmenter's classes by arithmetic: dark below 64, bright above 192
            told = np.where(batch[:, 0] < 64, 1, np.where(batch[:, 0] > 192, 2, 0))
            if not np.array_equal(mask, told):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong
    assert shared.joint > 0
    assert shared.batches < 360
