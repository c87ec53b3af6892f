"""Invariant: whoever watches keyd learns the truth, in the forms that the tools of the trade read, and learns
no secret; and whoever abuses the operations port or the log gets a bounded part of keyd and no more.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import memory_stream_pair

from keyd.crypto.algorithms import Algorithm
from keyd.errors import Status
from keyd.keys.synthetic import synthetic_root, synthetic_terminal_key
from keyd.ops import MAX_CONNECTIONS, MAX_REQUEST_BYTES, REQUEST_SECONDS, Operations
from keyd.protocol.commands import BATCHES, TABLE
from keyd.protocol.messages.daemon import AskRandom
from keyd.telemetry import MAX_PEER_LINES_PER_SECOND, Events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

    from keyd.client import Client
    from tests.conftest import RunningDaemon, StartDaemon
    from tests.daemon.conftest import RawPeer, WriteConfig

    Connect = Callable[[str], RawPeer]

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "conf" / "prometheus-alerts.yml"
MANUAL = ROOT / "docs" / "operations.md"

PIN: Final = "86420975"

# The specification's sample card, with the algorithm left open.
CARD_ID: Final = bytes.fromhex("639900D15600000500BF7C7A48FB4966")
HISTORICAL: Final = bytes.fromhex("00814E43238697159900BF7C7A")
SM4, SSF33, THIRD = 3, 2, 3
FACTOR: Final = bytes(8)
SOFTWARE: Final = (Algorithm.SM4, Algorithm.TDES, Algorithm.DES)


def ask(address: str, path: str, method: str = "GET", body: str | None = None) -> tuple[int, str]:
    """Ask the operations port with Python's own HTTP client; return status and body."""
    host, _, port = address.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def say(address: str, data: bytes) -> bytes:
    """Send bytes to the operations port and return all that comes back."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as sock:
        answer = b""
        # A peer that sends too much may be reset before it has sent or read all of it.
        try:
            sock.sendall(data)
            while part := sock.recv(65536):
                answer += part
        except ConnectionError:
            pass
        return answer


def metrics(daemon: RunningDaemon) -> dict[str, Metric]:
    status, body = ask(daemon.operations, "/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(body)}


def samples(daemon: RunningDaemon, family: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Return the values of a counter or gauge by its labels."""
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for sample in metrics(daemon)[family].samples
        if not sample.name.endswith("_created")
    }


