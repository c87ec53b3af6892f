"""What officers decide, in words and as JSON: whoever approves must know from this alone what will happen."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from keyd.cli.common import COLUMNS, groups_of_4
from keyd.crypto.algorithms import CardAlgorithm
from keyd.crypto.sm2 import PointNotOnCurve, Sm2PublicKey
from keyd.crypto.sm2.files import fingerprint
from keyd.custody import actions as act
from keyd.errors import RemoteProtocolError
from keyd.keys.block import Export, Tier, Use
from keyd.protocol.words import plain_result
from keyd.registry.psam import PsamAct
from keyd.registry.terminal import TerminalSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from keyd.protocol.messages.custody import ProposalOutcome, ProposalReport, StoredKey
    from keyd.registry.psam import PsamSpec

# A key's header as text, by key id: what words say of keys that an action only names.
Headers: TypeAlias = "Mapping[bytes, Mapping[str, str]]"

_decode_action: Final = msgspec.msgpack.Decoder(act.Action).decode

# The field's words for what officers read most.
_USES: Final = {
    Use.INTERNAL: "internal authentication 内部认证",
    Use.EXTERNAL: "external authentication 外部认证",
    Use.MESSAGING: "secure messaging 安全报文",
    Use.DEBIT: "debit 消费",
    Use.LOAD: "load 划入",
    Use.TAC: "TAC",
    Use.STARTING_DAY: "starting day 年度起始日",
    Use.TRANSPORT: "transport of other keys 密钥传输",
    Use.TERMINAL: "terminal keys 终端密钥",
}
_TIERS: Final = {
    Tier.NATIONAL: "national 全国",
    Tier.PROVINCIAL: "provincial 省级",
    Tier.CITY: "city 城市",
}
_EXPORTS: Final = {
    Export.NEVER: "never",
    Export.CHILD: "only as what is diversified from it 母卡",
    Export.WRAPPED: "wrapped",
}


def action_of(report: ProposalReport) -> act.Action:
    """Read what a proposal proposes.

    Raises:
        RemoteProtocolError: a newer keyd proposes what this program does not know; nobody should approve that here.
    """
    try:
        action: act.Action = _decode_action(report.action)
    except (msgspec.MsgspecError, ValueError):
        raise RemoteProtocolError(
            "the proposal is of a kind that this keyd does not know: use the program of the daemon"
        ) from None
    return action


def describe(action: act.Action, headers: Headers | None = None) -> list[str]:
    """Say what an action does, in lines of at most 100 columns."""
    known = headers or {}
    match action:
        case act.GenerateKey():
            return ["Make a new key at random 产生密钥:", *_spec(action.key)]
        case act.ImportKey():
            kcv = f" and has check value {_kcv(action.kcv)}" if action.kcv is not None else ""
            return [
                f"Take in a key as {action.components} components, each typed by another custodian 分量导入:",
                *_spec(action.key),
                f"  The key is the XOR of all components{kcv}.",
                *([] if kcv else ["  Its check value was not announced: compare it afterwards."]),
            ]
        case act.GiveComponents():
            return [
                "Make a new key at random and give it out in components 分量分发:",
                *_spec(action.key),
                f"  One component each for {', '.join(action.custodians)}.",
            ]
        case act.ImportWrapped():
            return [
                f"Take in a key that came wrapped ({action.format}) 密文导入:",
                *_spec(action.key),
                f"  wrapped under   {_named(action.transport_key, known)}",
                f"  check value     {_kcv(action.kcv)}",
            ]
        case act.ImportEnvelope():
            return [
                "Take in a key that came in an SM2 envelope 数字信封导入:",
                *_spec(action.key),
                f"  check value     {_kcv(action.kcv)}",
            ]
        case act.ExportKey():
            return [
                f"Give a key out, wrapped ({action.format}) 密文导出:",
                f"  key             {_named(action.key_id, known)}",
                f"  wrapped under   {_named(action.transport_key, known)}",
            ]
        case act.ExportChild():
            return [
                f"Diversify a root for region {action.region} and give the child out, wrapped ({action.format}) 母卡:",
                f"  root            {_named(action.key_id, known)}",
                f"  wrapped under   {_named(action.transport_key, known)}",
            ]
        case act.Permit():
            return [
                "Change what a key is allowed:",
                f"  key             {_named(action.key_id, known)}",
                *_permitted(action, known.get(action.key_id, {})),
            ]
        case act.EnrolOfficer():
            return [
                "Enrol an officer, or give one other roles or another key:",
                f"  officer         {action.code} ({action.name})",
                f"  roles           {', '.join(action.roles)}",
                f"  fingerprint     {fingerprint_of(action.public_key)}",
                "  Compare the fingerprint with the officer in person.",
            ]
        case act.RetireOfficer():
            return [
                "Retire an officer, who then signs nothing any more:",
                f"  officer         {action.code}",
            ]
        case act.Rekey():
            return [
                "Make a new seal: new shares, new wrapping keys, every row sealed anew 重新封印:",
                f"  shares          {len(action.custodians)}, of which any {action.threshold} open it",
                f"  custodians      {', '.join(action.custodians)}",
                "  The old seal holds until every custodian has confirmed; then old shares open nothing.",
            ]
        case act.EnrolTerminals():
            new = "get answers at once 启用" if action.activate else "wait to be activated"
            return [
                f"Enrol {count(action.terminals)}, or give those that are there these particulars 登记:",
                *(line for spec in action.terminals for line in terminal_lines(spec)),
                f"  New ones {new}. One that is there already keeps its state.",
            ]
        case act.ActivateTerminals():
            return [
                f"Let {count(action.codes)} get answers, whether stopped or new 启用:",
                *_wrapped("terminals", ", ".join(action.codes)),
            ]
        case act.GiveEnrolmentCodes():
            return [
                f"Make a one-time enrolment code for {count(action.codes)} 一次性登记码:",
                *_wrapped("terminals", ", ".join(action.codes)),
                f"  given to        {action.officer}, in one envelope",
                f"  good for        {_days(action.days)}: whoever has a code gets that terminal's certificate",
            ]
        case act.GiveTerminalKeys():
            return [
                f"Give the {_keys(action.codes)} of {count(action.codes)} out 终端密钥:",
                *_wrapped("terminals", ", ".join(action.codes)),
                f"  given to        {action.officer}, in one envelope",
                "  Whoever has a terminal's key can pass for it.",
            ]
        case act.MakeAuthority():
            return [
                "Make keyd's own CA, which issues terminals' certificates 签发机构:",
                f"  name            {printable(action.common_name)}",
                f"  kind            {action.kind}",
                f"  good for        {action.years} year{'s' if action.years > 1 else ''}",
                "  One that is there of this kind issues nothing any more.",
            ]
        case act.IssuePsams():
            return [
                f"Issue {count(action.psams, 'PSAM')} that keyd plays 发卡:",
                *(line for spec in action.psams for line in psam_lines(spec)),
                "  Nobody has one before it is assigned.",
            ]
        case act.ChangePsams():
            return [
                f"{_PSAM_ACTS[action.act]}:",
                *_wrapped("PSAMs", ", ".join(action.numbers)),
                *_psams_go_to(action),
            ]
        case _:
            return [
                f"{_STEPS[type(action)]}:",
                f"  key             {_named(action.key_id, known)}",
                *_end(action),
            ]


_STEPS: Final[dict[type, str]] = {
    act.Activate: "Activate a key: it serves cards from then on 启用",
    act.Deactivate: "Deactivate a key: it still verifies and makes nothing new 停用",
    act.Compromise: "Mark a key compromised: it stops, and there is no way back 泄露",
    act.Destroy: "Destroy a key 销毁",
    act.Restore: "Bring a destroyed key back; it is deactivated then 恢复",
}


# What has a glyph is shown as it is, and with it the space of Chinese typography; all else could deceive a reader.
_IDEOGRAPHIC_SPACE: Final = "\u3000"


def printable(text: str) -> str:
    """Return a text without what moves the cursor or turns the direction of writing."""
    return "".join(
        each if each.isprintable() or each == _IDEOGRAPHIC_SPACE else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )


def terminal_lines(spec: TerminalSpec) -> Iterator[str]:
    """Say everything that officers decide about a terminal; what is usual is not said."""
    yield f"  {spec.code}  {printable(spec.organisation)}"
    yield from _wrapped("", f"region {spec.region}, {spec.form}, for {', '.join(spec.roles)}")
    yield from _wrapped("proves with", ", ".join(spec.proofs))
    machine = (spec.vendor, spec.model, spec.serial, spec.driver_version)
    if any(machine):
        yield from _wrapped("machine", " / ".join(printable(part) or "-" for part in machine))
    if spec.psam_number or spec.psam_serial:
        number, serial = spec.psam_number.hex(), spec.psam_serial.hex().upper()
        yield from _wrapped("PSAM", f"终端机编号 {number or '-'}, serial {serial or '-'}")
    if (spec.generations, spec.interfaces) != (_USUAL["generations"], _USUAL["interfaces"]):
        generations = ", ".join(f"{generation}.0" for generation in spec.generations)
        interfaces = ", ".join(spec.interfaces)
        yield from _wrapped("cards", f"{generations or 'none'}, {interfaces or 'no'} interface")
    if spec.networks:
        yield from _wrapped("from", ", ".join(spec.networks))
    if spec.hours:
        yield from _wrapped("hours", ", ".join(spec.hours))
    if spec.valid_from or spec.valid_until:
        yield from _wrapped("valid", f"{moment(spec.valid_from)} until {moment(spec.valid_until)}")
    if spec.public_key:
        yield from _wrapped("fingerprint", fingerprint_of(spec.public_key))


_PSAM_ACTS: Final = {
    PsamAct.ASSIGN: "Assign PSAMs that keyd plays 领用",
    PsamAct.LOSE: "Report PSAMs that keyd plays lost 挂失",
    PsamAct.RETURN: "Take PSAMs back: they answer nobody until they are assigned again 退回",
    PsamAct.RETIRE: "Retire PSAMs, from which there is no way back 注销",
}


def _psams_go_to(action: act.ChangePsams) -> Iterator[str]:
    if action.act is PsamAct.ASSIGN:
        whose = f"terminal {action.terminal} alone" if action.terminal else "the shared set"
        yield f"  go to           {whose}"
    if action.reason:
        yield from _wrapped("reason", printable(action.reason))


def psam_lines(spec: PsamSpec) -> Iterator[str]:
    """Say what a PSAM is and may, in lines of at most 100 columns."""
    yield f"  PSAM            终端机编号 {spec.number.hex()}, serial {spec.serial.hex()}"
    environment = spec.environment.name
    yield f"  profile         {printable(spec.profile)}, woken up in its {environment} environment"
    yield from _wrapped("keys", ", ".join(spec.keys))
    if spec.valid_from or spec.valid_until:
        yield from _wrapped("valid", f"{moment(spec.valid_from)} until {moment(spec.valid_until)}")


_USUAL: Final = {field.name: field.default for field in msgspec.structs.fields(TerminalSpec)}


def _wrapped(name: str, text: str) -> Iterator[str]:
    """Yield one line, or as many as it takes, of at most 100 columns."""
    for line in textwrap.wrap(text, COLUMNS - 18) or [""]:
        yield f"  {name:15} {line}"
        name = ""


def count(items: Sequence[object], what: str = "terminal") -> str:
    """Say how many there are."""
    return f"{len(items)} {what}{'' if len(items) == 1 else 's'}"


def _keys(items: Sequence[object]) -> str:
    return "keys" if len(items) > 1 else "key"


def _days(days: int) -> str:
    return f"{days} day{'s' if days > 1 else ''}"


def _end(action: object) -> Iterator[str]:
    if isinstance(action, act.Destroy):
        if action.waiting_days:
            yield f"  It stops at once, and can be restored for {action.waiting_days} days; then it is deleted."
        else:
            yield "  IT IS DELETED AT ONCE AND CANNOT BE BROUGHT BACK."


def _spec(spec: act.KeySpec) -> Iterator[str]:
    yield f"  name            {spec.name}, set {spec.set}"
    yield f"  algorithm       {spec.algorithm.value}"
    above = f", {spec.levels} levels above the card" if spec.levels else ""
    yield f"  tier            {_TIERS[spec.tier]}{above}"
    if spec.addresses:
        yield f"  addresses       {' '.join(f'{address:04X}' for address in spec.addresses)}"
    yield f"  for             {_USES[spec.use]}{_modes(spec)}"
    if spec.psam_type or spec.psam_id:
        yield f"  in a PSAM       type {spec.psam_type:02X}, id {spec.psam_id:02X}"
    if spec.valid_from or spec.valid_until:
        yield f"  valid           from {moment(spec.valid_from)} until {moment(spec.valid_until)}"
    if spec.ceiling:
        yield f"  may be used     {spec.ceiling} times, warning from {spec.warn_at or spec.ceiling}"
    yield f"  may leave       {_EXPORTS[spec.export]}"


def _modes(spec: act.KeySpec) -> str:
    return f", {' and '.join(spec.modes)} only" if spec.modes else ""


def _permitted(action: act.Permit, header: Mapping[str, str]) -> Iterator[str]:
    for name in ("valid_from", "valid_until", "ceiling", "warn_at", "minimum_version", "export"):
        wanted = getattr(action, name)
        if wanted is None:
            continue
        is_time = name.startswith("valid")
        now = header.get(name)
        before = "" if now is None else f" (now {moment(int(now)) if is_time else now})"
        yield f"  {name.replace('_', ' '):15} {moment(wanted) if is_time else wanted}{before}"


def _named(key_id: bytes, headers: Headers) -> str:
    header = headers.get(key_id)
    return f"{key_id.hex()}" if header is None else f"{label(key_id, header)}, {header['name']}"


def label(key_id: bytes, header: Mapping[str, str]) -> str:
    """Name a key as the journal does: see `KeyHeader.label`."""
    where = header["addresses"].replace(" ", "+") or header["name"]
    version = f"v{header['version']}"
    return f"{header['domain']}/{where}/{header['algorithm']}/{version}/{key_id[:4].hex()}"


def headers_of(keys: Iterable[StoredKey]) -> dict[bytes, dict[str, str]]:
    """Return the headers of a list of keys, by key id."""
    return {key.key_id: key.header for key in keys}


def moment(seconds: int) -> str:
    """Return a time as people write it, in UTC; 0 is no time at all."""
    if not seconds:
        return "-"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s after 1970"


def fingerprint_of(point: bytes) -> str:
    """Return a public key's fingerprint, or say that it is no key."""
    try:
        return fingerprint(Sm2PublicKey.load(point))
    except PointNotOnCurve:
        return "none: this is no public key"


