"""The daemon: puts the house together, starts it, and ends it well.

Everything that can fail at a start fails here, before the first connection, with one sentence on standard
error and a non-zero exit. Runs as `python -m keyd.daemon`; `keyd serve` becomes this process.
"""

from __future__ import annotations

import argparse
import gc
import os
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
    Audit,
    Config,
    ConfigError,
    LimitsConfig,
    Listen,
    ListenTls,
    Log,
    PolicyConfig,
    PsamsConfig,
    StoreConfig,
    expand,
    load_anchors,
    load_config,
    read_policy_file,
)
from keyd.config import (
    Terminals as TerminalsConfig,
)
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.native._core import KeyMemoryError, open_arena
from keyd.crypto.selftest import require_selftest, run_selftest
from keyd.custody.catalogue import Catalogue
from keyd.dispatch import Dispatch
from keyd.errors import Refusal
from keyd.gate import SECRET_BYTES, Gate
from keyd.handlers.services import Services
from keyd.hardening import forbid_dumps, swap_warnings
from keyd.hub import Entrance, Hub, Limits
from keyd.keys.ring import KeyRing
from keyd.keys.roots import synthetic, synthetic_identity_key, synthetic_terminals_master
from keyd.lines import ConfiguredLine, place_of, read_lines
from keyd.listening import (
    OWNER_MAY,
    CannotStart,
    allow_descriptors,
    inherited,
    listen,
    listen_tcp,
    listen_unix,
    name_of,
    require_local,
)
from keyd.needs import Needs, catalogue
from keyd.opening import open_custody, open_journal
from keyd.ops import Operations
from keyd.pooling import Pooling, issued_psams, load_kinds, open_pool, routing_of, synthetic_psams
from keyd.psam.guard import Dialects
from keyd.pump._pump import Pump, SeenCards
from keyd.recorder import Recorder
from keyd.registry.synthetic import DEVELOPMENT_ROLE, development_terminals
from keyd.routes import Routes
from keyd.routing import RouteRow
from keyd.telemetry import Events, Meter, configure_logging
from keyd.terminals import Terminals
from keyd.tls.chains import Anchor, Anchors
from keyd.uses import Numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyd.audit.journal import Journal
    from keyd.cards.profile import Profile
    from keyd.opening import Custody
    from keyd.policy import PolicyFile, Strange

# Terminals that a development keyd enrols, with the public keys of `keyd.keys.synthetic`.
DEV_TERMINALS: Final = tuple(f"DEV-{number:04}" for number in range(1, 65))