def promtool(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not here: install the Debian package prometheus")
    return subprocess.run(
        [path, *map(str, arguments)], input=text, capture_output=True, text=True, check=False
    )


def make_traffic(daemon: RunningDaemon, raw: Connect) -> RawPeer:
    """Let every kind of metric have something to say; return the peer that is still connected."""
    peer = raw(daemon.address)
    assert peer.ask("daemon.status")[2][1] == "NOT_AUTHENTICATED"
    peer.authenticate()
    assert peer.ask("daemon.random", 8)[2] is None
    assert peer.ask("no.such_method")[2][1] == "METHOD_UNKNOWN"
    items = [[[CARD_ID, HISTORICAL, algorithm, THIRD], FACTOR] for algorithm in (SM4, SSF33)]
    assert len(peer.ask("card.pin_unblock_batch", items)[3]) == 2
    broken = raw(daemon.address)
    broken.sock.sendall(b"\xc1")  # MessagePack never uses this byte
    assert broken.answer()[2][1] == "MALFORMED"
    broken.close()
    daemon.wait_for("connection_closed")
    return peer


# Metrics. ----------------------------------------------------------------------------------------------------


def test_metrics_tell_what_happened(daemon: RunningDaemon, raw: Connect) -> None:
    make_traffic(daemon, raw)
    requests = samples(daemon, "keyd_requests")
    expected = {
        ("daemon.status", "NOT_AUTHENTICATED"): 1,
        ("terminal.challenge", "OK"): 1,
        ("terminal.authenticate", "OK"): 1,
        ("daemon.random", "OK"): 1,
        # A peer must not make up label values.
        ("unknown", "METHOD_UNKNOWN"): 1,
        ("card.pin_unblock_batch", "OK"): 1,
        ("card.pin_unblock_batch", "ALGORITHM_NOT_SUPPORTED"): 1,
    }
    assert requests == {
        (("method", method), ("status", status)): count
        for (method, status), count in expected.items()
    }
    assert samples(daemon, "keyd_connections") == {(): 1}
    assert samples(daemon, "keyd_connections_opened") == {(): 2}
    assert samples(daemon, "keyd_connections_closed") == {(("reason", "malformed"),): 1}
    assert set(samples(daemon, "keyd_selftest_passed").values()) == {1}
    assert sum(samples(daemon, "keyd_keys_loaded").values()) == daemon.ready["keys"]
    assert samples(daemon, "keyd_keys_synthetic") == {(): 1}
    assert samples(daemon, "keyd_terminals_enrolled") == {(): daemon.ready["terminals"]}
    ((build, one),) = samples(daemon, "keyd_build_info").items()
    assert (dict(build)["version"], one) == (daemon.ready["version"], 1)


def test_histograms_are_cumulative_and_agree_with_the_counts(
    start_daemon: StartDaemon, raw: Connect, tmp_path: Path
) -> None:
    daemon = start_daemon("--journal", str(tmp_path / "journal"), "--durability", "fsync")
    make_traffic(daemon, raw)
    families = metrics(daemon)
    histograms = {name: family for name, family in families.items() if family.type == "histogram"}
    assert set(histograms) == {
        "keyd_request_duration_seconds",
        "keyd_request_compute_seconds",
        "keyd_tick_requests",
        "keyd_journal_append_seconds",
        "keyd_journal_sync_seconds",
        "keyd_tls_handshake_seconds",
    }
    # This daemon has no encrypted line.
    del histograms["keyd_tls_handshake_seconds"]
    for name, family in histograms.items():
        buckets = [
            (float(sample.labels["le"]), sample.value)
            for sample in family.samples
            if sample.name == f"{name}_bucket"
        ]
        values = {sample.name: sample.value for sample in family.samples}
        assert buckets == sorted(buckets)
        assert [count for _, count in buckets] == sorted(count for _, count in buckets)
        assert buckets[-1] == (float("inf"), values[f"{name}_count"])
        assert values[f"{name}_count"] > 0
        assert values[f"{name}_sum"] > 0


def test_names_follow_the_prometheus_conventions(daemon: RunningDaemon, raw: Connect) -> None:
    make_traffic(daemon, raw)
    for name, family in metrics(daemon).items():
        assert re.fullmatch(r"keyd(_[a-z]+)+", name)
        assert re.fullmatch(r"[A-Z].*\.", family.documentation), name
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith(("_total", "_created"))
            assert all(re.fullmatch(r"[a-z]+", label) for label in sample.labels)
    known = {"unknown", *TABLE, *BATCHES}
    assert {dict(labels)["method"] for labels in samples(daemon, "keyd_requests")} <= known


def test_promtool_finds_nothing_to_complain_of(daemon: RunningDaemon, raw: Connect) -> None:
    make_traffic(daemon, raw)
    checked = promtool("check", "metrics", text=ask(daemon.operations, "/metrics")[1])
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# Liveness and readiness. -------------------------------------------------------------------------------------


def test_a_serving_daemon_is_alive_and_ready(daemon: RunningDaemon) -> None:
    assert ask(daemon.operations, "/livez") == (200, "alive\n")
    assert ask(daemon.operations, "/readyz") == (200, "ready\n")
    assert ask(daemon.operations, "/readyz?verbose=1") == (200, "ready\n")


def test_a_draining_daemon_is_alive_and_not_ready(daemon: RunningDaemon, raw: Connect) -> None:
    peer = raw(daemon.address)
    daemon.wait_for("connection_opened")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("draining")
    # It has said goodbye to the peer and waits a little for the peer to hang up too.
    assert ask(daemon.operations, "/readyz") == (503, "draining\n")
    assert ask(daemon.operations, "/livez") == (200, "alive\n")
    assert "keyd_connections 1.0" in ask(daemon.operations, "/metrics")[1]
    peer.close()
    assert daemon.process.wait(10) == 0


def test_head_is_get_without_the_body(daemon: RunningDaemon) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/nothing"):
        assert ask(daemon.operations, path, "HEAD") == (ask(daemon.operations, path)[0], "")


# Requests that are none of ours. -----------------------------------------------------------------------------


def test_other_paths_and_methods(daemon: RunningDaemon) -> None:
    for path in ("/", "/metrics/", "/METRICS", "/livez/../metrics", "//metrics", "/%6Detrics"):
        assert ask(daemon.operations, path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        status, body = ask(daemon.operations, "/metrics", method)
        assert (status, body[:8]) == (405, "only GET"), method
    assert ask(daemon.operations, "/livez", "POST", body="x" * 100)[0] == 405


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\xff garbage\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400"),  # HTTP/1.1 without Host
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", b"400"),  # a TLS ClientHello
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /" + b"a" * (MAX_REQUEST_BYTES + 1), b"431"),
    ],
)
def test_garbage_is_answered_and_cut_off(daemon: RunningDaemon, data: bytes, status: bytes) -> None:
    assert say(daemon.operations, data).split(b" ", 2)[1] == status
    assert ask(daemon.operations, "/livez")[0] == 200


