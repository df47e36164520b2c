"""A plugin of pytest by which the suite ends, and not with status 0, whatever a test or a process of it does."""

from __future__ import annotations

import faulthandler
import os
from typing import Any

import pytest

STDERR = pytest.StashKey[int]()  # a descriptor of stderr as it is outside of capturing
LOST = pytest.StashKey[bool]()  # a worker died


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[STDERR])


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Takes the place of pytest-timeout's own alarm: that is a thread of Python, which waits for ever for the lock of
    the interpreter where a call in C keeps it, and what it prints is lost in a worker of pytest-xdist."""
    faulthandler.dump_traceback_later(settings.timeout, exit=True, file=item.config.stash[STDERR])
    return True


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_cancel_timer() -> bool:
    faulthandler.cancel_dump_traceback_later()
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    node.config.stash[LOST] = node.config.stash.get(LOST, False) or bool(error)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where a worker dies between tests, as in an import, pytest-xdist fails none."""
    if session.config.stash.get(LOST, False) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
