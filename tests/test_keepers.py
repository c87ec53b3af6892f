"""Invariant: a keeper opens the seal that it was shown, or says in one sentence why not, never the PIN or the key;
and no token is brought closer to being locked by keyd itself.

The token is SoftHSM2's, with a folder of its own for each test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, TokenFlag

from keyd import keepers
from keyd.config import (
    Audit,
    Config,
    ConfigError,
    Pkcs11Config,
    PolicyConfig,
    SealConfig,
    StoreConfig,
)
from keyd.crypto.algorithms import Algorithm
from keyd.crypto.secret import SecretKey
from keyd.crypto.sm2 import Sm2PrivateKey
from keyd.custody.bodies import SealBody, WrappedSealKey, decode
from keyd.custody.founding import found
from keyd.custody.officers import Officer, OfficerRole
from keyd.custody.seal import open_seal, unwrap_from_keeper, wrap_for_keeper
from keyd.keepers import (
    CREDENTIAL,
    PKCS11,
    Credential,
    Pkcs11,
    TokenUnusable,
    credential_keeper,
    founding_keepers,
    keepers_of,
    new_credential,
    new_pkcs11_keeper,
    pkcs11_keeper,
    usable_keepers,
)
from keyd.keys.block import Domain, Tier
from keyd.store.rows import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyd.custody.founding import Keeper

REPOSITORY: Final = Path(__file__).parent.parent

TOKEN: Final = "keyd"
PIN: Final = "48151623"
WRONG_PIN: Final = "99999999"
SO_PIN: Final = "31415926"

# A key that must not be found in any sentence.
CANARY: Final = "c0ffee00decafbadc0ffee00decafbad"

_MODULES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)


def seal_key() -> SecretKey:
    return SecretKey.generate(Algorithm.SM4)


def wrapped_for(keeper: Keeper, key: SecretKey) -> WrappedSealKey:
    return wrap_for_keeper(key, keeper.name, keeper.hint, keeper.key, os.urandom)


def opens(keeper: Keeper, wrapped: WrappedSealKey, key: SecretKey) -> bool:
    return unwrap_from_keeper(wrapped, keeper.key).kcv() == key.kcv()


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def sentence_of(call: Callable[[], object], kind: type[ConfigError] = ConfigError) -> str:
    """Have the call refused, by exactly this class, in one sentence without a secret; return it."""
    with pytest.raises(ConfigError) as raised:
        call()
    assert type(raised.value) is kind
    sentence = str(raised.value)
    shown = (sentence + repr(raised.value)).lower()
    assert sentence
    assert "\n" not in sentence
    assert not any(secret in shown for secret in (PIN, WRONG_PIN, SO_PIN, CANARY))
    # Neither does a traceback lead back to an error that would.
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return sentence


# A credential. -----------------------------------------------------------------------------------------------


def test_a_new_credential_opens_what_it_closed(tmp_path: Path) -> None:
    path = tmp_path / "seal"
    new_credential(path)
    key = seal_key()
    wrapped = wrapped_for(credential_keeper(path), key)
    assert (wrapped.keeper, wrapped.hint) == (CREDENTIAL, b"")
    assert opens(Credential(path).open(wrapped.hint), wrapped, key)


def test_a_new_credential_is_private_hex_and_another_each_time(tmp_path: Path) -> None:
    contents = set()
    for name in ("one", "two"):
        new_credential(tmp_path / name)
        assert (tmp_path / name).stat().st_mode & 0o7777 == 0o600
        content = (tmp_path / name).read_bytes()
        assert (len(content), content[-1:]) == (33, b"\n")
        assert len(bytes.fromhex(content.decode())) == 16
        contents.add(content)
    assert len(contents) == 2


def test_a_credential_is_the_key_that_its_digits_are(tmp_path: Path) -> None:
    digits = "0123456789ABCDEFfedcba9876543210"
    kept = credential_keeper(write(tmp_path / "seal", digits + "\r\n")).key
    assert kept.kcv() == SecretKey.load(Algorithm.SM4, bytes.fromhex(digits)).kcv()
    # Each digit counts.
    for place in range(len(digits)):
        other = digits[:place] + ("1" if digits[place] == "0" else "0") + digits[place + 1 :]
        assert credential_keeper(write(tmp_path / "other", other)).key.kcv() != kept.kcv()


def test_a_credential_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "seal", CANARY)
    assert "is there already" in sentence_of(lambda: new_credential(path))
    assert path.read_text() == CANARY
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "elsewhere")
    assert "is there already" in sentence_of(lambda: new_credential(dangling))
    assert not (tmp_path / "elsewhere").exists()


def test_a_credential_that_cannot_be_written(tmp_path: Path) -> None:
    assert "No such file" in sentence_of(lambda: new_credential(tmp_path / "no" / "seal"))


def test_a_full_disk_leaves_no_half_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", is_full)
    assert "No space left" in sentence_of(lambda: new_credential(tmp_path / "seal"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_credential_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "seal", CANARY, mode)
    assert "others may read it" in sentence_of(lambda: credential_keeper(path))


def test_a_systemd_credential_has_systemds_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "seal", CANARY, 0o440)
    config = configured(SealConfig(credential="$CREDENTIALS_DIRECTORY/seal"))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    [source] = keepers_of(config)
    assert "No such file" in sentence_of(source.new)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    [source] = keepers_of(config)
    expected = SecretKey.load(Algorithm.SM4, bytes.fromhex(CANARY))
    assert source.new().key.kcv() == expected.kcv()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path.parent))
    assert "others may read it" in sentence_of(Credential(tmp_path / "seal").new)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        CANARY[:-1],
        CANARY + "0",
        CANARY + " ",
        " " + CANARY,
        CANARY + "\n" + CANARY,
        CANARY[:-1] + "g",
        CANARY[:-2] + "\u0661",
        CANARY[:16] + "\n" + CANARY[16:],
        CANARY + "\n" * 60,
        "\0" * 32,
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "seal", content)
    assert f"{path} does not hold 32 hex digits" in sentence_of(lambda: credential_keeper(path))


def test_zeros_are_no_key(tmp_path: Path) -> None:
    path = write(tmp_path / "seal", "0" * 32)
    assert "holds zeros" in sentence_of(lambda: credential_keeper(path))


def test_a_folder_is_no_credential(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert "Is a directory" in sentence_of(lambda: credential_keeper(tmp_path))


# A token. ----------------------------------------------------------------------------------------------------


class Tokens:
    """A SoftHSM2 with a folder of its own."""

    def __init__(self, folder: Path, module: Path) -> None:
        self.folder = folder
        self.module = module
        self.pin_file = write(folder / "pin", PIN + "\n")
        (folder / "tokens").mkdir()
        self.configuration = write(
            folder / "softhsm2.conf",
            f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n",
        )

    def add(self, label: str) -> None:
        subprocess.run(
            [
                *("softhsm2-util", "--init-token", "--free", "--label", label),
                *("--pin", PIN, "--so-pin", SO_PIN),
            ],
            check=True,
            capture_output=True,
            env=os.environ | {"SOFTHSM2_CONF": str(self.configuration)},
        )

    def settings(self, token: str = TOKEN, key: str = "keyd-seal") -> Pkcs11:
        return Pkcs11(self.module, token, key, self.pin_file)

    def do(self, work: Callable[[Any], Any], token: str = TOKEN, pin: str = PIN) -> Any:
        """Do something on a token without keyd: with a session, logged in."""
        library = pkcs11.lib(str(self.module))
        try:
            with library.get_token(token_label=token).open(rw=True, user_pin=pin) as session:
                return work(session)
        finally:
            library.finalize()

    def flags(self, token: str = TOKEN) -> TokenFlag:
        library = pkcs11.lib(str(self.module))
        try:
            return TokenFlag(library.get_token(token_label=token).flags)
        finally:
            library.finalize()

    def enter_wrong_pin(self) -> None:
        with pytest.raises(pkcs11.PinIncorrect):
            self.do(nothing, pin=WRONG_PIN)

    def mend_pin(self, pin: str) -> None:
        """Write the PIN's file anew, as somebody who mends it would: another file takes its place."""
        write(self.folder / "mended", pin).replace(self.pin_file)


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokens:
    """A SoftHSM2 that has one token, "keyd"."""
    module = next((path for path in map(Path, _MODULES) if path.is_file()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM2 is not here: install the Debian package softhsm2")
    tokens = Tokens(tmp_path, module)
    monkeypatch.setenv("SOFTHSM2_CONF", str(tokens.configuration))
    monkeypatch.setattr(keepers, "_refused_pins", set())
    tokens.add("keyd")
    return tokens


def nothing(_session: Any) -> None:
    """Log in, and that is all."""


def keys_on(session: Any) -> list[Any]:
    return list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}))


