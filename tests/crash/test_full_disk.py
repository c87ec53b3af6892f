"""A disk that is full refuses and harms nothing: in every phase, under the store, the journal or both.

While there is no room, a question is refused with the status of what cannot be written, or it is answered and done.
A refusal changes nothing, but for one: whoever is first to meet a full journal may be told AUDIT_UNAVAILABLE after
officers' work was done, because the record of the answer could not be written; the record of the work waits in the
store. When there is room again, the same daemon goes on.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from keyd.client.officer import all_proposals
from keyd.errors import (
    AuditUnavailable,
    KeyExhausted,
    Overloaded,
    Refusal,
    Sealed,
    StoreUnavailable,
)
from keyd.keys.block import Domain
from keyd.protocol.messages.custody import AskSeal, ShowProposal
from tests.crash.grounds import Grounds, log_of, start_program
from tests.crash.scenario import PHASES, QUESTION, Facts, Run, state_of
from tests.crash.verdict import look, require_journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.crash.grounds import Daemon
    from tests.crash.rounds import Stage
    from tests.crash.scenario import State, Step

STORE, JOURNAL, BOTH = "store", "journal", "both"

# Room for the journal's reserve, what it wants free before it goes on, and the whole scenario.
DISK = "4m"

BACK_SECONDS = 20.0

# A journal takes half a second to notice that there is room.
EVERY = {STORE: 1, JOURNAL: 4, BOTH: 4}


class Disk:
    """A small file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave not a byte."""
        with self._filler.open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """Mount a small file system in memory."""
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if not done or done.returncode:
        pytest.skip("this machine cannot run it: only root may mount a small file system")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class Custody:
    """A daemon whose disks fill up, and its people, who try again."""

    def __init__(self, daemon: Daemon, facts: Facts, full: list[Disk], what: str) -> None:
        self.daemon = daemon
        self.run = Run(daemon, facts)
        self._full = full
        self._what = what
        self.refused = 0
        self.run.patience = 0.5

    def go_on(self, step: Step) -> None:
        """Do a step as soon as it is possible."""
        deadline = time.monotonic() + BACK_SECONDS
        while True:
            try:
                if step.name == "give 2" and not self.daemon.seal.ask(AskSeal()).given:
                    # An unsealing that could not be recorded did not happen, and keyd kept no share.
                    self.run.give_share(0)
                step.do(self.run)
            except (AuditUnavailable, StoreUnavailable, KeyExhausted, Overloaded):
                assert time.monotonic() < deadline, self.daemon.said()
                time.sleep(0.05)
            else:
                return

    def meet_full_disk(self, step: Step, *, is_known: bool) -> bool:
        """Do a step while there is no room; return whether it is done. `is_known` lets somebody else meet it first."""
        before = self.state()
        for disk in self._full:
            disk.fill()
        has_refused = is_known and self._has_refused()
        is_answered = False
        refusal: Refusal | None = None
        try:
            step.do(self.run)
            is_answered = True
        except AuditUnavailable as error:
            assert self._what in (JOURNAL, BOTH)
            refusal = error
        except StoreUnavailable as error:
            assert self._what in (STORE, BOTH)
            refusal = error
        except (KeyExhausted, Overloaded) as error:
            # No lease can be written, so none is given: the ceiling comes first.
            assert self._what in (STORE, BOTH)
            assert step.name.startswith("use")
            refusal = error
        self.refused += refusal is not None
        if self._what == STORE:
            # It says how it is all the while.
            self.daemon.seal.ask(AskSeal())
        for disk in self._full:
            disk.free()
        if is_answered:
            return True
        after = self.state()
        if has_refused or isinstance(refusal, StoreUnavailable) or after == before:
            assert after == before, f"{step.name} was refused with {refusal!r}, and done"
            return False
        self._catch_up(step)
        return True

    def _has_refused(self) -> bool:
        """Let a terminal ask until it is refused because of the journal; small records may find some room."""
        for _ in range(400):
            try:
                self.daemon.terminal.ask(QUESTION)
            except AuditUnavailable:
                return True
            except Refusal:
                continue
        return False

    def state(self) -> State | None:
        """What the store holds, once it can be asked; None while it is sealed."""
        deadline = time.monotonic() + BACK_SECONDS
        while True:
            try:
                return state_of(self.daemon)
            except Sealed:
                return None
            except (AuditUnavailable, StoreUnavailable):
                assert time.monotonic() < deadline, self.daemon.said()
                time.sleep(0.05)

    def _catch_up(self, step: Step) -> None:
        """Learn from the store what the lost answer would have said."""
        verb, _, note = step.name.partition(" ")
        facts = self.run.facts
        for domain in (Domain.SOCIAL, Domain.LOCAL):
            auditor = self.daemon.officer(domain, "auditor")
            for one in all_proposals(auditor, closed=True):
                if one.note == note:
                    facts.proposals[note] = one.proposal_id
                    result = auditor.ask(ShowProposal(one.proposal_id)).result
                    if verb == "approve" and {"key_id", "kcv"} <= set(result):
                        facts.keys[note] = (result["key_id"], result["kcv"])
        if verb == "confirm":
            facts.shares = list(facts.new_shares.values())


@pytest.mark.parametrize("what", [STORE, JOURNAL, BOTH])
def test_a_full_disk_refuses_and_nothing_is_half_done(
    stage: Stage, tmp_path: Path, what: str
) -> None:
    with contextlib.ExitStack() as stack:
        grounds = Grounds.found(tmp_path / "grounds", ())
        store = stack.enter_context(mounted(grounds.folder / "store"))
        journal = stack.enter_context(mounted(grounds.journal))
        shutil.move(grounds.store, store.folder / "keyd.db")
        grounds.url = f"sqlite:///{store.folder}/keyd.db"
        full = {STORE: [store], JOURNAL: [journal], BOTH: [store, journal]}[what]
        zygote = stack.enter_context(stage.zygote())
        daemon = zygote.start(grounds, grounds.configure())
        stack.callback(daemon.kill)
        daemon.ready()
        custody = Custody(daemon, Facts(shares=list(grounds.shares)), full, what)
        met: set[str] = set()
        place = 0
        for phase, steps in PHASES.items():
            for step in steps:
                place += 1
                if place % EVERY[what] and phase in met:
                    custody.go_on(step)
                    continue
                was_refused = custody.refused
                is_known = what != STORE and bool(place // EVERY[what] % 2)
                if not custody.meet_full_disk(step, is_known=is_known):
                    custody.go_on(step)
                if custody.refused > was_refused:
                    met.add(phase)
            expected = stage.phases[phase].expected.states[-1]
            state = custody.state()
            assert state is None or state == expected, phase
        assert met >= {"import", "rotate", "people", "rekey"} if what != JOURNAL else met
        assert daemon.end() == 0, daemon.said()
        sight = look(grounds, tmp_path / "aside")
        require_journal(grounds, sight.anchors, may_be_torn=False)
        assert not sight.waiting
        assert custody.run.facts.good <= sight.good <= sight.uses
        # Each restart of the reference has an unsealing of its own, and a backup may be made again. A store that is
        # full takes no record of a sealing, and keyd seals all the same.
        left_out = {"unsealed", "backup.made", *(["sealed"] if what != JOURNAL else [])}
        done = stage.phases["seal"].expected.happenings
        made = [one.name for one in sight.happenings if one.name not in left_out]
        assert made == [one.name for one in done if one.name not in left_out]


def test_files_that_may_not_grow_are_a_full_disk(stage: Stage) -> None:
    """The same for whoever may not mount: no file of the daemon may grow, neither the store's nor the journal's."""
    played = stage.phases["rotate"]
    grounds = played.grounds.copy(stage.folder())
    with stage.zygote() as zygote:
        daemon = zygote.start(grounds, grounds.configure())
        daemon.ready()
        run = Run(daemon, played.facts)
        before = state_of(daemon)
        pid = daemon.process.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        refused: set[str] = set()
        for _ in range(3):
            try:
                PHASES["rotate"][0].do(run)
            except (AuditUnavailable, StoreUnavailable) as error:
                refused.add(error.status.name)
            with contextlib.suppress(AuditUnavailable, KeyExhausted, Overloaded):
                daemon.terminal.ask(QUESTION)
                raise AssertionError("an answer without a record")
        assert refused <= {"AUDIT_UNAVAILABLE", "STORE_UNAVAILABLE"}
        assert refused
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, infinite)
        custody = Custody(daemon, played.facts, [], BOTH)
        assert custody.state() == before
        custody.go_on(PHASES["rotate"][0])
        assert custody.state() == played.expected.states[1]
        assert daemon.end() == 0
    sight = look(grounds, stage.folder())
    require_journal(grounds, sight.anchors, may_be_torn=False)


def test_a_log_that_cannot_be_written_stops_nothing(stage: Stage) -> None:
    """Neither a full disk under the log nor the end of whoever reads it is the end of keyd."""
    grounds = Grounds.found(stage.folder(), ())
    log_of(grounds).symlink_to("/dev/full")
    daemon = start_program(grounds, grounds.configure())
    try:
        assert not daemon.ready().sealed
        with pytest.raises(Refusal):
            daemon.terminal.ask(QUESTION)
        assert not daemon.seal.ask(AskSeal()).sealed
    finally:
        daemon.kill()
