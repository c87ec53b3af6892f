"""`keyd propose`: everything that one officer proposes and another approves, but officers and seals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from keyd.cli.common import Desk, hex_bytes, officers_desk, using
from keyd.cli.files import read_small
from keyd.cli.key_spec import (
    SpecOptions,
    header_of_wrapped,
    key_spec,
    read_time,
    spec_of_header,
)
from keyd.cli.proposing import About, about_proposal, find_key, propose, send
from keyd.cli.words import one_line, plain_outcome
from keyd.crypto.secret import KCV_BYTES
from keyd.custody import actions as act
from keyd.errors import BadParameter
from keyd.keys.block import Export

app = typer.Typer(
    help="Propose what is to happen to a key; another security officer approves it.",
    no_args_is_help=True,
)

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="The key: its id, the beginning of it, or its label.")
]
TransportOption = Annotated[
    str, typer.Option("--transport-key", metavar="KEY", help="The key-transport key.")
]
FormatOption = Annotated[act.TransportFormat, typer.Option("--format", help="How the key travels.")]
KcvOption = Annotated[
    str | None, typer.Option("--kcv", metavar="HEX", help="The key's check value, 6 hex digits.")
]

_BLOCK: Final = act.TransportFormat.BLOCK


@app.command()
@using(officers_desk, about_proposal, key_spec)
def generate(
    desk: Desk,
    about: About,
    options: SpecOptions,
    everything: Annotated[
        bool,
        typer.Option("--all-from-profile", help="One proposal for every key of the card profile."),
    ] = False,
) -> None:
    """Make a key at random. Where there is one already, it is the next version: rotation."""
    if not everything:
        propose(desk, about, act.GenerateKey(options.spec()))
        return
    made = [send(desk, about, act.GenerateKey(spec)) for spec in options.all_specs()]
    desk.tell(
        [plain_outcome(outcome) for outcome in made],
        (f"{outcome.proposal.proposal_id.hex()}  {one_line(outcome.proposal)}" for outcome in made),
    )


@app.command()
@using(officers_desk, about_proposal, key_spec)
def import_components(
    desk: Desk,
    about: About,
    options: SpecOptions,
    components: Annotated[
        int, typer.Option("--components", min=2, max=act.MAX_COMPONENTS, help="How many there are.")
    ],
    kcv: KcvOption = None,
) -> None:
    """Take a key in as components, each typed by another custodian (keyd component enter)."""
    propose(desk, about, act.ImportKey(options.spec(), components, _kcv(kcv)))


@app.command()
@using(officers_desk, about_proposal, key_spec)
def give_components(
    desk: Desk,
    about: About,
    options: SpecOptions,
    custodian: Annotated[
        list[str],
        typer.Option("--custodian", metavar="CODE", help="Who gets a component; repeated."),
    ],
) -> None:
    """Make a key at random and give each custodian one component (keyd component take)."""
    propose(desk, about, act.GiveComponents(options.spec(), tuple(custodian)))


@app.command()
@using(officers_desk, about_proposal, key_spec)
def import_wrapped(
    desk: Desk,
    about: About,
    options: SpecOptions,
    file: Annotated[Path, typer.Argument(help="The wrapped key, as keyd approve --to wrote it.")],
    transport_key: TransportOption,
    transport_format: FormatOption = _BLOCK,
    kcv: KcvOption = None,
) -> None:
    """Take a key in that came under a key-transport key.

    What the key is, and its check value, is read off its own header unless options say it.
    """
    wrapped = read_small(file)
    header = header_of_wrapped(wrapped)
    announced = _kcv(kcv)
    spec = (
        spec_of_header(header, options)
        if header is not None and options.is_silent
        else options.spec()
    )
    if announced is None:
        if header is None:
            raise typer.BadParameter("the wrapped key does not say it: say --kcv")
        announced = header.kcv
    transport = find_key(desk, transport_key)
    propose(desk, about, act.ImportWrapped(spec, transport, transport_format, wrapped, announced))


@app.command()
@using(officers_desk, about_proposal, key_spec)
def import_envelope(
    desk: Desk,
    about: About,
    options: SpecOptions,
    file: Annotated[Path, typer.Argument(help="The envelope: SM2 ciphertext C1C3C2, or its hex.")],
    kcv: Annotated[
        str, typer.Option("--kcv", metavar="HEX", help="The key's check value, 6 hex digits.")
    ],
) -> None:
    """Take a key in that was encrypted to keyd's SM2 public key (keyd unseal --status shows it)."""
    envelope = read_small(file)
    if envelope[:1] != b"\x04":
        try:
            envelope = bytes.fromhex(envelope.decode("ascii"))
        except ValueError:
            raise BadParameter(f"{file} holds no SM2 ciphertext, and no hex digits") from None
    check_value = hex_bytes(kcv, KCV_BYTES, "a check value")
    propose(desk, about, act.ImportEnvelope(options.spec(), envelope, check_value))