def destroy_keys(session: Any) -> None:
    for key in keys_on(session):
        key.destroy()


def test_a_token_opens_what_it_closed(tokens: Tokens) -> None:
    key = seal_key()
    wrapped = wrapped_for(new_pkcs11_keeper(tokens.settings()), key)
    assert wrapped.keeper == PKCS11
    # Again and again: every start of keyd is one.
    for _ in range(3):
        assert opens(pkcs11_keeper(tokens.settings(), wrapped.hint), wrapped, key)


def test_another_process_opens_it(tokens: Tokens) -> None:
    """Nothing of the founding process is needed: only the token and the hint."""
    keeper = new_pkcs11_keeper(tokens.settings())
    settings = tokens.settings()
    script = (
        "import sys; from pathlib import Path; from keyd.keepers import Pkcs11, pkcs11_keeper\n"
        "module, token, key, pin_file, hint = sys.argv[1:]\n"
        "settings = Pkcs11(Path(module), token, key, Path(pin_file))\n"
        "print(pkcs11_keeper(settings, bytes.fromhex(hint)).key.kcv().hex())\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", script),
            *(str(settings.module), settings.token, settings.key, str(settings.pin_file)),
            keeper.hint.hex(),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, keeper.key.kcv().hex()), done.stderr


def test_the_key_on_the_token_never_leaves_it_and_is_for_one_thing(tokens: Tokens) -> None:
    new_pkcs11_keeper(tokens.settings())
    expected = {
        **dict.fromkeys(("TOKEN", "PRIVATE", "SENSITIVE", "ALWAYS_SENSITIVE"), True),
        **dict.fromkeys(("NEVER_EXTRACTABLE", "LOCAL", "ENCRYPT", "DECRYPT"), True),
        **dict.fromkeys(("EXTRACTABLE", "WRAP", "UNWRAP", "SIGN", "VERIFY", "DERIVE"), False),
        "LABEL": "keyd-seal",
        "VALUE_LEN": 32,
    }

    def attributes(session: Any) -> dict[str, Any]:
        [key] = keys_on(session)
        with pytest.raises(pkcs11.PKCS11Error):
            key[Attribute.VALUE]
        return {name: key[Attribute[name]] for name in expected}

    assert tokens.do(attributes) == expected