# As many as a rack has.
MAX_SYNTHETIC_PSAMS: Final = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to end; return the exit status.

    0 after a drain, 78 if starting again would change nothing (configuration, keys, self-test), 1 if it might.
    """
    options = _parse(arguments)
    if not options.dev:
        # Before anything secret is read. A development keyd has nothing to hide, and debuggers are made for it.
        forbid_dumps()
    try:
        daemon = _start(options)
    except (ConfigError, Refusal) as error:
        sys.stderr.write(f"keyd: {error}\n")
        return os.EX_CONFIG
    except CannotStart as error:
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
        policy: PolicyFile | None,
        journal: Journal | None,
        listeners: Sequence[socket.socket],
        administration: Sequence[socket.socket],
        operations: socket.socket | None,
        lines: Sequence[tuple[ConfiguredLine, socket.socket]] = (),
        *,
        catalogue: Catalogue,
        psams: int = 0,
    ) -> None:
        self._config = config
        self._read_config = read_config
        self._services = services
        self._listeners = listeners
        self._administration = administration
        self._operations_socket = operations
        self._lines = [line for line, _listener in lines]
        self._encrypted = [
            Entrance(listener, is_enrolment=line.entry.enrolment, context=line.context)
            for line, listener in lines
        ]
        self._meter = Meter()
        self._events = Events(time.monotonic, sample_every=config.log.sample_every)
        services.counters = self._meter.totals
        terminals = services.terminals
        # Whom to believe certificates of: the configuration's authorities, and keyd's own.
        self._configured_anchors = terminals.anchors
        self._own_anchors = Anchors()
        self._meter.watch_terminals(
            lambda: terminals.refused, lambda: terminals.lockouts.locked(services.clock())
        )
        self._recorder = self._record_in(journal, ring) if journal is not None else None
        dispatch = Dispatch(services, self._meter, self._events, self._recorder)
        limits = _limits(config)
        pump_type = None if os.environ.get("KEYD_TICK") == "python" else Pump
        self._hub = Hub(dispatch, self._meter, self._events, limits, services.clock, pump_type)
        self._routes: Routes | None = None
        if self._hub.pump is not None:
            numbers = self._recorder.numbers if self._recorder is not None else None
            self._routes = Routes(self._hub.pump, ring, services, numbers)
            dispatch.short_cut = self._routes
        self._dispatch = dispatch
        if policy is not None:
            self._enforce(policy)
        self._ring = ring
        self._custody: Custody | None = None
        # Whether systemd has been told so; before that, nothing else is said to it.
        self._is_ready = False
        self._keeping = trio.CancelScope()
        if journal is not None and not services.has_synthetic_keys:
            self._custody = open_custody(config, journal, ring, self._say, self._adopted, catalogue)
            services.warden = self._custody.warden
            self._custody.warden.registry_changed = self._registry_changed
            services.terminals.activity = self._custody.warden.seen
            services.is_sealed = True
        self._pooling = self._pool(catalogue, psams)
        self._show()

    def _pool(self, catalogue: Catalogue, synthetic: int) -> Pooling | None:
        """Make whoever lends PSAMs, if there are any to be lent."""
        config, services = self._config.psams, self._services
        issued = None
        if self._custody is not None and config.issued:
            issued = issued_psams(self._custody, self._ring, catalogue)
        played = synthetic_psams(synthetic, self._ring, catalogue) if synthetic else issued
        lender = open_pool(config, catalogue, services.profiles, played, self._say_of_psam)
        if lender is None:
            return None
        services.psams = lender
        self._meter.watch_psams(lender.members)
        return Pooling(lender, played, issued, self._ring)

    def _say_of_psam(self, event: str, detail: str) -> None:
        say = self._events.warning if event == "psam_failed" else self._events.info
        say(event, detail=detail)

    def _enforce(self, policy: PolicyFile) -> None:
        """Let a policy be in force from now on."""
        gate = self._dispatch.gate
        if gate is not None:
            gate.take_over(policy)
        else:
            gate = Gate(
                policy,
                Needs(self._services.profiles),
                secrets.token_bytes(SECRET_BYTES),
                self._say_strange,
                self._new_seen,
            )
            self._dispatch.gate = gate
            self._services.terminals.quotas = gate.quotas
            self._meter.cards_forgotten = lambda: gate.forgotten
        self._services.terminals.utc_offset = policy.policy.utc_offset_minutes
        if self._routes is not None:
            self._routes.gate = gate
            self._routes.forget()
            self._hub.watch(self._seen, gate.window_seconds)
        self._hub.readmit()

    def _new_seen(self) -> SeenCards:
        # The pump notes cards in it as well.
        self._seen = SeenCards(secrets.token_bytes(8))
        return self._seen

    def _say_strange(self, strange: Strange, terminal: str) -> None:
        self._meter.strange(strange.value)
        self._events.peer("card_strange", what=strange.value, terminal=terminal)

    def _record_in(self, journal: Journal, ring: KeyRing) -> Recorder:
        audit = self._config.audit
        return Recorder(
            journal,
            Numbers(journal, ring, audit.card_ids),
            self._meter,
            self._events,
            waits_for_disk=audit.durability == "fsync",
            wait_seconds=audit.wait_seconds,
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once."""
        self._hub.listen(self._listeners, self._administration, self._encrypted)
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
                if self._custody is not None:
                    await self._custody.unseal_by_keepers()
                    nursery.start_soon(self._keep_custody, self._custody)
                if self._pooling is not None:
                    await nursery.start(self._pooling.run, self._services.warden)
                self._say_ready()
                await self._hub.run()
                if self._custody is not None:
                    # First the housekeeping: it would take leases again that are handed back here.
                    self._keeping.cancel()
                    await self._custody.close()
                if self._recorder is not None:
                    await self._recorder.close()
                nursery.cancel_scope.cancel()
        self._events.info("stopped")

    async def _keep_custody(self, custody: Custody) -> None:
        with self._keeping:
            await custody.warden.run()

    def _say(self, event: str, detail: str) -> None:
        self._events.warning(event, detail=detail)

    def _adopted(self) -> None:
        """Take note that the ring holds other keys, or none: short cuts know nothing any more."""
        if self._dispatch.short_cut is not None:
            self._dispatch.short_cut.forget()
        custody = self._custody
        if custody is None:
            return
        was_sealed, self._services.is_sealed = (
            self._services.is_sealed,
            custody.warden.vault.is_sealed,
        )
        contents = custody.warden.vault.contents
        self._services.sign = None if contents is None else contents.identity.sign
        self._services.key_headers = self._ring.headers
        self._meter.show_keys(self._services.key_headers, are_synthetic=False)
        if was_sealed is not self._services.is_sealed:
            self._events.warning("sealed" if self._services.is_sealed else "unsealed")
            if self._is_ready:
                systemd.notify(f"STATUS={self._status()}")

    def _registry_changed(self) -> None:
        """Take over what the store says of terminals, and of the authorities that sign their certificates."""
        contents = self._custody.warden.vault.contents if self._custody is not None else None
        terminals = self._services.terminals
        self._own_anchors = Anchors(
            # Without lists: whether one of these certificates still counts is in the terminal's own record.
            [Anchor(held.body.certificate) for held in contents.authorities.values()]
            if contents is not None
            else ()
        )
        terminals.anchors = self._configured_anchors.joined(self._own_anchors)
        if terminals.load(contents.terminals if contents is not None else {}):
            self._hub.review(terminals, self._services.moment())
            self._meter.terminals.set(len(terminals))
        if self._pooling is not None:
            self._pooling.show(self._services.warden)

    def _status(self) -> str:
        if self._services.is_sealed:
            return "sealed"
        return f"serving {len(self._services.key_headers)} keys"

    def _say_ready(self) -> None:
        if self._services.has_synthetic_keys:
            self._events.warning(
                "synthetic_keys",
                detail="DEVELOPMENT: the keys are public. Never make or serve a real card with them.",
            )
        else:
            for sentence in swap_warnings():
                self._events.warning("memory_exposed", detail=sentence)
        self._events.info(
            "ready",
            version=__version__,
            listen=[name_of(listener) for listener in self._listeners],
            encrypted=[name_of(entrance.listener) for entrance in self._encrypted],
            operations=name_of(self._operations_socket) if self._operations_socket else None,
            administration=[name_of(listener) for listener in self._administration],
            sealed=self._services.is_sealed,
            keys=len(self._services.key_headers),
            terminals=len(self._services.terminals),
            pid=os.getpid(),
        )
        self._is_ready = True
        systemd.notify("READY=1", f"STATUS={self._status()}")

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
        """Take over what may change while serving: terminals, certificates, limits, the log. All of it or nothing."""
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = self._read_config()
            anchors = load_anchors(config.terminals)
            policy = _read_policy(config, self._services.profiles)
            limits = _limits(config)
            lines = read_lines(_kept(config.listen.tls, self._lines), self._lines)
            allow_descriptors(limits.connections)
        except (ConfigError, CannotStart) as error:
            self._events.warning("reload_refused", detail=str(error))
        else:
            if policy is not None:
                self._enforce(policy)
            _configure(self._services.terminals, config)
            self._configured_anchors = anchors
            self._services.terminals.anchors = anchors.joined(self._own_anchors)
            self._renew(lines)
            self._hub.limits = limits
            self._events.sample_every = config.log.sample_every
            configure_logging(config.log.level)
            if _fixed(config) != _fixed(self._config):
                self._events.warning(
                    "reload_partial",
                    detail="only terminals, policy, certificates, limits and log change without a restart",
                )
            self._show()
            self._events.info("reloaded", terminals=len(self._services.terminals))
        systemd.notify("READY=1")

    def _renew(self, lines: Sequence[ConfiguredLine]) -> None:
        """Let new lines be made by these contexts, and judge the open ones by them."""
        if [line.context for line in lines] == [line.context for line in self._lines]:
            return
        self._lines = list(lines)
        for entrance, line in zip(self._encrypted, lines, strict=True):
            entrance.context = line.context
        self._hub.judge_again()

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
        if self._services.is_sealed:
            return "sealed"
        if self._recorder is not None and self._recorder.unavailable_because is not None:
            return f"the journal cannot be written: {self._recorder.unavailable_because}"
        return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="keyd serve", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="the configuration, see conf/keyd.toml")
    source.add_argument(
        "--dev",
        action="store_true",
        help="public synthetic keys, loopback only, and no journal unless --journal says where",
    )
    parser.add_argument("--tcp", action="append", help="with --dev: HOST:PORT, port 0 for any")
    parser.add_argument("--unix", help="with --dev: a Unix socket as well")
    parser.add_argument("--operations", help="with --dev: HOST:PORT of /metrics and its kin")
    parser.add_argument(
        "--journal",
        metavar="FOLDER",
        help="with --dev: record every use of a key there; without it, nothing is recorded",
    )
    parser.add_argument(
        "--durability",
        choices=("written", "fsync"),
        default="written",
        help="with --journal: when an answer may leave",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="with --dev: who may ask for what; without it, everybody may ask for everything",
    )
    parser.add_argument(
        "--role",
        action="append",
        help="with --dev --policy: a role of the development terminals; more than once",
    )
    parser.add_argument(
        "--psams",
        type=int,
        default=2,
        metavar="N",
        help="with --dev: so many shared PSAMs are played and lent (default 2)",
    )
    parser.add_argument(
        "--pooled",
        metavar="KEY",
        action="append",
        help="with --dev: a key that the PSAMs compute with, by name or address, * for all; more than once",
    )
    parser.add_argument("--log-level", default="info", help="with --dev: debug … error")
    parser.add_argument("--version", action="version", version=f"keyd {__version__}")
    options = parser.parse_args(arguments)
    served = (options.tcp, options.unix, options.operations, options.pooled)
    if options.config and any((*served, options.journal, options.policy, options.role)):
        parser.error(
            "--tcp, --unix, --operations, --journal, --policy, --role and --pooled go with --dev; "
            "otherwise the file says it"
        )
    if not 0 <= options.psams <= MAX_SYNTHETIC_PSAMS:
        parser.error(f"--psams is 0 to {MAX_SYNTHETIC_PSAMS}")
    return options


