"""Keepers: what other than people's shares can open the seal, so that keyd serves again by itself.

A keeper holds a key of its own, 16 bytes for SM4, under which the store keeps a copy of the seal key. Where that key
is, is all that this module knows: in a file (a systemd credential), or under a key that never leaves a PKCS#11 token.
It knows neither the store nor the seal. Whoever has what a keeper has, and the store, has the keys.

What of a keeper's key stays behind in this process: where a credential is read, nothing, since the file goes into a
bytearray that is wiped, and from there into the arena. Where a key is drawn, os.urandom has given it out as `bytes`
once. Where a token decrypts one, python-pkcs11 gives it out as `bytes` and has it in a buffer of its own. These copies
are freed, and nobody can wipe them; nor can the PIN be. They are why keyd's own memory should not be swapped
(`keyd.hardening`).

On a token the key is encrypted with AES-CBC, as one block without padding, and not with GCM: tokens agree on CBC, while
some have no GCM (YubiHSM 2) and others insist on their own nonce for it (Luna in FIPS mode, AWS CloudHSM). AES-KEY-WRAP
takes only keys, and many tokens refuse to take in or give out a key that wrapping would need. One random block under a
random IV needs no more for secrecy. What CBC does not give, the kept key gives itself: it tags the hint, and only the
key that was drawn with it finds the tag right.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from keyd.config import ConfigError, expand, read_passphrase, require_private
from keyd.crypto.algorithms import KEY_BYTES, Algorithm
from keyd.crypto.secret import NONCE_BYTES, TAG_BYTES, KeyNotAuthentic, SecretKey
from keyd.custody.founding import Keeper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pkcs11 import Attribute, Session, Token

    from keyd.config import Config
    from keyd.custody.bodies import WrappedSealKey

# python-pkcs11 puts the verbs of a token's objects together at run time: no type has them.
_TokenKey = Any

# What the seal calls them. Stored, so never changed.
CREDENTIAL: Final = "credential"
PKCS11: Final = "pkcs11"

_KEY_BYTES: Final = KEY_BYTES[Algorithm.SM4]

# 32 digits and a few line ends; what is longer is another file.
_MAX_CREDENTIAL_BYTES: Final = 64

_BLOCK_BYTES: Final = 16
_TOKEN_KEY_BITS: Final = 256
_MECHANISM: Final = "AES-CBC"
_HINT_LABEL: Final = b"keyd pkcs11 keeper's hint 1\n"

_DIGITS: Final = b"0123456789abcdef"
_VALUES: Final = {digit: value for value, digit in enumerate(_DIGITS)} | {
    digit: value for value, digit in enumerate(_DIGITS.upper())
}

# keyd initialises a module without asking it to be safe for threads, and ends it after each use.
_one_at_a_time: Final = threading.Lock()

# PIN files that a token has refused, as they were then. Some tokens do not say that a wrong PIN was entered.
_refused_pins: Final[set[tuple[object, ...]]] = set()


class TokenUnusable(ConfigError):  # noqa: N818 - says what happened
    """The token does not give its keeper's key; the sentence says why, and never the PIN."""


class KeeperSource(Protocol):
    """Where a keeper's key is. Both methods may block on a device: they belong on a worker thread."""

    @property
    def name(self) -> str:
        """What the seal calls the keeper."""

    def new(self) -> Keeper:
        """Return a keeper for a new seal, made by `keyd init` or a rekey.

        Raises:
            ConfigError: there is no key to be had; `TokenUnusable` if a token is why.
        """

    def open(self, hint: bytes) -> Keeper:
        """Return the keeper that a seal's hint is of.

        Raises:
            ConfigError: as `new`.
        """


class Credential(Struct, frozen=True):
    """A file with a keeper's key."""

    path: Path

    @property
    def name(self) -> str:
        """What the seal calls it."""
        return CREDENTIAL

    def new(self) -> Keeper:
        """Read it. The same file is the keeper of one seal after another."""
        return credential_keeper(self.path)

    def open(self, hint: bytes) -> Keeper:
        """Read it, for a seal with this hint, which says nothing."""
        return Keeper(CREDENTIAL, hint, credential_keeper(self.path).key)