def test_a_second_seal_uses_the_same_key_on_the_token_and_another_of_its_own(
    tokens: Tokens,
) -> None:
    first, second = (new_pkcs11_keeper(tokens.settings()) for _ in range(2))
    assert len(tokens.do(keys_on)) == 1
    assert first.hint != second.hint
    assert first.key.kcv() != second.key.kcv()
    # A rekey must not make the old seal unreadable: a backup has it.
    for keeper in (first, second):
        assert pkcs11_keeper(tokens.settings(), keeper.hint).key.kcv() == keeper.key.kcv()


def test_the_hint_says_where_and_nothing_secret(tokens: Tokens) -> None:
    settings = tokens.settings(key="封印" * 32)
    keeper = new_pkcs11_keeper(settings)
    assert len(keeper.hint) <= 1024
    token, key, mechanism, iv, ciphertext = msgspec.msgpack.decode(keeper.hint[:-28])
    assert (token, key, mechanism) == ("keyd", settings.key, "AES-CBC")
    assert (len(iv), len(ciphertext)) == (16, 16)
    assert PIN.encode() not in keeper.hint
    # It is what the token encrypted, and not what keyd keeps.
    assert SecretKey.load(Algorithm.SM4, ciphertext).kcv() != keeper.key.kcv()


def test_a_hint_altered_in_any_byte_is_refused(tokens: Tokens) -> None:
    hint = new_pkcs11_keeper(tokens.settings()).hint
    for place in range(len(hint)):
        for flip in (0x01, 0x80):
            altered = hint[:place] + bytes([hint[place] ^ flip]) + hint[place + 1 :]
            sentence_of(partial(pkcs11_keeper, tokens.settings(), altered), TokenUnusable)
    # What is refused is the alteration: the hint itself still opens.
    pkcs11_keeper(tokens.settings(), hint)