def test_a_huge_request_is_not_taken_in(daemon: RunningDaemon) -> None:
    before = resident_bytes(daemon)
    for _ in range(4):
        say(daemon.operations, b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 16_000_000)
    assert resident_bytes(daemon) - before < 4_000_000
    assert ask(daemon.operations, "/livez")[0] == 200


def resident_bytes(daemon: RunningDaemon) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def test_more_connections_than_there_may_be(daemon: RunningDaemon, raw: Connect) -> None:
    held = [raw(daemon.operations) for _ in range(MAX_CONNECTIONS)]
    for peer in held:
        peer.sock.sendall(b"GET /livez HTTP/1.1\r\n")  # begun and not ended
    assert say(daemon.operations, b"") == b""  # closed at once, without a word
    # Card traffic does not notice.
    client = raw(daemon.address)
    client.authenticate()
    held.pop().close()
    assert eventually(lambda: say(daemon.operations, b"GET /livez HTTP/1.0\r\n\r\n") != b"")
    # Those that waited are answered as soon as they have said what they want.
    held[0].sock.sendall(b"Host: keyd\r\n\r\n")
    assert held[0].sock.recv(4096).startswith(b"HTTP/1.1 200")


def eventually(is_so: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("pause", [1.0, 60.0], ids=["a byte a second", "silence"])
async def test_a_slow_request_is_cut_off(autojump_clock: trio.abc.Clock, pause: float) -> None:
    operations = Operations(CollectorRegistry(), lambda: None, Events(time.monotonic))
    client, server = memory_stream_pair()
    started = trio.current_time()

    async def dribble() -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # it is cut off in the middle
            for byte in b"GET /livez HTTP/1.1\r\nHost: keyd.example\r\n":
                await client.send_all(bytes([byte]))
                await trio.sleep(pause)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dribble)
        await operations._handle(cast("trio.SocketStream", server))
        assert trio.current_time() - started == pytest.approx(REQUEST_SECONDS)
        nursery.cancel_scope.cancel()
    assert operations._connections == 0


async def test_a_reader_that_does_not_read_is_cut_off(autojump_clock: trio.abc.Clock) -> None:
    operations = Operations(CollectorRegistry(), lambda: None, Events(time.monotonic))
    client, server = memory_stream_pair()

    async def never() -> None:
        await trio.sleep_forever()

    server.send_stream.send_all_hook = never
    await client.send_all(b"GET /livez HTTP/1.0\r\n\r\n")
    started = trio.current_time()
    await operations._handle(cast("trio.SocketStream", server))
    assert trio.current_time() - started == pytest.approx(REQUEST_SECONDS)
    assert operations._connections == 0


# The log. ----------------------------------------------------------------------------------------------------


def test_every_line_is_json_and_names_the_event_first(daemon: RunningDaemon, raw: Connect) -> None:
    make_traffic(daemon, raw).close()
    assert daemon.terminate() == 0
    lines = daemon.log_lines()  # every line, of standard output too
    assert {"synthetic_keys", "ready", "connection_opened", "refused", "stopped"} <= {
        line["event"] for line in lines
    }
    for line in lines:
        assert list(line)[:3] == ["event", "level", "timestamp"]
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", line["event"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])


def refused(daemon: RunningDaemon) -> list[dict[str, Any]]:
    return [line for line in daemon.log_lines() if line["event"] == "refused"]