class Pkcs11(Struct, frozen=True):
    """A key on a PKCS#11 token: the module, the labels of token and key, and the file with the user PIN."""

    module: Path
    token: str
    key: str
    pin_file: Path

    @property
    def name(self) -> str:
        """What the seal calls it."""
        return PKCS11

    def new(self) -> Keeper:
        """Draw a key for a new seal and have the token encrypt it."""
        return new_pkcs11_keeper(self)

    def open(self, hint: bytes) -> Keeper:
        """Have the token decrypt the key of the seal with this hint."""
        return pkcs11_keeper(self, hint)


class _Hint(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What finds and decrypts a key on a token. Nothing of it is a secret. A nonce and a tag follow it."""

    token: Annotated[str, Meta(min_length=1, max_length=32)]
    key: Annotated[str, Meta(min_length=1, max_length=64)]
    mechanism: Annotated[str, Meta(max_length=32)]
    iv: Annotated[bytes, Meta(min_length=_BLOCK_BYTES, max_length=_BLOCK_BYTES)]
    ciphertext: Annotated[bytes, Meta(min_length=_KEY_BYTES, max_length=_KEY_BYTES)]


# What is configured. -----------------------------------------------------------------------------------------


def keepers_of(config: Config) -> list[KeeperSource]:
    """Return where the configured keepers' keys are, a credential first: it needs no device."""
    sources: list[KeeperSource] = []
    if config.seal.credential is not None:
        sources.append(Credential(expand(config.seal.credential)))
    token = _configured_token(config)
    if token is not None:
        sources.append(token)
    return sources


def founding_keepers(
    config: Config,
    *,
    credential: Path | None = None,
    pkcs11: bool = False,
    pin_file: Path | None = None,
) -> list[Keeper]:
    """Return the keepers of a seal that is about to be made: `keyd init --credential FILE --pkcs11 --pin-file FILE`.

    The credential's file is given, because the configuration names the place where only a running keyd has it. So is
    the PIN's, where that place is a credential too.

    Raises:
        ConfigError: one of them gives no key, or the configuration has no token.
    """
    sources: list[KeeperSource] = []
    if credential is not None:
        sources.append(Credential(credential))
    if pkcs11:
        token = _configured_token(config)
        if token is None:
            raise ConfigError("the configuration names no token: see [seal.pkcs11]")
        if pin_file is not None:
            token = msgspec.structs.replace(token, pin_file=pin_file)
        sources.append(token)
    return [source.new() for source in sources]


def usable_keepers(
    sources: Sequence[KeeperSource], wrapped: Sequence[WrappedSealKey]
) -> Iterator[Keeper | ConfigError]:
    """Yield, one after another, the keepers that a seal knows and the configuration has.

    In the place of one that cannot be had is why. A device is not asked before its turn comes, so that who stops at
    the first keeper that opens the seal enters no PIN in vain.
    """
    for source in sources:
        for known in wrapped:
            if known.keeper != source.name:
                continue
            try:
                yield source.open(known.hint)
            except ConfigError as error:
                yield error


def _configured_token(config: Config) -> Pkcs11 | None:
    token = config.seal.pkcs11
    if token.module is None or token.token is None or token.pin_file is None:
        return None
    return Pkcs11(expand(token.module), token.token, token.key, expand(token.pin_file))


# A credential. -----------------------------------------------------------------------------------------------


def new_credential(path: Path) -> None:
    """Write a new key, 32 hex digits, into a file of mode 0600 that is not there yet.

    Raises:
        ConfigError: it is there already, or cannot be written. Then there is no half a file either.
    """
    key = bytearray(os.urandom(_KEY_BYTES))
    digits = bytearray(2 * _KEY_BYTES + 1)
    try:
        for place, value in enumerate(key):
            digits[2 * place] = _DIGITS[value >> 4]
            digits[2 * place + 1] = _DIGITS[value & 15]
        digits[-1] = ord("\n")
        _write_new(path, digits)
    finally:
        _wipe(key)
        _wipe(digits)


def credential_keeper(path: Path) -> Keeper:
    """Read the keeper whose key is in a file: 32 hex digits, and a line end or none.

    Raises:
        ConfigError: it cannot be read, others than its owner may read it, or it holds something else.
    """
    require_private(path)
    digits = bytearray(_MAX_CREDENTIAL_BYTES)
    key = bytearray(_KEY_BYTES)
    try:
        length = _read_into(path, digits)
        # A full buffer may be the beginning of something longer.
        if length == len(digits):
            length = 0
        while length and digits[length - 1] in b"\r\n":
            length -= 1
        if length != 2 * _KEY_BYTES or any(digit not in _VALUES for digit in digits[:length]):
            raise ConfigError(f"{path} does not hold {2 * _KEY_BYTES} hex digits and nothing else")
        for place in range(_KEY_BYTES):
            high, low = digits[2 * place], digits[2 * place + 1]
            key[place] = _VALUES[high] << 4 | _VALUES[low]
        if not any(key):
            raise ConfigError(f"{path} holds zeros and no key: make one")
        return Keeper(CREDENTIAL, b"", SecretKey.load(Algorithm.SM4, key))
    finally:
        _wipe(digits)
        _wipe(key)


def _read_into(path: Path, place: bytearray) -> int:
    try:
        # Unbuffered, or Python would keep a copy.
        with path.open("rb", buffering=0) as file:
            return file.readinto(place) or 0
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _write_new(path: Path, content: bytearray) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} is there already, and is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    try:
        with open(fd, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor, and no path
            file.write(content)
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _wipe(secret: bytearray) -> None:
    secret[:] = bytes(len(secret))


# A token. ----------------------------------------------------------------------------------------------------


def new_pkcs11_keeper(settings: Pkcs11) -> Keeper:
    """Draw a keeper's key and have the token encrypt it, under a key that is made there if it is not there yet.

    Raises:
        TokenUnusable: the token is not there, refuses, or its key of that name is none that keyd may trust.
        ConfigError: the PIN's file cannot be used.
    """
    iv = os.urandom(_BLOCK_BYTES)
    material = bytearray(os.urandom(_KEY_BYTES))
    try:
        with _session(settings, by_itself=False) as (token, session):
            token_key = _found_key(session, settings)
            if token_key is None:
                _make_key(token, settings)
                token_key = _known_key(session, settings)
            _require_kept(token_key, settings)
            ciphertext = _encrypt(token_key, iv, material)
        hint = _Hint(settings.token, settings.key, _MECHANISM, iv, ciphertext)
        key = SecretKey.load(Algorithm.SM4, material)
    finally:
        _wipe(material)
    body = msgspec.msgpack.encode(hint)
    nonce = os.urandom(NONCE_BYTES)
    return Keeper(PKCS11, body + nonce + key.seal(b"", nonce, _HINT_LABEL + body), key)


def pkcs11_keeper(settings: Pkcs11, hint: bytes) -> Keeper:
    """Have the token decrypt the keeper's key that a hint is of.

    Raises:
        TokenUnusable: as `new_pkcs11_keeper`, the hint was altered or is of another token or key than configured, or
            the last PIN that anybody entered was wrong.
        ConfigError: the PIN's file cannot be used.
    """
    # Of what is too short for all three, no body is left that could be read.
    body = hint[: -NONCE_BYTES - TAG_BYTES]
    nonce, tag = hint[-NONCE_BYTES - TAG_BYTES : -TAG_BYTES], hint[-TAG_BYTES:]
    known = _read_hint(body)
    if (known.token, known.key) != (settings.token, settings.key):
        raise TokenUnusable(
            f"the seal's key is {known.key!r} on the token {known.token!r}, and the configuration "
            f"names {settings.key!r} on {settings.token!r}"
        )
    with _session(settings, by_itself=True) as (_token, session):
        key = _decrypt_to_key(_known_key(session, settings), known, settings)
    try:
        key.open(tag, nonce, _HINT_LABEL + body)
    except KeyNotAuthentic:
        raise TokenUnusable(
            f"the key {settings.key!r} on the token {settings.token!r} is not the one that the seal "
            "was made with, or the store was altered"
        ) from None
    return Keeper(PKCS11, hint, key)


def _read_hint(body: bytes) -> _Hint:
    try:
        hint = msgspec.msgpack.decode(body, type=_Hint)
    except (msgspec.MsgspecError, ValueError):  # bad UTF-8 is a ValueError of its own
        raise TokenUnusable(
            "what the seal says of its token cannot be read: the store was altered"
        ) from None
    if hint.mechanism != _MECHANISM:
        raise TokenUnusable(
            f"the seal's key is under {hint.mechanism!r}, which this keyd does not know"
        )
    return hint


@contextmanager
def _session(settings: Pkcs11, *, by_itself: bool) -> Iterator[tuple[Token, Session]]:
    """Log in, for as long as it takes. Every failure of python-pkcs11 inside becomes `TokenUnusable`."""
    try:
        import pkcs11
    except ImportError:
        raise TokenUnusable(
            'PKCS#11 needs the package python-pkcs11: install keyd with its extra, "keyd[pkcs11]"'
        ) from None
    if not settings.module.is_file():
        raise TokenUnusable(f"the PKCS#11 module {settings.module} is not there")
    as_it_was = _state_of(settings)
    pin = _pin(settings.pin_file)
    with _one_at_a_time:
        if as_it_was in _refused_pins:
            raise TokenUnusable(
                f"the token {settings.token!r} has refused the PIN in {settings.pin_file}, which is not "
                "tried again: mend the file"
            )
        library = None
        try:
            library = pkcs11.lib(str(settings.module))
            token = _token(library, settings)
            _require_pin_tries(token, by_itself=by_itself)
            with token.open(user_pin=pin) as session:
                yield token, session
        except pkcs11.PKCS11Error as error:
            if isinstance(error, pkcs11.PinIncorrect | pkcs11.PinInvalid | pkcs11.PinLenRange):
                _refused_pins.add(as_it_was)
            raise TokenUnusable(_sentence(error, settings)) from None
        finally:
            if library is not None:
                _end(library)


def _pin(path: Path) -> str:
    try:
        return read_passphrase(path).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} holds no PIN: it is not UTF-8") from None