def test_a_hint_cut_or_lengthened_is_refused(tokens: Tokens) -> None:
    hint = new_pkcs11_keeper(tokens.settings()).hint
    for other in [*(hint[:length] for length in range(len(hint))), hint + b"\0", b"\0" + hint]:
        sentence_of(partial(pkcs11_keeper, tokens.settings(), other), TokenUnusable)
    sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint + bytes(1024)), TokenUnusable)


def test_a_mechanism_of_a_later_keyd_is_named(tokens: Tokens) -> None:
    hint = msgspec.msgpack.encode(["keyd", "keyd-seal", "AES-GCM", bytes(16), bytes(16)])
    refused = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint + bytes(28)), TokenUnusable)
    assert "'AES-GCM', which this keyd does not know" in refused


# PINs. -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pin", [WRONG_PIN, "1", "9" * 300])
def test_a_wrong_pin_is_tried_once(tokens: Tokens, pin: str) -> None:
    hint = new_pkcs11_keeper(tokens.settings()).hint
    tokens.mend_pin(pin)
    refused = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
    assert "the PIN is wrong, and is not tried again" in refused
    again = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
    assert "which is not tried again" in again
    again = sentence_of(lambda: new_pkcs11_keeper(tokens.settings()), TokenUnusable)
    assert "which is not tried again" in again


