"""The daemon: puts the house together, starts it, and ends it well.

Everything that can fail at a start fails here, before the first connection, with one sentence on standard
error and a non-zero exit. Runs as `python -m keyd.daemon`; `keyd serve` becomes this process.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import secrets
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keyd import __version__, systemd
from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.config import (
    Config,
    ConfigError,
    Keys,
    Listen,
    Log,
    expand,
    load_config,
    load_terminals,
    read_passphrase,
)
from keyd.config import (
    Terminals as TerminalsConfig,
)
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.native._core import KeyMemoryError, open_arena
from keyd.crypto.selftest import require_selftest, run_selftest
from keyd.dispatch import Dispatch
from keyd.errors import Refusal
from keyd.handlers.services import Services
from keyd.hub import Hub, Limits
from keyd.keys import sealed
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic
from keyd.keys.synthetic import synthetic_terminal_key
from keyd.ops import Operations
from keyd.pump._pump import Pump
from keyd.routes import Routes
from keyd.telemetry import Events, Meter, configure_logging
from keyd.terminals import Terminals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyd.cards.profile import Profile
    from keyd.crypto.secret import SecretKey
    from keyd.keys.block import KeyHeader

# Terminals that a development keyd enrols, with the public keys of `keyd.keys.synthetic`.
DEV_TERMINALS: Final = tuple(f"DEV-{number:04}" for number in range(1, 65))

# File descriptors beside the client connections: listeners, logs, scrapers, threads, room to look around.
SPARE_DESCRIPTORS: Final = 64

_LISTEN_BACKLOG: Final = 1024


class StartError(Exception):
    """keyd cannot start; the sentence says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to end; return the exit status.

    0 after a drain, 78 if starting again would change nothing (configuration, keys, self-test), 1 if it might.
    """
    try:
        daemon = _start(_parse(arguments))
    except (ConfigError, Refusal) as error:
        sys.stderr.write(f"keyd: {error}\n")
        return os.EX_CONFIG
    except StartError as error:
        sys.stderr.write(f"keyd: {error}\n")
        return 1
    trio.run(daemon.run)
    return 0


class Daemon:
    """A keyd that has started."""

    def __init__(
        self,
        config: Config,
        read_config: Callable[[], Config],
        services: Services,
        ring: KeyRing,
        listeners: Sequence[socket.socket],
        operations: socket.socket | None,
    ) -> None:
        self._config = config
        self._read_config = read_config
        self._services = services
        self._listeners = listeners
        self._operations_socket = operations
        self._meter = Meter()
        self._events = Events(time.monotonic, sample_every=config.log.sample_every)
        services.counters = self._meter.totals
        dispatch = Dispatch(services, self._meter, self._events)
        limits = _limits(config)
        pump_type = None if os.environ.get("KEYD_TICK") == "python" else Pump
        self._hub = Hub(dispatch, self._meter, self._events, limits, services.clock, pump_type)
        if self._hub.pump is not None:
            dispatch.short_cut = Routes(self._hub.pump, ring, services)
        self._show()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once."""
        self._hub.listen(self._listeners)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, signals, nursery)
                nursery.start_soon(self._feed_watchdog)
                if self._operations_socket is not None:
                    operations = Operations(
                        self._meter.registry, self._unready_because, self._events
                    )
                    listener = trio.SocketListener(
                        trio.socket.from_stdlib_socket(self._operations_socket)
                    )
                    nursery.start_soon(operations.serve, listener)
                self._say_ready()
                await self._hub.run()
                nursery.cancel_scope.cancel()
        self._events.info("stopped")

    def _say_ready(self) -> None:
        if self._services.has_synthetic_keys:
            self._events.warning(
                "synthetic_keys",
                detail="DEVELOPMENT: the keys are public. Never make or serve a real card with them.",
            )
        self._events.info(
            "ready",
            version=__version__,
            listen=[_name(listener) for listener in self._listeners],
            operations=_name(self._operations_socket) if self._operations_socket else None,
            keys=len(self._services.key_headers),
            terminals=len(self._services.terminals),
            pid=os.getpid(),
        )
        systemd.notify("READY=1", f"STATUS=serving {len(self._services.key_headers)} keys")

    async def _heed(self, signals: object, nursery: trio.Nursery) -> None:
        async for number in signals:  # type: ignore[attr-defined]  # trio does not name this type
            if number == signal.SIGHUP:
                self._reload()
            elif self._services.is_draining:
                self._events.warning("stopped_at_once", signal=signal.Signals(number).name)
                nursery.cancel_scope.cancel()
            else:
                self._events.info("draining", signal=signal.Signals(number).name)
                systemd.notify("STOPPING=1", "STATUS=draining")
                self._services.is_draining = True
                self._hub.drain()

    def _reload(self) -> None:
        """Take over what may change while serving: terminals, limits, the log. All of it or nothing."""
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = self._read_config()
            terminals = _load_terminals(config, is_dev=self._services.has_synthetic_keys)
            limits = _limits(config)
            _allow_descriptors(limits.connections)
        except (ConfigError, StartError) as error:
            self._events.warning("reload_refused", detail=str(error))
        else:
            self._services.terminals = terminals
            self._hub.review(terminals)
            self._hub.limits = limits
            self._events.sample_every = config.log.sample_every
            configure_logging(config.log.level)
            if (config.listen, config.keys, config.cards) != (
                self._config.listen,
                self._config.keys,
                self._config.cards,
            ):
                self._events.warning(
                    "reload_partial", detail="listen, keys and cards change with a restart only"
                )
            self._show()
            self._events.info("reloaded", terminals=len(terminals))
        systemd.notify("READY=1")

    def _show(self) -> None:
        services = self._services
        self._meter.show_build(__version__)
        self._meter.show_selftest(services.selftest)
        self._meter.show_keys(services.key_headers, are_synthetic=services.has_synthetic_keys)
        self._meter.terminals.set(len(services.terminals))

    async def _feed_watchdog(self) -> None:
        seconds = systemd.watchdog_seconds()
        if seconds is None:
            return
        while True:
            ticks = self._hub.ticks
            self._hub.wake()
            await trio.sleep(seconds / 3)
            # Only a tick feeds it: a hub that hangs must not look alive because trio is.
            if self._hub.ticks != ticks:
                systemd.notify("WATCHDOG=1")

    def _unready_because(self) -> str | None:
        if self._services.is_draining:
            return "draining"
        if self._services.has_failed_selftest:
            return "a self-test failed"
        return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="keyd serve", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="the configuration, see conf/keyd.toml")
    source.add_argument("--dev", action="store_true", help="public synthetic keys, loopback only")
    parser.add_argument("--tcp", action="append", help="with --dev: HOST:PORT, port 0 for any")
    parser.add_argument("--unix", help="with --dev: a Unix socket as well")
    parser.add_argument("--operations", help="with --dev: HOST:PORT of /metrics and its kin")
    parser.add_argument("--log-level", default="info", help="with --dev: debug … error")
    parser.add_argument("--version", action="version", version=f"keyd {__version__}")
    options = parser.parse_args(arguments)
    if options.config and (options.tcp or options.unix or options.operations):
        parser.error("--tcp, --unix and --operations go with --dev; otherwise the file says it")
    return options