def _start(options: argparse.Namespace) -> Daemon:
    """Do everything that can fail before anybody connects."""
    config = _dev_config(options) if options.dev else load_config(options.config)
    configure_logging(config.log.level)
    try:
        open_arena()
    except KeyMemoryError as error:
        raise CannotStart(str(error)) from None
    selftest = require_selftest()
    profiles = load_profiles(expand(config.cards.profiles) if config.cards.profiles else None)
    ring = KeyRing()
    if options.dev:
        places = newest(profiles).key_places((CardAlgorithm.DES, CardAlgorithm.SM4))
        ring.load([*synthetic(places), synthetic_terminals_master()])
    terminals = Terminals(
        development_terminals(DEV_TERMINALS, tuple(options.role or (DEVELOPMENT_ROLE,)))
        if options.dev
        else {},
        secrets.token_bytes,
    )
    _configure(terminals, config)
    terminals.anchors = load_anchors(config.terminals)
    services = Services(
        sam=ring,
        key_headers=ring.headers,
        has_synthetic_keys=options.dev,
        profiles=profiles,
        terminals=terminals,
        selftest=selftest,
        run_selftest=run_selftest,
        clock=time.monotonic,
        now=time.time,
        random_bytes=secrets.token_bytes,
        sign=synthetic_identity_key().sign if options.dev else None,
    )
    kinds = load_kinds(config.psams)
    services.dialects = Dialects(kinds.values())
    services.routing = routing_of(config.psams, profiles)
    policy = _read_policy(config, profiles)
    allow_descriptors(config.limits.connections)
    lines = read_lines(config.listen.tls)
    listeners = inherited() or listen(config.listen)
    encrypted = [(line, listen_tcp(line.entry.address)) for line in lines]
    if not listeners and not encrypted:
        raise CannotStart(
            "there is nothing to listen on: set listen.tcp or listen.unix, or add a [[listen.tls]]"
        )
    if options.dev or not config.listen.allow_plain_tcp:
        require_local(listeners)
    operations = listen_tcp(config.listen.operations) if config.listen.operations else None
    journal = open_journal(config.audit) if config.audit.folder else None
    administration = [] if options.dev else [listen_unix(expand(config.custody.socket), OWNER_MAY)]
    # What is there now stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    # A request leaves no cycles behind; looking for some every 700 objects costs each of them a microsecond.
    gc.set_threshold(50_000, 20, 50)
    read_config = (lambda: config) if options.dev else (lambda: load_config(options.config))
    return Daemon(
        config,
        read_config,
        services,
        ring,
        policy,
        journal,
        listeners,
        administration,
        operations,
        encrypted,
        catalogue=Catalogue(kinds, tuple(newest(profiles).keys.values())),
        psams=options.psams if options.dev else 0,
    )