def _state_of(settings: Pkcs11) -> tuple[object, ...]:
    """Return what tells a PIN file that was mended from the one that was refused."""
    try:
        file = settings.pin_file.stat()
    except OSError as error:
        raise ConfigError(f"{settings.pin_file} cannot be read: {error.strerror}") from None
    return settings.module, settings.token, settings.pin_file, file.st_ino, file.st_mtime_ns


def _end(library: Any) -> None:
    """End the module's use, which logs out. That the token is gone is no fault here: it has been told already."""
    import pkcs11

    with suppress(pkcs11.PKCS11Error):
        library.finalize()


def _token(library: Any, settings: Pkcs11) -> Token:
    import pkcs11

    try:
        return library.get_token(token_label=settings.token)  # type: ignore[no-any-return]
    except pkcs11.NoSuchToken:
        raise TokenUnusable(
            f"there is no token {settings.token!r}: it is not plugged in, or not initialised"
        ) from None
    except pkcs11.MultipleTokensReturned:
        raise TokenUnusable(
            f"there are several tokens {settings.token!r}, and a PIN is not tried on any: give them "
            "labels of their own"
        ) from None


def _require_pin_tries(token: Token, *, by_itself: bool) -> None:
    """Leave a token alone that a wrong PIN would bring closer to being locked.

    keyd may be restarted again and again with the same wrong PIN. What it cannot remember from one start to the next,
    the token does: it says whether a wrong PIN was entered since the last right one.
    """
    from pkcs11 import TokenFlag

    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise TokenUnusable(f"the PIN of the token {token.label!r} is locked")
    if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise TokenUnusable(
            f"the token {token.label!r} allows one more PIN, which keyd leaves to people: log in with "
            "the token's own tool"
        )
    if by_itself and token.flags & TokenFlag.USER_PIN_COUNT_LOW:
        raise TokenUnusable(
            f"the last PIN that the token {token.label!r} was given was wrong, and keyd does not try "
            "again by itself: mend the PIN file, and log in once with the token's own tool"
        )