def _start(options: argparse.Namespace) -> Daemon:
    """Do everything that can fail before anybody connects."""
    config = _dev_config(options) if options.dev else load_config(options.config)
    configure_logging(config.log.level)
    try:
        open_arena()
    except KeyMemoryError as error:
        raise StartError(str(error)) from None
    selftest = require_selftest()
    profiles = load_profiles(expand(config.cards.profiles) if config.cards.profiles else None)
    keys = _load_keys(config, profiles, is_dev=options.dev)
    ring = KeyRing(keys)
    services = Services(
        sam=ring,
        key_headers=ring.headers,
        has_synthetic_keys=options.dev,
        profiles=profiles,
        terminals=_load_terminals(config, is_dev=options.dev),
        selftest=selftest,
        run_selftest=run_selftest,
        clock=time.monotonic,
        random_bytes=secrets.token_bytes,
    )
    _allow_descriptors(config.limits.connections)
    listeners = _inherited() or _listen(config.listen)
    if not listeners:
        raise StartError("there is nothing to listen on: set listen.tcp or listen.unix")
    if options.dev or not config.listen.allow_plain_tcp:
        _require_local(listeners)
    operations = _listen_tcp(config.listen.operations) if config.listen.operations else None
    # What is there now stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    # A request leaves no cycles behind; looking for some every 700 objects costs each of them a microsecond.
    gc.set_threshold(50_000, 20, 50)
    read_config = (lambda: config) if options.dev else (lambda: load_config(options.config))
    return Daemon(config, read_config, services, ring, listeners, operations)


