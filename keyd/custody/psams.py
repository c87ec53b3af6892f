"""PSAMs that keyd plays: what two officers decide about them, and what one may.

Like `keyd.custody.enrolling`, these are pure decisions: rows to write in one transaction, and events for the journal.
LOCAL's officers govern them, as they govern terminals. The rules of a PSAM's life are `keyd.registry.psam`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.custody import actions as act
from keyd.custody.psam_rows import HeldPsam, psam_row, seal_counters
from keyd.custody.work import Outcome, event_of
from keyd.errors import BadParameter, DomainCrossed, TerminalStateRefused
from keyd.keys.block import Domain
from keyd.psam.counters import PsamRecord
from keyd.registry.psam import KeptPsam, PsamAct, PsamState, after, require_good
from keyd.registry.terminal import TerminalState
from keyd.store.rows import Begin, Put

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.custody.catalogue import Catalogue
    from keyd.custody.contents import Contents
    from keyd.custody.officers import Officer
    from keyd.custody.work import Event, Work
    from keyd.registry.terminal import TerminalSpec

_DONE = {
    PsamAct.ASSIGN: "psam.assigned",
    PsamAct.RETURN: "psam.returned",
    PsamAct.RETIRE: "psam.retired",
}


def require_possible(
    contents: Contents, domain: Domain, action: act.AboutPsams, now: int, catalogue: Catalogue
) -> None:
    """Refuse at once, when it is proposed, what could not be carried out anyway.

    Raises:
        Refusal: the one that carrying it out would meet.
    """
    _require_local(domain)
    match action:
        case act.IssuePsams():
            _issued(contents, action, "", now, catalogue)
        case act.ChangePsams():
            _changed(contents, action, "", now)


def carry_out(work: Work, action: act.AboutPsams) -> Outcome:
    """Carry out an approved action about PSAMs.

    Raises:
        Refusal: it cannot be done; nothing was.
    """
    _require_local(work.domain)
    match action:
        case act.IssuePsams():
            return _issue(work, action)
        case act.ChangePsams():
            kept = _changed(work.contents, action, work.decided_by, work.now)
            event = event_of(work, _DONE[action.act])
            event["psams"] = [one.number for one in kept]
            if action.act is PsamAct.ASSIGN:
                event["terminal"] = action.terminal
            event |= {"reason": action.reason} if action.reason else {}
            puts = [_put(work.contents, one, work.random_bytes) for one in kept]
            return Outcome([*puts], [event])


def lose(
    contents: Contents,
    officer: Officer,
    number: str,
    reason: str,
    now: int,
    random_bytes: Callable[[int], bytes],
) -> Outcome:
    """Report a PSAM lost: one officer is enough, because it only takes rights away and cannot wait.

    Raises:
        DomainCrossed: it is not LOCAL's officer.
        BadParameter: the reason is not printable, or has a |.
        PsamNotFound, PsamStateRefused: there is nothing to lose.
    """
    _require_local(officer.domain)
    _require_printable(reason)
    kept = contents.psam(number)
    lost = after(kept, PsamAct.LOSE, by=officer.code, at=now, reason=reason)
    event: Event = {
        "event": "psam.lost",
        "domain": Domain.LOCAL.value,
        "officer": officer.title,
        "psams": [number],
        "terminal": kept.terminal,
        "reason": reason,
    }
    return Outcome([_put(contents, lost, random_bytes)], [event])


def require_no_other_psam(contents: Contents, spec: TerminalSpec) -> None:
    """Refuse a terminal with the 终端机编号 of a PSAM that was assigned to another one, or to the shared set.

    Raises:
        BadParameter: there is such a PSAM.
    """
    kept = contents.psams.get(spec.psam_number.hex())
    if kept is not None and kept.state is PsamState.ASSIGNED and kept.terminal != spec.code:
        whose = f"terminal {kept.terminal}" if kept.terminal else "the shared set"
        raise BadParameter(f"{spec.code}: PSAM {kept.number} is assigned to {whose}")


def _issue(work: Work, action: act.IssuePsams) -> Outcome:
    outcome = Outcome()
    for kept in _issued(work.contents, action, work.decided_by, work.now, work.catalogue):
        held = HeldPsam(kept, SecretKey.generate(Algorithm.SM4))
        outcome.changes.append(Put(psam_row(work.lmk, held, work.random_bytes)))
        counters = seal_counters(held.key, kept.spec.number, 1, PsamRecord(), work.random_bytes)
        outcome.changes.append(Begin(counters))
    event = event_of(work, "psam.issued")
    event["psams"] = [spec.number.hex() for spec in action.psams]
    outcome.events.append(event)
    return outcome


def _issued(
    contents: Contents, action: act.IssuePsams, by: str, now: int, catalogue: Catalogue
) -> list[KeptPsam]:
    # A number and a serial number name one PSAM for ever: purchases of years ago bear them.
    numbers = set(contents.psams)
    serials = {kept.spec.serial for kept in contents.psams.values()}
    for spec in action.psams:
        require_good(spec, catalogue.profiles, catalogue.places)
        number = spec.number.hex()
        if number in numbers:
            raise BadParameter(f"there is a PSAM {number} already, or it stands here twice")
        if spec.serial in serials:
            raise BadParameter(
                f"{number}: there is a PSAM of serial number {spec.serial.hex()} already, "
                "or it stands here twice"
            )
        numbers.add(number)
        serials.add(spec.serial)
    return [KeptPsam(spec, PsamState.ISSUED, by, now) for spec in action.psams]


def _changed(contents: Contents, action: act.ChangePsams, by: str, now: int) -> list[KeptPsam]:
    if action.act is PsamAct.LOSE:
        raise BadParameter("a loss waits for no second officer: report it, and it is done")
    if len(set(action.numbers)) != len(action.numbers):
        raise BadParameter("a PSAM is named twice")
    _require_printable(action.reason)
    if action.terminal and contents.terminal(action.terminal).state is TerminalState.RETIRED:
        raise TerminalStateRefused(f"{action.terminal} is retired")
    changed = []
    for number in action.numbers:
        kept = contents.psam(number)
        if action.act is PsamAct.ASSIGN:
            _require_no_other_terminal(kept, action.terminal, contents)
        changed.append(
            after(kept, action.act, by=by, at=now, terminal=action.terminal, reason=action.reason)
        )
    return changed


def _require_no_other_terminal(kept: KeptPsam, code: str, contents: Contents) -> None:
    """Refuse what would let two terminals buy under one 终端机编号: one with a chip, one with keyd's PSAM."""
    for terminal in contents.terminals.values():
        is_there = terminal.state is not TerminalState.RETIRED and terminal.code != code
        if is_there and terminal.spec.psam_number == kept.spec.number:
            raise BadParameter(
                f"terminal {terminal.code} has a PSAM {kept.number}: assign this one to it, or to nobody"
            )


def _put(contents: Contents, kept: KeptPsam, random_bytes: Callable[[int], bytes]) -> Put:
    lmk = contents.seal.wrapping_keys[Domain.LOCAL]
    return Put(psam_row(lmk, HeldPsam(kept, contents.psam_keys[kept.number]), random_bytes))


def _require_printable(reason: str) -> None:
    # Neither cursor keys nor colours for whoever reads the journal on a terminal.
    if not reason.isprintable() or "|" in reason:
        raise BadParameter("a reason is printable, and without |")


def _require_local(domain: Domain) -> None:
    if domain is not Domain.LOCAL:
        raise DomainCrossed("PSAMs belong to the daemon: LOCAL's officers decide on them")
