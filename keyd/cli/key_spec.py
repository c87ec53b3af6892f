"""What a key is to be, from options: one by one, from the card profile's table, or from a wrapped key's own header."""

from __future__ import annotations

import csv
import re
from datetime import UTC, datetime
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
import typer
from msgspec import Struct

from keyd.cards.profile import newest
from keyd.cards.profile_files import load_profiles
from keyd.crypto.algorithms import Algorithm, CardAlgorithm
from keyd.crypto.secret import KeyNotAuthentic
from keyd.custody.actions import KeySpec
from keyd.errors import BadParameter
from keyd.keys.block import Export, KeyHeader, Mode, Tier, Use, read_header
from keyd.keys.hierarchy import TERMINAL_LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

    from keyd.cards.profile import Profile, ProfileKey

_ADDRESS: Final = re.compile(r"(0[xX])?[0-9A-Fa-f]{4}\Z")
_OCTET: Final = re.compile(r"(0[xX])?[0-9A-Fa-f]{1,2}\Z")

_LEVELS: Final = {Tier.NATIONAL: 3, Tier.PROVINCIAL: 2, Tier.CITY: 1}
_LEVELS_OF_USE: Final = {Use.TRANSPORT: 0, Use.TERMINAL: TERMINAL_LEVELS}


class CardChoice(StrEnum):
    """Which cards a key of the profile is for."""

    SM4 = "sm4"
    DES = "des"


class KeyAlgorithm(StrEnum):
    """The block ciphers that keyd computes."""

    SM4 = "SM4"
    TDES = "3DES"
    DES = "DES"


class Psam(NamedTuple):
    """Where a key is in a PSAM: the key's type and id there."""

    type: int
    id: int


class SpecOptions(Struct, frozen=True):
    """The options that say what a key is; None was not said."""

    from_profile: str | None
    card: CardChoice
    profiles: Path | None
    tier: Tier | None
    name: str | None
    algorithm: KeyAlgorithm | None
    use: Use | None
    addresses: tuple[int, ...]
    levels: int | None
    set: int | None
    modes: tuple[Mode, ...]
    psam_type: int | None
    psam_id: int | None
    valid_from: int
    valid_until: int
    ceiling: int
    warn_at: int
    export: Export | None

    @property
    def is_silent(self) -> bool:
        """Whether nothing was said of which key it is."""
        return all(
            said in (None, ())
            for said in (self.from_profile, self.tier, self.name, self.use, self.addresses)
        )

    def spec(self) -> KeySpec:
        """Return the key that the options describe.

        Raises:
            typer.BadParameter: something is missing.
            BadParameter: the profile has no such key, or the options contradict it.
        """
        if self.from_profile is None:
            return self._written_out()
        profile, psams = load_table(self.profiles)
        return self._of(find_in_profile(profile, self.from_profile), psams)

    def all_specs(self) -> list[KeySpec]:
        """Return every key of the profile, by address.

        Raises:
            typer.BadParameter: an option says what the profile says.
        """
        if self.from_profile is not None:
            raise typer.BadParameter("--all-from-profile and --from-profile exclude each other")
        profile, psams = load_table(self.profiles)
        return [self._of(key, psams) for _address, key in sorted(profile.keys.items())]

    def _written_out(self) -> KeySpec:
        if self.name is None or self.algorithm is None or self.use is None:
            raise typer.BadParameter(
                "say --from-profile NAME, or --name, --algorithm and --use (and --address of a root)"
            )
        return self._made(
            name=self.name,
            algorithm=Algorithm(self.algorithm.value),
            use=self.use,
            addresses=self.addresses,
            set_=self.set or 1,
            psam=Psam(self.psam_type or 0, self.psam_id or 0),
        )

    def _of(self, key: ProfileKey, psams: dict[int, Psam]) -> KeySpec:
        if self.name or self.algorithm or self.use or self.addresses or self.set:
            raise typer.BadParameter(
                "the profile says name, algorithm, use, address and set: leave those options out"
            )
        psam = psams.get(key.address, Psam(0, 0))
        return self._made(
            name=key.name,
            algorithm=key.algorithm(CardAlgorithm[self.card.name]),
            use=key.use,
            addresses=(key.address,),
            set_=key.set,
            psam=Psam(
                psam.type if self.psam_type is None else self.psam_type,
                psam.id if self.psam_id is None else self.psam_id,
            ),
        )

    def _made(
        self,
        *,
        name: str,
        algorithm: Algorithm,
        use: Use,
        addresses: tuple[int, ...],
        set_: int,
        psam: Psam,
    ) -> KeySpec:
        if self.tier is None:
            raise typer.BadParameter("say --tier: whose key it is")
        levels = self.levels
        if levels is None:
            levels = _LEVELS_OF_USE.get(use, _LEVELS[self.tier])
        spec = KeySpec(
            tier=self.tier,
            name=name,
            algorithm=algorithm,
            use=use,
            addresses=addresses,
            levels=levels,
            set=set_,
            modes=self.modes,
            psam_type=psam.type,
            psam_id=psam.id,
            valid_from=self.valid_from,
            valid_until=self.valid_until,
            ceiling=self.ceiling,
            warn_at=self.warn_at,
            export=self.export or Export.NEVER,
        )
        return _checked(spec)