def _found_key(session: Session, settings: Pkcs11) -> _TokenKey | None:
    from pkcs11 import Attribute, KeyType, ObjectClass

    found = list(
        session.get_objects(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.LABEL: settings.key,
                Attribute.TOKEN: True,
            }
        )
    )
    if len(found) > 1:
        raise TokenUnusable(f"the token {settings.token!r} has several keys {settings.key!r}")
    return found[0] if found else None


def _known_key(session: Session, settings: Pkcs11) -> _TokenKey:
    key = _found_key(session, settings)
    if key is None:
        raise TokenUnusable(
            f"the token {settings.token!r} has no key {settings.key!r}: it was deleted, or this is "
            "another token of that name"
        )
    return key


def _make_key(token: Token, settings: Pkcs11) -> None:
    from pkcs11 import Attribute, KeyType, MechanismFlag

    # Logged in is the process, and not a session: this one needs no PIN again.
    with token.open(rw=True) as session:
        session.generate_key(
            KeyType.AES,
            _TOKEN_KEY_BITS,
            label=settings.key,
            store=True,
            # For one thing only: it wraps nothing and signs nothing.
            capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
            template={
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
            },
        )


def _require_kept(key: _TokenKey, settings: Pkcs11) -> None:
    """Refuse a key that somebody else made and that can leave the token, is too short, or is for something else.

    Raises:
        TokenUnusable: so it is.
    """
    from pkcs11 import Attribute

    if key[Attribute.EXTRACTABLE] or not key[Attribute.SENSITIVE]:
        raise TokenUnusable(
            f"the key {settings.key!r} on the token {settings.token!r} can be taken out of it: "
            "delete it, or name another"
        )
    if key[Attribute.VALUE_LEN] * 8 != _TOKEN_KEY_BITS:
        raise TokenUnusable(
            f"the key {settings.key!r} on the token {settings.token!r} has not {_TOKEN_KEY_BITS} "
            "bits: delete it, or name another"
        )
    for use in (Attribute.ENCRYPT, Attribute.DECRYPT):
        _require_use(key, use, settings)