def _dev_config(options: argparse.Namespace) -> Config:
    default = Listen()
    listen = Listen(
        tcp=tuple(options.tcp) if options.tcp else default.tcp,
        unix=options.unix,
        operations=options.operations or default.operations,
    )
    try:
        log = msgspec.convert({"level": options.log_level}, Log)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--log-level: {error}") from None
    return Config(keys=Keys("", ""), terminals=TerminalsConfig(""), listen=listen, log=log)


def _load_keys(
    config: Config, profiles: Mapping[int, Profile], *, is_dev: bool
) -> list[tuple[KeyHeader, SecretKey]]:
    if is_dev:
        return synthetic(newest(profiles).key_places((CardAlgorithm.DES, CardAlgorithm.SM4)))
    passphrase = read_passphrase(expand(config.keys.passphrase_file))
    return sealed.unseal(sealed.read(expand(config.keys.sealed_file)), passphrase)


def _load_terminals(config: Config, *, is_dev: bool) -> Terminals:
    if is_dev:
        keys = {code: synthetic_terminal_key(code) for code in DEV_TERMINALS}
    else:
        keys = load_terminals(expand(config.terminals.file))
    return Terminals(keys, secrets.token_bytes)


def _limits(config: Config) -> Limits:
    return Limits(**msgspec.structs.asdict(config.limits))


def _allow_descriptors(connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_DESCRIPTORS
    if soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartError(
            f"limits.connections = {connections} needs {needed} file descriptors, and the limit is "
            f"{hard}: raise LimitNOFILE= or lower limits.connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _inherited() -> list[socket.socket]:
    try:
        return systemd.inherited_sockets()
    except (ValueError, OSError) as error:
        raise StartError(f"the sockets that were handed over cannot be used: {error}") from None


def _listen(listen: Listen) -> list[socket.socket]:
    listeners = [_listen_tcp(address) for address in listen.tcp]
    if listen.unix:
        listeners.append(_listen_unix(expand(listen.unix)))
    return listeners


def _listen_tcp(address: str) -> socket.socket:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise StartError(f"{address!r} is no address: write HOST:PORT, e.g. 127.0.0.1:7170")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=_LISTEN_BACKLOG)
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror or error}") from None


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # Whoever may connect is decided by the mode from the first moment on.
        umask = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(umask)
        listener.listen(_LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {path}: {error.strerror or error}") from None
    return listener


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # its keyd is gone
        else:
            raise StartError(f"another process is listening on {path}")


def _require_local(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        if listener.family == socket.AF_UNIX:
            continue
        host = listener.getsockname()[0]
        if not (host.startswith("127.") or host == "::1"):
            raise StartError(
                f"{host} is not a loopback address, and the line is plain: PINs would be readable on "
                "it. Listen on loopback behind a TLS front, or set listen.allow_plain_tcp = true"
            )


def _name(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