def key_spec(
    from_profile: Annotated[
        str | None,
        typer.Option(
            "--from-profile",
            metavar="NAME[:SET]|ADDRESS",
            help="Take name, address, set, use, algorithm and PSAM place from the card profile.",
        ),
    ] = None,
    card: Annotated[
        CardChoice, typer.Option("--card", help="With the profile: for which cards.")
    ] = CardChoice.SM4,
    profiles: Annotated[
        Path | None,
        typer.Option("--profiles", metavar="FOLDER", help="Card profiles; keyd's own unless told."),
    ] = None,
    tier: Annotated[Tier | None, typer.Option("--tier", help="Whose key it is.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The key's name, e.g. IRK or KTK-1.")
    ] = None,
    algorithm: Annotated[KeyAlgorithm | None, typer.Option("--algorithm")] = None,
    use: Annotated[Use | None, typer.Option("--use", help="What the key is for.")] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address", metavar="HEX", help="Where it answers, e.g. 0170; may be repeated."
        ),
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option("--levels", min=0, max=3, help="Levels above the card; by tier unless told."),
    ] = None,
    set_: Annotated[
        int | None, typer.Option("--set", min=1, max=3, help="Which set; 1 unless told.")
    ] = None,
    mode: Annotated[
        list[Mode] | None,
        typer.Option("--mode", help="Only in this direction; may be repeated; both unless told."),
    ] = None,
    psam_type: Annotated[
        str | None, typer.Option("--psam-type", metavar="HEX", help="Its type in a PSAM.")
    ] = None,
    psam_id: Annotated[
        str | None, typer.Option("--psam-id", metavar="HEX", help="Its id in a PSAM.")
    ] = None,
    valid_from: Annotated[
        str | None,
        typer.Option(
            "--valid-from", metavar="TIME", help="ISO 8601; UTC unless it says otherwise."
        ),
    ] = None,
    valid_until: Annotated[str | None, typer.Option("--valid-until", metavar="TIME")] = None,
    ceiling: Annotated[
        int, typer.Option("--ceiling", min=0, help="How often it may be used; 0: no end.")
    ] = 0,
    warn_at: Annotated[
        int, typer.Option("--warn-at", min=0, help="Uses from which keyd warns.")
    ] = 0,
    export: Annotated[
        Export | None, typer.Option("--export", help="How it may leave; never unless told.")
    ] = None,
) -> SpecOptions:
    """Read the options that say what a key is to be."""
    return SpecOptions(
        from_profile=from_profile,
        card=card,
        profiles=profiles,
        tier=tier,
        name=name,
        algorithm=algorithm,
        use=use,
        addresses=tuple(read_address(text) for text in address or ()),
        levels=levels,
        set=set_,
        modes=tuple(mode or ()),
        psam_type=_octet(psam_type, "--psam-type"),
        psam_id=_octet(psam_id, "--psam-id"),
        valid_from=read_time(valid_from, "--valid-from") or 0,
        valid_until=read_time(valid_until, "--valid-until") or 0,
        ceiling=ceiling,
        warn_at=warn_at,
        export=export,
    )


# The profile's table --------------------------------------------------------------------------------------


def load_table(folder: Path | None) -> tuple[Profile, dict[int, Psam]]:
    """Load the newest generation's profile, which names every key, and where its keys are in a PSAM.

    Raises:
        BadParameter: a profile is wrong, or a table is.
    """
    place: Traversable = folder or resources.files("keyd.cards") / "profiles"
    profile = newest(load_profiles(place))
    psams: dict[int, Psam] = {}
    for entry in place.iterdir():
        if entry.name.endswith(".csv"):
            psams.update(_psams(entry))
    return profile, psams


