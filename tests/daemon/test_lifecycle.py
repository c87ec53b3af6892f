"""A start that cannot work says why in one line; an end loses nothing that was accepted; a reload is whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyd.client import Client, Enrolment
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.protocol.messages.daemon import AskRandom, AskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import RawPeer, WriteConfig

    Connect = Callable[[str], RawPeer]

RANDOM = ("daemon.random", 8)


def start_and_fail(*arguments: str, status: int = os.EX_CONFIG) -> str:
    """Start a daemon that must not start; return what it says."""
    ended = subprocess.run(
        [sys.executable, "-m", "keyd.daemon", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == status, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("keyd: ")
    return line


# Starts -------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"cannot listen on {address}" in start_and_fail("--dev", "--tcp", address, status=1)


@pytest.mark.parametrize("address", ["nonsense", ":1", "127.0.0.1:", "127.0.0.1:99999", "a b:1"])
def test_an_address_that_is_none_is_said(address: str) -> None:
    assert address.rpartition(":")[0] in start_and_fail("--dev", "--tcp", address, status=1)


def test_a_plain_line_beyond_loopback_is_refused() -> None:
    assert "not a loopback address" in start_and_fail("--dev", "--tcp", "0.0.0.0:0", status=1)


def test_missing_and_broken_files_are_said(write_config: WriteConfig, tmp_path: Path) -> None:
    assert "cannot be read" in start_and_fail("--config", str(tmp_path / "none.toml"))
    arguments = write_config()
    config = tmp_path / "keyd.toml"
    good = config.read_text()
    config.write_text(good + "\nunknown = 1")
    assert "unknown" in start_and_fail(*arguments)
    config.write_text("[")
    assert "no TOML" in start_and_fail(*arguments)
    config.write_text(good)

    config.write_text(good + f'\n[terminals]\nauthorities = "{tmp_path}/none.pem"')
    assert "none.pem cannot be read" in start_and_fail(*arguments)
    config.write_text(good + f'\n[terminals]\nauthorities = "{config}"')
    assert "no certificate" in start_and_fail(*arguments)


def test_a_store_that_is_missing_or_no_store_is_said(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    arguments = write_config()
    store = tmp_path / "keyd.db"
    store.rename(tmp_path / "elsewhere.db")
    # Somebody may found it, or bring the database back: starting again may help.
    said = start_and_fail(*arguments, status=1)
    assert "store" in said
    assert not store.exists(), "a daemon founds nothing"
    store.write_bytes(b"no database at all\n" * 1000)
    store.chmod(0o600)
    said = start_and_fail(*arguments, status=1)
    assert str(store) in said or "store" in said
    store.unlink()
    (tmp_path / "elsewhere.db").rename(store)


def test_what_is_wrong_with_a_keeper_leaves_keyd_sealed_and_said(
    start_daemon: StartDaemon, write_config: WriteConfig, tmp_path: Path
) -> None:
    # People with shares can still open it: a daemon that does not start would be no help to them.
    arguments = write_config()
    credential = tmp_path / "seal.credential"
    good = credential.read_text()
    credential.write_text("5A" * 16)
    daemon = start_daemon(*arguments)
    assert daemon.ready["sealed"]
    assert daemon.wait_for("unsealing_refused")["detail"]
    daemon.terminate()
    credential.chmod(0o644)
    daemon = start_daemon(*arguments)
    assert daemon.ready["sealed"]
    said = daemon.wait_for("keeper_unusable")["detail"]
    assert "chmod 600" in said
    assert good not in daemon.output


def test_a_limit_that_the_system_does_not_grant_is_said(
    write_config: WriteConfig,
) -> None:
    arguments = write_config("[limits]", "connections = 5000")
    ended = subprocess.run(
        ["prlimit", "--nofile=500:500", sys.executable, "-m", "keyd.daemon", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert "LimitNOFILE" in ended.stderr


def test_a_stale_unix_socket_is_replaced_and_a_living_one_is_not(
    start_daemon: StartDaemon, tmp_path: Path, raw: Connect
) -> None:
    path = tmp_path / "keyd.sock"
    first = start_daemon("--unix", str(path))
    said = start_and_fail("--dev", "--tcp", "127.0.0.1:0", "--unix", str(path), status=1)
    assert "another process is listening" in said
    assert raw(first.unix).ask("daemon.status")[2] is None
    first.terminate(signal.SIGKILL)
    second = start_daemon("--unix", str(path))
    assert raw(second.unix).ask("daemon.status")[2] is None


# Ends ---------------------------------------------------------------------------------------------------


def test_sigterm_answers_what_was_accepted_and_exits_0(daemon: RunningDaemon, raw: Connect) -> None:
    peers = [raw(daemon.address) for _ in range(4)]
    for peer in peers:
        peer.authenticate()
    count = 2000
    for peer in peers:
        peer.sock.sendall(b"".join(peer.encode(*RANDOM, msgid=n) for n in range(count)))
    daemon.process.send_signal(signal.SIGTERM)
    for peer in peers:
        assert [answer[1] for answer in peer.answers()] == list(range(count))
    assert daemon.process.wait(20) == 0


def test_sigterm_waits_for_slow_work(daemon: RunningDaemon, raw: Connect) -> None:
    peer = raw(daemon.address)
    peer.authenticate()
    peer.send("daemon.selftest")
    peer.send(*RANDOM)
    peer.answer()  # the second one: the first is under way
    daemon.process.send_signal(signal.SIGTERM)
    (answer,) = peer.answers()
    assert answer[2] is None
    assert daemon.process.wait(20) == 0


def test_sigterm_with_idle_connections_ends_soon_after_they_leave(
    daemon: RunningDaemon, raw: Connect
) -> None:
    peers = [raw(daemon.address) for _ in range(20)]
    daemon.process.send_signal(signal.SIGTERM)
    for peer in peers:
        assert list(peer.answers()) == []
        peer.close()
    assert daemon.process.wait(20) == 0
    assert daemon.wait_for("stopped")


def test_a_draining_daemon_takes_no_new_connections(daemon: RunningDaemon, raw: Connect) -> None:
    peer = raw(daemon.address)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("draining")
    assert list(peer.answers()) == []
    with pytest.raises(OSError, match=r"refused|reset"):
        raw(daemon.address).ask(*RANDOM)


def test_a_second_sigterm_ends_at_once(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect
) -> None:
    daemon = start_daemon(*write_config("[limits]", "drain_seconds = 600", "write_seconds = 600"))
    peer = raw(daemon.address)
    peer.authenticate()
    # A peer that does not read keeps the drain waiting.
    peer.sock.setblocking(False)
    while True:
        try:
            peer.sock.send(peer.encode("daemon.status") * 100)
        except BlockingIOError:
            break
    time.sleep(0.3)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("draining")
    time.sleep(0.3)
    assert daemon.process.poll() is None
    assert daemon.terminate() == 0
    assert daemon.wait_for("stopped_at_once")


def test_a_drain_has_an_end(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect
) -> None:
    daemon = start_daemon(*write_config("[limits]", "drain_seconds = 0.5", "write_seconds = 600"))
    peer = raw(daemon.address)
    peer.authenticate()
    peer.sock.setblocking(False)
    while True:
        try:
            peer.sock.send(peer.encode("daemon.status") * 100)
        except BlockingIOError:
            break
    assert daemon.terminate() == 0


# Reloads ------------------------------------------------------------------------------------------------


def test_a_reload_changes_how_terminals_prove_themselves(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Callable[[str], RawPeer]
) -> None:
    daemon = start_daemon(*write_config())
    peer = raw(daemon.address)
    assert peer.ask("terminal.challenge", "DEV-0001", bytes(16))[3][1] == 30
    write_config("[terminals]", "challenge_seconds = 7")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    assert peer.ask("terminal.challenge", "DEV-0001", bytes(16))[3][1] == 7


def test_a_wrong_reload_keeps_everything_as_it_was(
    start_daemon: StartDaemon, write_config: WriteConfig, tmp_path: Path
) -> None:
    daemon = start_daemon(*write_config())
    with client(daemon, "DEV-0001") as terminal:
        terminal.ask(AskRandom(8))
        write_config("[terminals]", f'authorities = "{tmp_path}/none.pem"', "challenge_seconds = 7")
        daemon.process.send_signal(signal.SIGHUP)
        refused = daemon.wait_for("reload_refused")
        assert "none.pem cannot be read" in refused["detail"]
        terminal.ask(AskRandom(8))


def test_a_configured_daemon_tells_its_keys_by_check_value(
    start_daemon: StartDaemon, write_config: WriteConfig
) -> None:
    daemon = start_daemon(*write_config())
    with Client(daemon.unix) as operator:
        state = operator.ask(AskStatus())
    assert len(state.keys) == 156
    assert not state.synthetic_keys
    assert all(len(key.kcv) == 3 for key in state.keys)
    assert all(test.passed for test in state.selftest)


def client(daemon: RunningDaemon, code: str) -> Client:
    """Return a client of that terminal."""
    return Client(daemon.address, Enrolment(code, synthetic_terminal_key(code)))


def test_keyd_serve_becomes_the_daemon() -> None:
    script = Path(sys.executable).with_name("keyd")
    process = subprocess.Popen(
        [script, "serve", "--dev", "--tcp", "127.0.0.1:0", "--operations", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    with process.stderr as log:
        for line in log:
            if '"ready"' in line:
                assert f'"pid": {process.pid}' in line
                break
        process.send_signal(signal.SIGTERM)
        log.read()
    assert process.wait(20) == 0