def _kept(entries: Sequence[ListenTls], lines: Sequence[ConfiguredLine]) -> list[ListenTls]:
    """Return what a configuration now says of the lines that there are; those that it forgot stay as they were."""
    said = {place_of(entry): entry for entry in entries}
    return [said.get(place_of(line.entry), line.entry) for line in lines]


def _fixed(config: Config) -> tuple[Config, list[tuple[str, str, bool]]]:
    """Return what of a configuration does not change without a restart."""
    listen = msgspec.structs.replace(config.listen, tls=())
    fixed = msgspec.structs.replace(
        config,
        terminals=TerminalsConfig(),
        policy=PolicyConfig(""),
        limits=LimitsConfig(),
        log=Log(),
        listen=listen,
    )
    return fixed, [place_of(entry) for entry in config.listen.tls]


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
    audit = Audit(options.journal or "", durability=options.durability)
    route = (RouteRow(tuple(options.pooled), "pool"),) if options.pooled else ()
    return Config(
        store=StoreConfig("none"),
        policy=PolicyConfig(options.policy or ""),
        audit=audit,
        listen=listen,
        log=log,
        psams=PsamsConfig(route=route),
    )


def _read_policy(config: Config, profiles: Mapping[int, Profile]) -> PolicyFile | None:
    """Read the policy; a development keyd may have none, and then everybody may ask for everything."""
    if not config.policy.file:
        return None
    return read_policy_file(expand(config.policy.file), catalogue(profiles))


def _configure(terminals: Terminals, config: Config) -> None:
    """Let terminals prove themselves as the configuration says, from now on."""
    terminals.session_seconds = config.terminals.session_seconds
    terminals.challenge_seconds = config.terminals.challenge_seconds


def _limits(config: Config) -> Limits:
    return Limits(**msgspec.structs.asdict(config.limits))


if __name__ == "__main__":
    sys.exit(main())