def test_a_wrong_pin_is_not_tried_by_the_next_start_either(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token remembers what a process cannot."""
    hint = new_pkcs11_keeper(tokens.settings()).hint
    tokens.mend_pin(WRONG_PIN)
    sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
    monkeypatch.setattr(keepers, "_refused_pins", set())  # another process
    for _ in range(2):
        refused = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
        assert "does not try again by itself" in refused
    # Not the right PIN either, because keyd cannot know that it is.
    tokens.mend_pin(PIN)
    refused = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
    assert "log in once with the token's own tool" in refused
    tokens.do(nothing)
    pkcs11_keeper(tokens.settings(), hint)


def test_people_may_try_after_a_wrong_pin(tokens: Tokens) -> None:
    """`keyd init` is people: they see what it says."""
    tokens.enter_wrong_pin()
    assert TokenFlag.USER_PIN_COUNT_LOW in tokens.flags()
    hint = new_pkcs11_keeper(tokens.settings()).hint
    assert TokenFlag.USER_PIN_COUNT_LOW not in tokens.flags()
    pkcs11_keeper(tokens.settings(), hint)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (TokenFlag.USER_PIN_LOCKED, "is locked"),
        (TokenFlag.USER_PIN_FINAL_TRY, "allows one more PIN"),
    ],
)
def test_a_token_that_is_locked_or_nearly_so_is_left_alone(flag: TokenFlag, says: str) -> None:
    """SoftHSM2 locks no PIN, so this is a token that only has flags."""

    class Flags:
        label = "keyd"
        flags = flag | TokenFlag.USER_PIN_COUNT_LOW

    for by_itself in (True, False):
        refused = sentence_of(
            partial(keepers._require_pin_tries, Flags(), by_itself=by_itself),  # type: ignore[arg-type]
            TokenUnusable,
        )
        assert says in refused


def test_the_pins_file_is_private_and_has_a_pin(tokens: Tokens) -> None:
    tokens.pin_file.chmod(0o640)
    assert "others may read it" in sentence_of(lambda: new_pkcs11_keeper(tokens.settings()))
    tokens.mend_pin("\n")
    assert "is empty" in sentence_of(lambda: new_pkcs11_keeper(tokens.settings()))
    tokens.pin_file.write_bytes(b"\xff\xfe")
    assert "holds no PIN" in sentence_of(lambda: new_pkcs11_keeper(tokens.settings()))
    tokens.pin_file.unlink()
    assert "No such file" in sentence_of(lambda: new_pkcs11_keeper(tokens.settings()))
    # None of it reached the token.
    assert TokenFlag.USER_PIN_COUNT_LOW not in tokens.flags()


def test_the_token_is_left_logged_out(tokens: Tokens) -> None:
    new_pkcs11_keeper(tokens.settings())
    library = pkcs11.lib(str(tokens.module))
    try:
        with library.get_token(token_label="keyd").open() as session:
            assert keys_on(session) == []  # a private key shows only to who has logged in
    finally:
        library.finalize()


# Tokens and keys that are not what they were. ----------------------------------------------------------------


def test_a_token_that_is_not_there(tokens: Tokens) -> None:
    hint = new_pkcs11_keeper(tokens.settings()).hint
    shutil.rmtree(tokens.folder / "tokens")
    (tokens.folder / "tokens").mkdir()
    for call in (
        lambda: pkcs11_keeper(tokens.settings(), hint),
        lambda: new_pkcs11_keeper(tokens.settings()),
    ):
        assert "there is no token 'keyd'" in sentence_of(call, TokenUnusable)


def test_no_pin_goes_to_one_of_two_tokens_of_one_name(tokens: Tokens) -> None:
    hint = new_pkcs11_keeper(tokens.settings()).hint
    tokens.add("keyd")
    refused = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
    assert "there are several tokens 'keyd'" in refused


def test_two_tokens_are_not_taken_for_each_other(tokens: Tokens) -> None:
    tokens.add("other")
    hints = {name: new_pkcs11_keeper(tokens.settings(name)).hint for name in ("keyd", "other")}
    for name, hint in hints.items():
        pkcs11_keeper(tokens.settings(name), hint)
    refused = sentence_of(
        lambda: pkcs11_keeper(tokens.settings("other"), hints["keyd"]), TokenUnusable
    )
    assert "is 'keyd-seal' on the token 'keyd', and the configuration names" in refused
    refused = sentence_of(
        lambda: pkcs11_keeper(tokens.settings(key="another"), hints["keyd"]), TokenUnusable
    )
    assert "names 'another' on 'keyd'" in refused


def test_a_deleted_key_is_named_and_no_new_one_is_made(tokens: Tokens) -> None:
    hint = new_pkcs11_keeper(tokens.settings()).hint
    tokens.do(destroy_keys)
    refused = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
    assert "has no key 'keyd-seal'" in refused
    assert tokens.do(keys_on) == []


def test_another_key_of_the_same_name_does_not_open_it(tokens: Tokens) -> None:
    hint = new_pkcs11_keeper(tokens.settings()).hint
    tokens.do(destroy_keys)
    new_pkcs11_keeper(tokens.settings())
    refused = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
    assert "is not the one that the seal was made with" in refused


def test_two_keys_of_one_name_are_not_guessed_between(tokens: Tokens) -> None:
    hint = new_pkcs11_keeper(tokens.settings()).hint
    tokens.do(made_by_others)
    refused = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
    assert "has several keys 'keyd-seal'" in refused


def made_by_others(session: Any, bits: int = 256, **attributes: bool) -> None:
    template = {Attribute[name]: value for name, value in attributes.items()}
    session.generate_key(KeyType.AES, bits, label="keyd-seal", store=True, template=template)


@pytest.mark.parametrize(
    ("bits", "attributes", "says"),
    [
        (256, {"EXTRACTABLE": True}, "can be taken out of it"),
        (256, {"SENSITIVE": False}, "can be taken out of it"),
        (128, {}, "has not 256 bits"),
        (256, {"ENCRYPT": False}, "may not encrypt"),
        (256, {"DECRYPT": False}, "may not decrypt"),
    ],
)
def test_a_weak_key_that_others_made_is_refused(
    tokens: Tokens, bits: int, attributes: dict[str, bool], says: str
) -> None:
    kept = {"SENSITIVE": True, "EXTRACTABLE": False} | attributes
    tokens.do(lambda session: made_by_others(session, bits, **kept))
    assert says in sentence_of(lambda: new_pkcs11_keeper(tokens.settings()), TokenUnusable)


def test_a_key_that_may_not_decrypt_any_more(tokens: Tokens) -> None:
    hint = new_pkcs11_keeper(tokens.settings()).hint

    def forbid(session: Any) -> None:
        [key] = keys_on(session)
        key[Attribute.DECRYPT] = False

    tokens.do(forbid)
    refused = sentence_of(lambda: pkcs11_keeper(tokens.settings(), hint), TokenUnusable)
    assert "may not decrypt" in refused


def test_a_good_key_that_others_made_is_used(tokens: Tokens) -> None:
    """As where the token's keys are made in a ceremony of their own."""
    tokens.do(lambda session: made_by_others(session, SENSITIVE=True, EXTRACTABLE=False))
    hint = new_pkcs11_keeper(tokens.settings()).hint
    assert len(tokens.do(keys_on)) == 1
    pkcs11_keeper(tokens.settings(), hint)


def test_aes_cbc_is_what_the_token_was_asked_for(tokens: Tokens) -> None:
    """Whoever has the token and its PIN can open the hint without keyd: the format is what it says."""
    keeper = new_pkcs11_keeper(tokens.settings())
    *_, iv, ciphertext = msgspec.msgpack.decode(keeper.hint[:-28])

    def decrypted(session: Any) -> bytes:
        [key] = keys_on(session)
        clear: bytes = key.decrypt(ciphertext, mechanism=Mechanism.AES_CBC, mechanism_param=iv)
        return clear

    assert SecretKey.load(Algorithm.SM4, tokens.do(decrypted)).kcv() == keeper.key.kcv()


# The module. -------------------------------------------------------------------------------------------------


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    settings = Pkcs11(tmp_path / "none.so", "keyd", "keyd-seal", write(tmp_path / "pin", PIN))
    refused = sentence_of(lambda: new_pkcs11_keeper(settings), TokenUnusable)
    assert refused == f"the PKCS#11 module {tmp_path / 'none.so'} is not there"


def test_a_file_that_is_no_module(tmp_path: Path) -> None:
    settings = Pkcs11(
        write(tmp_path / "none.so", "text"), "keyd", "k", write(tmp_path / "pin", PIN)
    )
    refused = sentence_of(lambda: new_pkcs11_keeper(settings), TokenUnusable)
    assert f"the PKCS#11 module {tmp_path / 'none.so'} cannot be used" in refused


def test_a_token_folder_that_is_gone(tokens: Tokens) -> None:
    shutil.rmtree(tokens.folder / "tokens")
    sentence_of(lambda: new_pkcs11_keeper(tokens.settings()), TokenUnusable)


def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    """And nothing but a token needs it: keyd's modules are imported without."""
    path = write(tmp_path / "seal", CANARY)
    script = (
        "import sys; sys.modules['pkcs11'] = None\n"
        "from pathlib import Path\n"
        "from keyd.keepers import Pkcs11, TokenUnusable, credential_keeper, new_pkcs11_keeper\n"
        "credential_keeper(Path(sys.argv[1]))\n"
        "settings = Pkcs11(Path('m.so'), 't', 'k', Path('p'))\n"
        "try: new_pkcs11_keeper(settings)\n"
        "except TokenUnusable as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'install keyd with its extra, "keyd[pkcs11]"' in done.stdout


def test_a_credential_needs_no_token_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, keyd.keepers; print('pkcs11' in sys.modules)"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


# What is configured. -----------------------------------------------------------------------------------------


def configured(seal: SealConfig) -> Config:
    """A configuration of which only this section is looked at."""
    return Config(
        store=StoreConfig("sqlite://"), policy=PolicyConfig(""), audit=Audit("journal"), seal=seal
    )


def in_the_configuration(tokens: Tokens, credential: Path | None = None) -> Config:
    token = Pkcs11Config(str(tokens.module), "keyd", pin_file=str(tokens.pin_file))
    return configured(SealConfig(None if credential is None else str(credential), token))


def test_by_default_people_alone_open_the_seal() -> None:
    assert keepers_of(configured(SealConfig())) == []
    assert founding_keepers(configured(SealConfig())) == []


def test_what_is_configured_opens_what_was_founded(tokens: Tokens) -> None:
    """As `keyd init --credential FILE --pkcs11` and then a start of the daemon."""
    credential = tokens.folder / "seal"
    new_credential(credential)
    config = in_the_configuration(tokens, credential)
    key = seal_key()
    founded = founding_keepers(config, credential=credential, pkcs11=True)
    wrapped = [wrapped_for(keeper, key) for keeper in founded]
    assert [known.keeper for known in wrapped] == [CREDENTIAL, PKCS11]
    usable = list(usable_keepers(keepers_of(config), wrapped))
    for keeper, known in zip(usable, wrapped, strict=True):
        assert not isinstance(keeper, ConfigError)
        # So the vault finds it: by name and hint.
        assert (keeper.name, keeper.hint) == (known.keeper, known.hint)
        assert opens(keeper, known, key)


def test_a_founded_store_opens_with_either_keeper_alone(tokens: Tokens) -> None:
    """The seal itself, as `keyd init` makes it and a vault opens it: not one of its shares is needed."""
    credential = tokens.folder / "seal"
    new_credential(credential)
    config = in_the_configuration(tokens, credential)
    founded = found(
        tier=Tier.CITY,
        threshold=2,
        share_count=3,
        officers=[security_officer("A"), security_officer("B")],
        keepers=founding_keepers(config, credential=credential, pkcs11=True),
        now=1_700_000_000,
        random_bytes=os.urandom,
    )
    rows = [change.row for change in founded.changes]
    [body] = [decode(row, SealBody) for row in rows if row.kind is Kind.SEAL]
    usable = list(usable_keepers(keepers_of(config), body.keepers))
    assert len(usable) == 2
    for keeper, known in zip(usable, body.keepers, strict=True):
        assert not isinstance(keeper, ConfigError)
        opened = open_seal(unwrap_from_keeper(known, keeper.key), rows)
        assert opened.body == body
        assert set(opened.wrapping_keys) == set(Domain)


def security_officer(code: str) -> Officer:
    return Officer(
        domain=Domain.LOCAL,
        code=code,
        name=f"Officer {code}",
        roles=(OfficerRole.SECURITY_OFFICER,),
        public_key=Sm2PrivateKey.generate().public.encode(),
        enrolled_by="keyd init",
        enrolled_at=1_700_000_000,
    )


def test_the_pins_file_may_be_elsewhere_at_the_founding(tokens: Tokens) -> None:
    config = in_the_configuration(tokens)
    elsewhere = tokens.folder / "elsewhere"
    tokens.pin_file.rename(elsewhere)
    sentence_of(lambda: founding_keepers(config, pkcs11=True))
    assert len(founding_keepers(config, pkcs11=True, pin_file=elsewhere)) == 1


def test_pkcs11_without_a_token_in_the_configuration_is_refused() -> None:
    refused = sentence_of(lambda: founding_keepers(configured(SealConfig()), pkcs11=True))
    assert refused == "the configuration names no token: see [seal.pkcs11]"


def test_one_keeper_that_fails_does_not_hide_the_other(tokens: Tokens) -> None:
    credential = tokens.folder / "seal"
    new_credential(credential)
    config = in_the_configuration(tokens, credential)
    wrapped = [
        wrapped_for(keeper, seal_key())
        for keeper in founding_keepers(config, credential=credential, pkcs11=True)
    ]
    credential.unlink()
    missing, token = usable_keepers(keepers_of(config), wrapped)
    assert isinstance(missing, ConfigError)
    assert not isinstance(token, ConfigError)
    assert token.name == PKCS11


def test_a_keeper_that_the_seal_does_not_know_is_not_asked(tokens: Tokens) -> None:
    config = in_the_configuration(tokens)
    tokens.mend_pin(WRONG_PIN)
    assert list(usable_keepers(keepers_of(config), [])) == []
    assert TokenFlag.USER_PIN_COUNT_LOW not in tokens.flags()


def test_who_stops_at_the_first_keeper_enters_no_pin(tokens: Tokens) -> None:
    credential = tokens.folder / "seal"
    new_credential(credential)
    config = in_the_configuration(tokens, credential)
    wrapped = [
        wrapped_for(keeper, seal_key())
        for keeper in founding_keepers(config, credential=credential, pkcs11=True)
    ]
    tokens.mend_pin(WRONG_PIN)
    first = next(iter(usable_keepers(keepers_of(config), wrapped)))
    assert not isinstance(first, ConfigError)
    assert first.name == CREDENTIAL
    assert TokenFlag.USER_PIN_COUNT_LOW not in tokens.flags()


def test_no_repr_shows_a_key(tmp_path: Path) -> None:
    keeper = credential_keeper(write(tmp_path / "seal", CANARY))
    shown = repr(keeper) + repr(Credential(tmp_path / "seal"))
    assert CANARY not in shown.lower()
    assert repr(bytes.fromhex(CANARY)) not in shown