def _kcv(kcv: bytes) -> str:
    return kcv.hex().upper()


# JSON -----------------------------------------------------------------------------------------------------

# Ids are written as the journal writes them; all other bytes in capitals, as everywhere on the command line.
_IDS: Final = frozenset({"key_id", "proposal_id", "store_id", "transport_key", "child"})


def plain_bytes(name: str, value: bytes) -> str:
    """Return bytes as JSON has them."""
    return value.hex() if name in _IDS else value.hex().upper()


def plain_action(action: act.Action) -> dict[str, Any]:
    """Return an action for JSON: bytes in hex, addresses in four hex digits, environments by name."""
    built: dict[str, Any] = msgspec.to_builtins(action, builtin_types=(bytes,))
    key = built.get("key")
    if isinstance(key, dict):
        built["key"] = key | {"addresses": [f"{address:04X}" for address in key["addresses"]]}
    for psam in built.get("psams", ()):
        psam["environment"] = CardAlgorithm(psam["environment"]).name
    return {name: _plain_value(name, value) for name, value in built.items()}


def _plain_value(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return plain_bytes(name, value)
    if isinstance(value, dict):
        return {inner: _plain_value(inner, each) for inner, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(name, each) for each in value]
    return value


def plain_proposal(report: ProposalReport) -> dict[str, Any]:
    """Return a proposal for JSON."""
    plain: dict[str, Any] = plain_result(report)
    return plain | {
        "proposal_id": report.proposal_id.hex(),
        "action": plain_action(action_of(report)),
    }


def plain_outcome(outcome: ProposalOutcome) -> dict[str, Any]:
    """Return a proposal and its result for JSON."""
    result = {name: plain_bytes(name, value) for name, value in outcome.result.items()}
    return plain_proposal(outcome.proposal) | {"result": result}


# Proposals for people -------------------------------------------------------------------------------------


def one_line(report: ProposalReport, headers: Headers | None = None) -> str:
    """Say in one line what a proposal is about: the first line of its description, and which key."""
    action = action_of(report)
    known = headers or {}
    if isinstance(action, act.NEW_KEY):
        spec = action.key
        where = " ".join(f"{address:04X}" for address in spec.addresses)
        return f"{_kind(action)} {spec.name}:{spec.set} {where} {spec.algorithm.value}".replace(
            "  ", " "
        )
    if isinstance(action, act.EnrolOfficer | act.RetireOfficer):
        return f"{_kind(action)} {action.code}"
    if isinstance(action, act.Rekey):
        return f"{_kind(action)} {action.threshold} of {len(action.custodians)}"
    if isinstance(action, act.EnrolTerminals):
        return f"{_kind(action)} {_first([spec.code for spec in action.terminals])}"
    if isinstance(action, act.ActivateTerminals):
        return f"{_kind(action)} {_first(action.codes)}"
    if isinstance(action, act.GiveEnrolmentCodes | act.GiveTerminalKeys):
        return f"{_kind(action)} {_first(action.codes)} to {action.officer}"
    if isinstance(action, act.MakeAuthority):
        return f"{_kind(action)} {action.kind} {printable(action.common_name)}"
    if isinstance(action, act.IssuePsams):
        return f"{_kind(action)} {_first([spec.number.hex() for spec in action.psams])}"
    if isinstance(action, act.ChangePsams):
        whose = f" to {action.terminal or 'the shared set'}" if action.act is PsamAct.ASSIGN else ""
        return f"{action.act}-psams {_first(action.numbers)}{whose}"
    return f"{_kind(action)} {_named(action.key_id, known)}"


def _first(codes: Sequence[str]) -> str:
    return codes[0] if len(codes) == 1 else f"{codes[0]} and {len(codes) - 1} more"


def _kind(action: act.Action) -> str:
    return str(msgspec.to_builtins(action, builtin_types=(bytes,))["action"])


def proposal_lines(outcome: ProposalOutcome, headers: Headers) -> Iterator[str]:
    """Show one proposal whole."""
    report = outcome.proposal
    yield f"Proposal {report.proposal_id.hex()} of {report.domain}: {report.state}"
    yield f"proposed by {report.proposed_by} at {moment(report.proposed_at)}"
    if report.state == "open":
        yield f"to be decided until {moment(report.expires_at)}"
    if report.decided_by:
        yield f"decided by {report.decided_by} at {moment(report.decided_at)}"
    if report.note:
        yield f"note: {report.note}"
    yield ""
    action = action_of(report)
    yield from describe(action, headers)
    if isinstance(action, act.NEW_KEY):
        yield from _rotation(action.key, headers)
    yield from progress_lines(report, action)
    yield from result_lines(outcome)


def _rotation(spec: act.KeySpec, headers: Headers) -> Iterator[str]:
    """Say which keys the new one will stand beside: it is their next version."""
    wanted = {f"{address:04X}" for address in spec.addresses}
    is_sm4 = spec.algorithm.value == "SM4"
    older = [
        (key_id, header)
        for key_id, header in headers.items()
        if (header["algorithm"] == "SM4") == is_sm4
        and (
            wanted & set(header["addresses"].split())
            or (not wanted and not header["addresses"] and header["name"] == spec.name)
        )
    ]
    for key_id, header in older:
        yield f"  beside          {label(key_id, header)}, {header['state']}: the new key is a later version"


def progress_lines(report: ProposalReport, action: act.Action) -> Iterator[str]:
    """Say what a proposal waits for."""
    if isinstance(action, act.ImportKey) and report.state == "open":
        entered = ", ".join(f"{number} ({code})" for number, code in report.components.items())
        yield f"components in: {entered or 'none'} of {action.components}"
    if report.waiting_for:
        yield f"waiting for the confirmation of: {', '.join(report.waiting_for)}"


# What a proposal gave to one officer alone.
_ENVELOPES: Final = ("enrolment codes for ", "terminal keys for ")


def result_lines(outcome: ProposalOutcome) -> Iterator[str]:
    """Say what carrying a proposal out has given."""
    for name, value in outcome.result.items():
        if name == "wrapped":
            yield f"wrapped key: {len(value)} bytes; --to FILE writes it to a file"
        elif name == "key_id":
            yield f"key id {value.hex()}"
        elif name == "kcv":
            yield f"check value {value.hex().upper()}"
        elif name.startswith(_ENVELOPES):
            yield f"{name}: an envelope of {len(value)} bytes; keyd terminal take opens it"
        elif name != "salt":
            yield f"{name}: {groups_of_4(value.hex().upper())}"