def test_every_refusal_is_one_line(daemon: RunningDaemon, raw: Connect) -> None:
    peer = raw(daemon.address)
    peer.ask("daemon.random", 8)
    peer.authenticate()
    peer.ask("daemon.random", 0)
    peer.ask("no.such_method")
    items = [[[CARD_ID, HISTORICAL, algorithm, THIRD], FACTOR] for algorithm in (SM4, SSF33, SSF33)]
    peer.ask("card.pin_unblock_batch", items)
    peer.close()
    assert daemon.terminate() == 0
    assert [(line["method"], line["status"], line["terminal"]) for line in refused(daemon)] == [
        ("daemon.random", "NOT_AUTHENTICATED", None),
        ("daemon.random", "BAD_PARAMETER", "DEV-0001"),
        ("unknown", "METHOD_UNKNOWN", "DEV-0001"),
        ("card.pin_unblock_batch", "ALGORITHM_NOT_SUPPORTED", "DEV-0001"),
        ("card.pin_unblock_batch", "ALGORITHM_NOT_SUPPORTED", "DEV-0001"),
    ]
    # Enough to find the card's region, and not the card.
    assert refused(daemon)[-1]["card.card_id"] == "639900…"
    assert CARD_ID.hex() not in daemon.output.lower()


def test_a_flood_of_refusals_is_no_flood_of_lines(daemon: RunningDaemon, raw: Connect) -> None:
    times = 20 * MAX_PEER_LINES_PER_SECOND
    peer = raw(daemon.address)
    started = time.monotonic()
    for _ in range(times):
        peer.send("daemon.random", 8)
    answers = peer.answers()
    for _ in range(times):
        assert next(answers)[2][1] == "NOT_AUTHENTICATED"
    seconds = int(time.monotonic() - started) + 2  # begun and ended within one each
    time.sleep(1.1)
    peer.ask("daemon.random", 8)  # in a new second, what was left out is said
    peer.close()
    assert daemon.terminate() == 0
    logged = len(refused(daemon))
    left_out = sum(
        line["count"] for line in daemon.log_lines() if line["event"] == "lines_left_out"
    )
    assert logged <= MAX_PEER_LINES_PER_SECOND * seconds
    assert left_out > 0
    assert logged + left_out == times + 1


# No secret. --------------------------------------------------------------------------------------------------


def test_a_pin_is_nowhere_however_it_is_refused(
    start_daemon: StartDaemon, write_config: WriteConfig, raw: Connect
) -> None:
    daemon = start_daemon(*write_config("[log]", 'level = "debug"', "sample_every = 1"))
    sm4, ssf33 = ([CARD_ID, HISTORICAL, algorithm, THIRD] for algorithm in (SM4, SSF33))
    answers = []

    def try_all(peer: RawPeer) -> None:
        answers.extend(
            [
                peer.ask("card.pin_reload", sm4, FACTOR, PIN + "X"),
                peer.ask("card.pin_reload", sm4, FACTOR, int(PIN)),
                peer.ask("card.pin_reload", sm4, FACTOR, PIN.encode()),
                peer.ask("card.pin_reload", sm4, FACTOR, [PIN]),
                peer.ask("card.pin_reload", sm4, FACTOR, {PIN: PIN}),
                peer.ask("card.pin_reload", sm4, PIN, PIN),
                peer.ask("card.pin_reload", PIN, FACTOR, PIN),
                peer.ask("card.pin_reload", sm4, FACTOR, PIN, PIN),
                peer.ask("card.pin_reload", ssf33, FACTOR, PIN),
                peer.ask("card.pin_reload", sm4, bytes(5), PIN),
                peer.ask("card.pin_reload", sm4, FACTOR, PIN * 3),
                peer.ask("card.pin_reload_batch", [[ssf33, FACTOR, PIN], [sm4, FACTOR, PIN + "X"]]),
                peer.ask("card.pin_reload_batch", PIN),
                peer.ask(f"card.{PIN}", PIN),
                peer.ask("library.reload_pin_2", PIN, f"03|0173|{PIN}|8424000114|{PIN}|"),
            ]
        )

    peer = raw(daemon.address)
    try_all(peer)
    peer.authenticate()
    try_all(peer)
    for answer in answers:
        errors = [answer[2]] if answer[3] is None else [error for error, _ in answer[3]]
        assert all(error is not None and error[1] != "INTERNAL" for error in errors), answer
    assert PIN not in repr(answers)
    # An answered one is logged as the sample, and a broken message with its connection's end.
    assert peer.ask("card.pin_reload", sm4, FACTOR, PIN)[2] is None
    broken = raw(daemon.address)
    broken.sock.sendall(b"\xc1" + PIN.encode())
    assert broken.answer()[2][1] == "MALFORMED"
    exposed = ask(daemon.operations, "/metrics")[1]
    peer.close()
    broken.close()
    assert daemon.terminate() == 0
    assert len(refused(daemon)) >= len(answers)
    assert any(line["event"] == "answered" for line in daemon.log_lines())
    for text in (daemon.output, exposed):
        assert PIN not in text
        assert PIN.encode().hex() not in text.lower()