def _require_use(key: _TokenKey, use: Attribute, settings: Pkcs11) -> None:
    # python-pkcs11 gives a key only the verbs that it may do: a wrong one would be an AttributeError.
    if not key[use]:
        raise TokenUnusable(
            f"the key {settings.key!r} on the token {settings.token!r} may not {use.name.lower()}"
        )


def _encrypt(key: _TokenKey, iv: bytes, material: bytearray) -> bytes:
    from pkcs11 import Mechanism

    # As a stream of one piece: so python-pkcs11 takes the bytearray itself, and makes no copy of it.
    pieces = key.encrypt(iter([material]), mechanism=Mechanism.AES_CBC, mechanism_param=iv)
    return b"".join(pieces)


def _decrypt_to_key(key: _TokenKey, hint: _Hint, settings: Pkcs11) -> SecretKey:
    from pkcs11 import Attribute, Mechanism

    _require_use(key, Attribute.DECRYPT, settings)
    # These bytes cannot be wiped; they are dropped at once.
    material = bytearray(
        key.decrypt(hint.ciphertext, mechanism=Mechanism.AES_CBC, mechanism_param=hint.iv)
    )
    try:
        if len(material) != _KEY_BYTES:
            raise TokenUnusable("the token decrypted something else than a key")
        return SecretKey.load(Algorithm.SM4, material)
    finally:
        _wipe(material)


# Why a token refuses, in words. What is not here is told by the name that PKCS#11 has for it.
_REASONS: Final = {
    "PinIncorrect": "the PIN is wrong, and is not tried again",
    "PinInvalid": "the PIN is wrong, and is not tried again",
    "PinLenRange": "the PIN is wrong, and is not tried again: it is too short or too long",
    "PinExpired": "the PIN has expired",
    "PinLocked": "the PIN is locked",
    "UserPinNotInitialized": "it has no user PIN yet",
    "TokenNotPresent": "it is not plugged in",
    "TokenNotRecognised": "it cannot be read",
    "DeviceRemoved": "it was removed",
    "DeviceError": "the device fails",
    "TokenWriteProtected": "it is write-protected, and a key has to be made on it",
    "SessionReadOnly": "it is write-protected, and a key has to be made on it",
    "MechanismInvalid": "it has no AES-CBC, or cannot make AES keys",
    "KeyFunctionNotPermitted": "its key may not encrypt and decrypt",
}


def _sentence(error: Exception, settings: Pkcs11) -> str:
    name = type(error).__name__
    if name == "PKCS11Error":
        # What the loader says: a path, and no secret.
        return f"the PKCS#11 module {settings.module} cannot be used: {error}"
    return f"the token {settings.token!r} does not open: {_REASONS.get(name, name)}"
