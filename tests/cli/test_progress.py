"""What is said of the progress of a run where stderr is no terminal, by a clock that costs no time."""

from __future__ import annotations

from queue import Queue
from threading import Event
from typing import Any

import pytest
from helpers.toys import Run, arguments

from smoothfast.cli import progress
from smoothfast.cli.progress import EVERY, Found, Lines
from smoothfast.runs.logs import Row
from smoothfast.text import duration, rate

pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Turns(Event):
    """An end that is waited for as long as a test wants: `pass_by` lets a wait run out, and waits for the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Queue[float | None] = Queue()
        self.answers: Queue[bool] = Queue()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.put(timeout)
        return self.answers.get()

    def set(self) -> None:
        self.answers.put(True)

    def pass_by(self) -> float | None:
        self.answers.put(False)
        return self.waits.get()


def row(decision: str, predict: int) -> Row:
    return Row(0, 1, predict, 0.1, 0.0, 1, 1, 0, 0, 0.9, 0.1, decision)


def test_a_line_every_half_minute_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock, turns, found = Clock(), Turns(), Found()
    with Lines("images", 200, 10, found.text, clock=clock, ended=turns) as lines:
        assert turns.waits.get() == EVERY == 30
        clock.now = 30
        turns.pass_by()  # amid the first image
        for decision, predict in (("certified", 1), ("certified", 2), ("undecided", -1)):
            found.add(row(decision, predict))
            lines()
        clock.now = 60
        turns.pass_by()
    told = "images: 13 of 200 done, 187 left; 3 a minute, 1 h 2 min left; 1 min 0 s so far; "
    told += "2 certified, 1 undecided, accuracy 0.333"
    first = "images: 10 of 200 done, 190 left; 30 s so far"
    assert capsys.readouterr().err.splitlines() == [first, told, told]


def test_a_short_run_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.over([1, 2], "images", 2)) == [1, 2]
    with progress.at("bench tally"):
        pass
    assert capsys.readouterr().err == ""


def test_a_total_that_nobody_knows() -> None:
    clock = Clock()
    lines = Lines("bench tally", None, clock=clock)
    clock.now = 95
    assert lines.text() == "bench tally: 1 min 35 s so far"


def test_a_thread_does_not_outlive_what_fails() -> None:
    steps = progress.over(iter([1, 2]), "images", 2)
    next(steps)
    steps.close()
    with pytest.raises(ZeroDivisionError), Lines("images", 2) as lines:
        raise ZeroDivisionError
    assert not lines._thread.is_alive()


@pytest.mark.parametrize("command", ["certify", "predict"])
def test_a_run_says_how_far_it_is(run: Run, toys: Any, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "__enter__", lambda self: self)  # no thread
    monkeypatch.setattr(Lines, "__exit__", lambda self, *_: self._say())
    result = run(*arguments(command, toys))
    assert "images: 7 of 7 done, 0 left; " in result.err
    assert "1 undecided, accuracy 0.714" in result.err
    assert "images:" not in run(*arguments(command, toys, out="other.tsv"), "--quiet").err


def test_words_for_times_and_rates() -> None:
    assert [duration(seconds) for seconds in (0.04, 9.94, 9.96, 59.7, 258, 3600, 7530, 90_000, 10**7)] == [
        "0.0 s", "9.9 s", "10 s", "1 min 0 s", "4 min 18 s", "1 h 0 min", "2 h 5 min", "1 d 1 h", "115 d 17 h",
    ]  # fmt: skip
    assert [rate(value) for value in (1234.5, 12.34, 0.5, 0.01, 0.0001)] == [
        "1,234 a second", "12.3 a second", "30 a minute", "36 an hour", "0.36 an hour",
    ]  # fmt: skip