def test_no_key_is_in_the_metrics_or_the_log(daemon: RunningDaemon, raw: Connect) -> None:
    peer = make_traffic(daemon, raw)
    addresses = [address for key in peer.ask("daemon.status")[3][6] for address in key[0]]
    keys = [synthetic_root(address, algorithm) for address in addresses for algorithm in SOFTWARE]
    keys.append(synthetic_terminal_key("DEV-0001"))
    exposed = ask(daemon.operations, "/metrics")[1]
    peer.close()
    assert daemon.terminate() == 0
    text = (exposed + daemon.output).lower()
    assert "keyd_requests_total" in text
    assert len(keys) > 300
    assert [key.hex() for key in keys if key.hex() in text] == []
    assert [key for key in keys if repr(key)[2:-1].lower() in text] == []


# What is written for operators. ------------------------------------------------------------------------------


def test_prometheus_takes_the_alerts() -> None:
    checked = promtool("check", "rules", ALERTS)
    assert checked.returncode == 0, checked.stderr
    assert "SUCCESS" in checked.stdout


REQUESTS: Final = 'keyd_requests_total{job="keyd",instance="a",method="m",status="%s"}'
SYNC: Final = 'keyd_journal_sync_seconds_bucket{job="keyd",instance="a",le="%s"}'
BUCKET: Final = 'keyd_request_duration_seconds_bucket{job="keyd",instance="a",le="%s"}'

HEALTHY: Final = {
    'up{job="keyd",instance="a"}': "1x60",
    'keyd_selftest_passed{job="keyd",instance="a",test="SM4"}': "1x60",
    'keyd_keys_synthetic{job="keyd",instance="a"}': "0x60",
    'keyd_connections_opened_created{job="keyd",instance="a"}': "1000x60",
    'keyd_accept_errors_total{job="keyd",instance="a"}': "0x60",
    'keyd_connections{job="keyd",instance="a"}': "100x60",
    REQUESTS % "OK": "0+10000x60",
    # Now and then a terminal's key is mistyped, and a card is worn out.
    REQUESTS % "TERMINAL_NOT_AUTHENTIC": "0+1x60",
    REQUESTS % "CARD_NOT_AUTHENTIC": "0x30 1x30",
    BUCKET % "0.001": "0+9990x60",
    BUCKET % "0.1": "0+10000x60",
    BUCKET % "+Inf": "0+10000x60",
    'keyd_journal_available{job="keyd",instance="a"}': "1x60",
    'keyd_journal_failures_total{job="keyd",instance="a"}': "0x60",
    SYNC % "0.01": "0+10000x60",
    SYNC % "0.1": "0+10000x60",
    SYNC % "+Inf": "0+10000x60",
}


