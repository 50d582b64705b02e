"""D1: what is said to be on disk is asked for by the call that puts it there."""

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from kbctld.durable import sync, sync_path

FULL = 51
"""F_FULLFSYNC, which only macOS has."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the system is asked for."""
    calls: list[str] = []

    def told(name: str) -> Callable[..., None]:
        return lambda *_args: calls.append(name)

    monkeypatch.setattr(os, "fsync", told("fsync"))
    monkeypatch.setattr(fcntl, "fcntl", lambda _fd, command: calls.append(f"fcntl {command}"))
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL, raising=False)
    return calls


def test_linux_syncs_a_file_and_a_folder(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    sync(3)
    sync_path(tmp_path)
    assert asked == ["fsync", "fsync"]


def test_macos_empties_the_drive_s_cache_too(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    sync(3)
    assert asked == [f"fcntl {FULL}"]


@pytest.mark.parametrize(("code", "then"), [(errno.ENOTSUP, ["fsync"]), (errno.EIO, []), (errno.ENOSPC, [])])
def test_only_who_does_not_know_the_one_gets_the_other(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, code: int, then: list[str]
) -> None:
    """An fsync after a sync that failed can succeed though the data is gone."""

    def refuse(_fd: int, _command: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with nullcontext() if then else pytest.raises(OSError, match=os.strerror(code)):
        sync(3)
    assert asked == then


def test_an_error_is_never_swallowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        sync_path(tmp_path)