@app.command()
@using(officers_desk, about_proposal)
def export(
    desk: Desk,
    about: About,
    key: KeyArgument,
    transport_key: TransportOption,
    transport_format: FormatOption = _BLOCK,
) -> None:
    """Give a key out under a key-transport key (keyd approve --to FILE writes it)."""
    key_id, transport = find_key(desk, key), find_key(desk, transport_key)
    propose(desk, about, act.ExportKey(key_id, transport, transport_format))


@app.command()
@using(officers_desk, about_proposal)
def export_child(
    desk: Desk,
    about: About,
    key: KeyArgument,
    region: Annotated[
        str, typer.Option("--region", metavar="DIGITS", help="Of the city, or province: 6 digits.")
    ],
    transport_key: TransportOption,
    transport_format: FormatOption = _BLOCK,
) -> None:
    """Diversify a root one level down for a region, and give that out: hand-over (母卡)."""
    if len(region) != 6 or not region.isascii() or not region.isdigit():
        raise typer.BadParameter("a region is six decimal digits", param_hint="--region")
    key_id, transport = find_key(desk, key), find_key(desk, transport_key)
    propose(desk, about, act.ExportChild(key_id, region, transport, transport_format))


# A key's life ---------------------------------------------------------------------------------------------


@app.command()
@using(officers_desk, about_proposal)
def activate(desk: Desk, about: About, key: KeyArgument) -> None:
    """Let a key be used."""
    propose(desk, about, act.Activate(find_key(desk, key)))


@app.command()
@using(officers_desk, about_proposal)
def deactivate(desk: Desk, about: About, key: KeyArgument) -> None:
    """Let a key verify and make nothing new."""
    propose(desk, about, act.Deactivate(find_key(desk, key)))


@app.command()
@using(officers_desk, about_proposal)
def compromise(desk: Desk, about: About, key: KeyArgument) -> None:
    """Stop a key because somebody may know it. There is no way back."""
    propose(desk, about, act.Compromise(find_key(desk, key)))


@app.command()
@using(officers_desk, about_proposal)
def destroy(
    desk: Desk,
    about: About,
    key: KeyArgument,
    waiting_days: Annotated[
        int,
        typer.Option(
            "--waiting-days", min=0, max=act.MAX_WAITING_DAYS, help="To restore it in; 0: none."
        ),
    ] = 30,
) -> None:
    """Stop a key now, and delete it after so many days."""
    propose(desk, about, act.Destroy(find_key(desk, key), waiting_days))


@app.command()
@using(officers_desk, about_proposal)
def restore(desk: Desk, about: About, key: KeyArgument) -> None:
    """Bring a destroyed key back whose waiting period is not over."""
    propose(desk, about, act.Restore(find_key(desk, key)))


@app.command()
@using(officers_desk, about_proposal)
def permit(
    desk: Desk,
    about: About,
    key: KeyArgument,
    valid_from: Annotated[
        str | None, typer.Option("--valid-from", metavar="TIME", help="ISO 8601, UTC; 0: no begin.")
    ] = None,
    valid_until: Annotated[
        str | None, typer.Option("--valid-until", metavar="TIME", help="ISO 8601, UTC; 0: no end.")
    ] = None,
    ceiling: Annotated[
        int | None, typer.Option("--ceiling", min=0, help="How often it may be used; 0: no end.")
    ] = None,
    warn_at: Annotated[
        int | None, typer.Option("--warn-at", min=0, help="Uses from which keyd warns.")
    ] = None,
    minimum_version: Annotated[
        int | None,
        typer.Option("--minimum-version", min=1, max=0xFFFF, help="Older versions are refused."),
    ] = None,
    export: Annotated[Export | None, typer.Option("--export", help="How it may leave.")] = None,
) -> None:
    """Change what a key is allowed; what is not named stays."""
    action = act.Permit(
        find_key(desk, key),
        valid_from=_time_or_none(valid_from, "--valid-from"),
        valid_until=_time_or_none(valid_until, "--valid-until"),
        ceiling=ceiling,
        warn_at=warn_at,
        minimum_version=minimum_version,
        export=export,
    )
    propose(desk, about, action)


def _time_or_none(text: str | None, option: str) -> int | None:
    return 0 if text == "0" else read_time(text, option)


def _kcv(text: str | None) -> bytes | None:
    return None if text is None else hex_bytes(text, KCV_BYTES, "a check value")