@pytest.mark.parametrize(
    ("alert", "differently"),
    [
        (None, {}),
        ("KeydDown", {'up{job="keyd",instance="a"}': "0x60"}),
        (
            "KeydSelftestFailed",
            {'keyd_selftest_passed{job="keyd",instance="a",test="SM4"}': "1x50 0x10"},
        ),
        ("KeydSyntheticKeys", {'keyd_keys_synthetic{job="keyd",instance="a"}': "1x60"}),
        (
            "KeydRestartsAgainAndAgain",
            {
                'keyd_connections_opened_created{job="keyd",instance="a"}': (
                    "1000x46 1001x3 1002x3 1003x8"
                )
            },
        ),
        (
            "KeydJournalUnavailable",
            {'keyd_journal_available{job="keyd",instance="a"}': "1x50 0x10"},
        ),
        (
            "KeydJournalFailsAgainAndAgain",
            {'keyd_journal_failures_total{job="keyd",instance="a"}': "0x50 3x1 6x9"},
        ),
        (
            "KeydJournalSlow",
            {SYNC % "0.01": "0x60", SYNC % "0.1": "0+9000x60", SYNC % "0.25": "0+10000x60"},
        ),
        # One fault, of a method that had none before.
        ("KeydInternalErrors", {REQUESTS % "INTERNAL": "_x55 1x5"}),
        ("KeydInternalErrors", {REQUESTS % "INTERNAL": "1x55 2x5"}),
        (
            "KeydOutOfDescriptors",
            {'keyd_accept_errors_total{job="keyd",instance="a"}': "0x55 3x5"},
        ),
        (
            "KeydSlow",
            {BUCKET % "0.1": "0+9000x60", BUCKET % "0.001": "0x60", BUCKET % "0.25": "0+10000x60"},
        ),
        ("KeydNearlyFull", {'keyd_connections{job="keyd",instance="a"}': "1000x60"}),
        ("KeydTerminalNotAuthentic", {REQUESTS % "TERMINAL_NOT_AUTHENTIC": "0+30x60"}),
        ("KeydDenied", {REQUESTS % "NOT_ALLOWED": "0+5x60"}),
        (
            "KeydCardsStrange",
            {'keyd_cards_strange_total{job="keyd",instance="a",what="two_regions"}': "0+1x60"},
        ),
        ("KeydForgedCards", {REQUESTS % "CARD_NOT_AUTHENTIC": "0+1x60"}),
        ("KeydWrongTransactionProofs", {REQUESTS % "TAC_NOT_AUTHENTIC": "0+1x60"}),
        ("KeydKeyNotFound", {REQUESTS % "KEY_NOT_FOUND": "0+1x60"}),
        (
            "KeydPeersBreakTheProtocol",
            {'keyd_connections_closed_total{job="keyd",instance="a",reason="malformed"}': "0+5x60"},
        ),
    ],
)
def test_each_alert_fires_for_its_cause_and_no_other(
    tmp_path: Path, alert: str | None, differently: dict[str, str]
) -> None:
    series = HEALTHY | differently
    labels = f'{{alertname="{alert}"}}'
    scenario = {
        "rule_files": [str(ALERTS)],
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "59m",
                        "exp_samples": [{"labels": labels, "value": 1}] if alert else [],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "scenario.yml"
    path.write_text(json.dumps(scenario))  # JSON is YAML
    tested = promtool("test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_scenario_and_a_place_in_the_manual() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", ALERTS.read_text(encoding="utf-8")))
    (mark,) = test_each_alert_fires_for_its_cause_and_no_other.pytestmark  # type: ignore[attr-defined]
    assert {alert for alert, _ in mark.args[1]} - {None} == alerts
    manual = MANUAL.read_text(encoding="utf-8")
    assert {alert for alert in alerts if f"`{alert}`" not in manual} == set()


def test_alerts_and_manual_name_metrics_that_exist(daemon: RunningDaemon, raw: Connect) -> None:
    make_traffic(daemon, raw)
    exposed = ask(daemon.operations, "/metrics")[1]
    families = metrics(daemon)
    existing = {sample.name for family in families.values() for sample in family.samples}
    rules = ALERTS.read_text(encoding="utf-8")
    named = set(re.findall(r"\bkeyd_[a-z_]+", rules))
    assert named
    assert named <= existing
    assert set(re.findall(r'status="([A-Z_]+)"', rules)) <= {status.name for status in Status}
    manual = MANUAL.read_text(encoding="utf-8")
    shown = {line.split()[2] for line in exposed.splitlines() if line.startswith("# TYPE ")} - {
        name for name in existing if name.endswith("_created")
    }
    assert {name for name in shown if f"`{name}" not in manual} == set()


def test_the_manual_explains_every_event() -> None:
    manual = MANUAL.read_text(encoding="utf-8")
    events = set(emitted_events())
    assert {"ready", "refused", "connection_opened", "stopped"} <= events
    assert {event for event in events if f"`{event}`" not in manual} == set()


def emitted_events() -> Iterator[str]:
    """Find every event that the code logs: a constant as the first argument of an Events or logger method."""
    for path in (ROOT / "keyd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("debug", "info", "warning", "error", "bug", "peer")
                and ast.unparse(node.func.value).endswith(("events", "_log", "self"))
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                yield str(node.args[0].value)


def test_the_log_parses_as_the_manual_shows_it() -> None:
    """The manual's example line is one that keyd could have written."""
    manual = MANUAL.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in manual.splitlines() if line.startswith('{"')]
    assert lines
    assert all(list(line)[:3] == ["event", "level", "timestamp"] for line in lines)
    assert {line["event"] for line in lines} <= set(emitted_events())


def test_a_client_is_counted_under_its_terminal_s_name(
    daemon: RunningDaemon, dev_client: Client
) -> None:
    dev_client.ask(AskRandom(8))
    dev_client.close()
    assert daemon.wait_for("connection_closed")["terminal"] == "DEV-0001"
