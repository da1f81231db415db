"""systemd's environment variables."""

import os
import socket
from pathlib import Path

import pytest
from tidewire import AddressError, _systemd


def test_descriptors_begin_at_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    listen = ["127.0.0.1:80", "systemd", "unix:/x"]
    assert _systemd.expand(listen) == ["127.0.0.1:80", "fd:3", "fd:4", "unix:/x"]


@pytest.mark.parametrize(
    ("pid", "count"), [("1", "1"), (None, "0"), (None, "-1"), (None, "x"), (None, "")]
)
def test_what_is_not_for_us_is_no_socket(
    monkeypatch: pytest.MonkeyPatch, pid: str | None, count: str
) -> None:
    monkeypatch.setenv("LISTEN_PID", pid or str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(AddressError, match="handed over no socket"):
        _systemd.expand(["systemd"])


@pytest.mark.parametrize("abstract", [False, True])
def test_news_go_to_files_and_abstract_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"{'@' if abstract else ''}{tmp_path}/notify"
        manager.bind(f"\0{name[1:]}" if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert _systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("where", ["", "relative", "/nonexistent/notify"])
def test_no_manager_is_no_error(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", where)
    assert not _systemd.notify("READY=1")