def _psams(table: Traversable) -> Iterator[tuple[int, Psam]]:
    for line in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        try:
            place = Psam(int(line["psam_type_hex"], 16), int(line["psam_id_or_version_hex"], 16))
            yield int(line["address_hex"], 16), place
        except (KeyError, ValueError, TypeError):
            # A province's own table need not say where a key is in a PSAM.
            continue


def find_in_profile(profile: Profile, wanted: str) -> ProfileKey:
    """Return the key of a profile that somebody named: NAME, NAME:SET or ADDRESS.

    Raises:
        BadParameter: there is none, or more than one.
    """
    name, colon, number = wanted.partition(":")
    if (
        not colon
        and _ADDRESS.match(name)
        and name.upper() not in {k.name for k in profile.keys.values()}
    ):
        key = profile.keys.get(int(name, 16))
        if key is None:
            raise BadParameter(f"the profile has no key address {name.upper()}")
        return key
    if colon and number not in ("1", "2", "3"):
        raise BadParameter(f"{wanted}: a set is 1, 2 or 3")
    found = [
        key
        for key in profile.keys.values()
        if key.name == name.upper() and key.set == int(number or "1")
    ]
    if not found:
        raise BadParameter(f"the profile has no key {wanted}")
    if len(found) > 1:
        addresses = ", ".join(f"{key.address:04X}" for key in found)
        raise BadParameter(f"{wanted} is at {addresses}: say which address")
    return found[0]


# A wrapped key's header -----------------------------------------------------------------------------------


def header_of_wrapped(wrapped: bytes) -> KeyHeader | None:
    """Read what a wrapped key says of itself, which nobody has checked: keyd does when it takes the key in.

    None: it says nothing, as a key from other equipment may.

    Raises:
        BadParameter: it is no wrapped key.
    """
    try:
        header, _nonce_or_key, _key_or_mac = msgspec.msgpack.decode(
            wrapped, type=tuple[bytes, bytes, bytes]
        )
        return read_header(header) if header else None
    except (msgspec.MsgspecError, ValueError, KeyNotAuthentic):
        raise BadParameter("the file holds no wrapped key") from None


def spec_of_header(header: KeyHeader, options: SpecOptions) -> KeySpec:
    """Return the key that a header describes, with no more rights than it has.

    The options may narrow validity, ceiling and export; the rest is the header's.
    """
    return _checked(
        KeySpec(
            tier=header.tier,
            name=header.name,
            algorithm=header.algorithm,
            use=header.use,
            addresses=header.addresses,
            levels=header.levels,
            set=header.set,
            modes=options.modes or header.modes,
            psam_type=header.psam_type,
            psam_id=header.psam_id,
            valid_from=options.valid_from or header.valid_from,
            valid_until=options.valid_until or header.valid_until,
            ceiling=options.ceiling or header.ceiling,
            warn_at=options.warn_at or (0 if options.ceiling else header.warn_at),
            export=header.export if options.export is None else options.export,
        )
    )


# ----------------------------------------------------------------------------------------------------------


def read_address(text: str) -> int:
    """Read a logical key address, four hex digits.

    Raises:
        typer.BadParameter: it is none.
    """
    if not _ADDRESS.match(text):
        raise typer.BadParameter(f"{text!r} is no address: write four hex digits, like 0170")
    return int(text, 16)


def read_time(text: str | None, option: str) -> int | None:
    """Read a time, ISO 8601, in seconds since 1970; UTC unless it says otherwise.

    Raises:
        typer.BadParameter: it is none.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time: write 2027-01-01 or 2027-01-01T08:00+08:00", param_hint=option
        ) from None
    seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if seconds < 0:
        raise typer.BadParameter(f"{text!r} is before 1970", param_hint=option)
    return seconds


def _octet(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not _OCTET.match(text):
        raise typer.BadParameter(f"{text!r} is no byte in hex", param_hint=option)
    return int(text, 16)


def _checked(spec: KeySpec) -> KeySpec:
    try:
        return msgspec.convert(msgspec.to_builtins(spec), KeySpec)
    except msgspec.ValidationError as error:
        raise BadParameter(f"the key: {error}") from None
