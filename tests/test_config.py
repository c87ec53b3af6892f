"""Invariant: the shipped files say exactly what `keyd.config` does, and a wrong file is refused in one sentence
that names the file and the place, and never a secret.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import msgspec
import pytest

from keyd.config import (
    Audit,
    Config,
    ConfigError,
    Listen,
    ListenTls,
    Pkcs11Config,
    PolicyConfig,
    PsamsConfig,
    SealConfig,
    StoreConfig,
    Terminals,
    expand,
    load_anchors,
    load_config,
    read_passphrase,
)
from keyd.opening import expand_url
from keyd.routing import RouteRow
from keyd.tls.chains import ChainRefused
from keyd.tls.kinds import TlsKind
from keyd.tls.pki import Validity, make_revocation_list, synthetic_pki

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONF = Path(__file__).parents[1] / "conf"
SHIPPED = CONF / "keyd.toml"

# A key that must not be found where keys do not belong.
CANARY = "C0FFEE00DECAFBADC0FFEE00DECAFBAD"

REQUIRED = """
[store]
url = "sqlite:///keyd.db"
[policy]
file = "policy.toml"
[audit]
folder = "journal"
"""

# "# name = value" is a default; an example is indented further.
_DEFAULT = re.compile(r"^# ([a-z_]+ = .*)$", re.MULTILINE)
_EXAMPLE = re.compile(r"^#   ([a-z_]+ = .*|\[\[[a-z.]+\]\])$", re.MULTILINE)


# Settings that may be there many times.
ENTRIES: Any = {tuple[ListenTls, ...]: ListenTls, tuple[RouteRow, ...]: RouteRow}


def shipped_text() -> str:
    return SHIPPED.read_text(encoding="utf-8")


def settings(config: type[msgspec.Struct] = Config) -> Iterator[tuple[str, str, Any]]:
    """Yield section, name and default of every setting that the configuration has."""
    for section, struct in get_type_hints(config).items():
        yield from settings_of(section, struct)


def settings_of(section: str, struct: type[msgspec.Struct]) -> Iterator[tuple[str, str, Any]]:
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from settings_of(f"{section}.{field.name}", field.type)
        elif field.type in ENTRIES:
            # No entry is there by default: all of one are examples, in the section that they are behind.
            yield from ((section, name, None) for name in ENTRIES[field.type].__struct_fields__)
        else:
            yield section, field.name, field.default


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def refusal(load: Callable[[Path], object], path: Path) -> str:
    """Load a file that is wrong and return the sentence."""
    with pytest.raises(ConfigError) as raised:
        load(path)
    sentence = str(raised.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert CANARY.lower() not in (sentence + repr(raised.value)).lower()
    return sentence


# The shipped keyd.toml. --------------------------------------------------------------------------------------


def test_the_shipped_file_loads_and_is_the_default() -> None:
    config = load_config(SHIPPED)
    assert config == Config(
        store=StoreConfig("sqlite:////var/lib/keyd/keyd.db"),
        audit=Audit("/var/lib/keyd/journal"),
        policy=PolicyConfig("/etc/keyd/policy.toml"),
    )


def test_uncommenting_every_default_changes_nothing(tmp_path: Path) -> None:
    text, count = _DEFAULT.subn(r"\1", shipped_text())
    assert count == sum(default not in (None, msgspec.NODEFAULT) for *_, default in settings())
    assert load_config(write(tmp_path / "keyd.toml", text)) == load_config(SHIPPED)


def test_uncommenting_the_examples_is_taken(tmp_path: Path) -> None:
    text = _EXAMPLE.sub(r"\1", shipped_text())
    config = load_config(write(tmp_path / "keyd.toml", text))
    assert config.audit.retain_segments == 100
    assert config.audit.checkpoints == "/mnt/audit/keyd.checkpoints"
    assert (config.listen.unix, config.cards.profiles) == (
        "/run/keyd/keyd.sock",
        "/etc/keyd/profiles",
    )
    assert config.listen.tls == (
        ListenTls(
            address="0.0.0.0:7171",
            kind="guomi",
            certificate="/etc/keyd/tls/server.pem",
            private_key="/etc/keyd/tls/server.key",
            client_authorities="/etc/keyd/tls/terminals-ca.pem",
            revoked="/etc/keyd/tls/revoked.pem",
            groups=("curveSM2MLKEM768", "curveSM2"),
        ),
    )
    assert config.psams == PsamsConfig(
        profiles="/etc/keyd/psam-profiles",
        route=(RouteRow(("RKSSSE", "RK*", "0090"), "pool", "SM4"),),
    )
    assert config.seal == SealConfig(
        "$CREDENTIALS_DIRECTORY/seal",
        Pkcs11Config(
            "/usr/lib/softhsm/libsofthsm2.so", "keyd", pin_file="$CREDENTIALS_DIRECTORY/pin"
        ),
    )


@pytest.mark.parametrize(("section", "name", "default"), list(settings()))
def test_every_setting_stands_in_its_section(section: str, name: str, default: Any) -> None:
    """Required ones stand bare, defaults commented out, those without a default as an example."""
    body = shipped_text().partition(f"\n[{section}]\n")[2].partition("\n[")[0]
    prefix = {msgspec.NODEFAULT: "", None: "#   "}.get(default, "# ")
    assert re.search(rf"^{prefix}{name} = ", body, re.MULTILINE)


def test_every_setting_is_explained_and_required_ones_say_so() -> None:
    required = {
        (section, name) for section, name, default in settings() if default is msgspec.NODEFAULT
    }
    _, *parts = re.split(r"^\[([a-z0-9.]+)\]\n", shipped_text(), flags=re.MULTILINE)
    seen = set()
    for section, body in zip(parts[::2], parts[1::2], strict=True):
        for paragraph in body.split("\n\n"):
            *comment, line = paragraph.strip("\n").split("\n")
            name = re.match(r"(?:# |#   |)([a-z_]+) = ", line)
            if name is None:
                continue
            setting = section, name[1]
            seen.add(setting)
            said = " ".join(comment)
            assert "Reload: " in said, setting
            assert ("REQUIRED." in said) == (setting in required)
    assert seen == {(section, name) for section, name, _ in settings()}


# What is refused. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (REQUIRED + "[limits]\nconection = 9\n", "unknown field `conection` - at `$.limits`"),
        (REQUIRED + "[limit]\nconnections = 9\n", "unknown field `limit`"),
        (REQUIRED + "[limits]\nconnections = '9'\n", "Expected `int`, got `str`"),
        (REQUIRED + "[limits]\nconnections = 0\n", "`int` >= 1 - at `$.limits.connections`"),
        (REQUIRED + "[limits]\nidle_seconds = 0\n", "> 0.0 - at `$.limits.idle_seconds`"),
        (REQUIRED + "[limits]\nidle_seconds = inf\n", "<= 86400.0 - at `$.limits.idle_seconds`"),
        (REQUIRED + "[limits]\nidle_seconds = nan\n", "$.limits.idle_seconds"),
        (REQUIRED + "[log]\nlevel = 'loud'\n", "Invalid enum value 'loud' - at `$.log.level`"),
        (REQUIRED + "[listen]\ntcp = '127.0.0.1:1'\n", "Expected `array`, got `str`"),
        (REQUIRED + "[seal]\ncredentials = 'seal'\n", "unknown field `credentials` - at `$.seal`"),
        (
            REQUIRED + "[seal.pkcs11]\nmodule = 'm.so'\ntoken = 'keyd'\n",
            "module, token and pin_file go together - at `$.seal.pkcs11`",
        ),
        (REQUIRED + "[seal.pkcs11]\nkey = ''\n", "length >= 1 - at `$.seal.pkcs11.key`"),
        (
            REQUIRED + "[psams]\nstrategy = 'any'\n",
            "Invalid enum value 'any' - at `$.psams.strategy`",
        ),
        (REQUIRED + "[psams]\nwait_seconds = 61\n", "<= 60.0 - at `$.psams.wait_seconds`"),
        (
            REQUIRED + "[[psams.route]]\nkeys = []\nto = 'pool'\n",
            "length >= 1 - at `$.psams.route[0].keys`",
        ),
        (REQUIRED.replace("url =", "#"), "missing required field `url`"),
        (REQUIRED.replace("sqlite:///keyd.db", ""), "length >= 1 - at `$.store.url`"),
        (REQUIRED + "[keys]\nsealed_file = 'keys.sealed'\n", "unknown field `keys`"),
        (REQUIRED + "[custody]\nsockets = 'admin.sock'\n", "unknown field `sockets`"),
        (REQUIRED + "[terminals]\nfile = 'terminals.toml'\n", "unknown field `file`"),
        (REQUIRED + "[terminals]\nsession_seconds = 59\n", "at `$.terminals.session_seconds`"),
        (REQUIRED + "[terminals]\nchallenge_seconds = 0\n", "at `$.terminals.challenge_seconds`"),
        (REQUIRED.partition("[audit]")[0], "missing required field `audit`"),
        ("", "missing required field `store`"),
        (REQUIRED + "[limits\n", "is no TOML: "),
        (REQUIRED + REQUIRED, "is no TOML: "),
    ],
)
def test_a_wrong_configuration_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(load_config, write(tmp_path / "keyd.toml", text))


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(load_config, tmp_path / "keyd.toml")
    assert "cannot be read: Is a directory" in refusal(load_config, tmp_path)


def test_a_configuration_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "keyd.toml"
    path.write_bytes(REQUIRED.encode() + b"# \xff\n")
    assert "is no TOML: " in refusal(load_config, path)


def test_paths_may_name_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/keyd.service")
    assert expand("$CREDENTIALS_DIRECTORY/seal") == Path("/run/credentials/keyd.service/seal")
    # A URL keeps its slashes: a path that begins at the root has four of them.
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/keyd")
    assert expand_url("sqlite:///$STATE_DIRECTORY/keyd.db") == "sqlite:////var/lib/keyd/keyd.db"


# Files with secrets. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_taken(tmp_path: Path, mode: int) -> None:
    assert (
        read_passphrase(write(tmp_path / "passphrase", "a passphrase\n", mode)) == b"a passphrase"
    )


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    passphrase = write(tmp_path / "passphrase", CANARY, mode)
    said = refusal(read_passphrase, passphrase)
    assert "others may read it" in said
    assert f"chmod 600 {passphrase}" in said


def test_a_systemd_credential_has_systemds_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = write(tmp_path / "passphrase", CANARY, 0o440)
    assert read_passphrase(path) == CANARY.encode()
    # What lies beside or below is no credential.
    (tmp_path / "below").mkdir()
    below = write(tmp_path / "below" / "passphrase", path.read_text(), 0o440)
    assert "others may read it" in refusal(read_passphrase, below)


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    assert "is empty" in refusal(read_passphrase, write(tmp_path / "passphrase", "\r\n\n"))


def test_a_passphrase_keeps_everything_but_the_line_end(tmp_path: Path) -> None:
    path = write(tmp_path / "passphrase", " two  words \r\n")
    assert read_passphrase(path) == b" two  words "


def test_a_secret_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refusal(read_passphrase, tmp_path / "passphrase")


def test_the_default_listens_on_this_machine_only() -> None:
    assert all(address.startswith("127.0.0.1:") for address in Listen().tcp)
    assert Listen().allow_plain_tcp is False


# The authorities of terminals. --------------------------------------------------------------------------------


def test_without_authorities_there_are_no_anchors() -> None:
    load_anchors(Terminals())


def test_authorities_are_read_with_their_lists(tmp_path: Path) -> None:
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    end = begin + datetime.timedelta(days=1)
    pki = synthetic_pki(TlsKind.GUOMI, Validity(begin, end), ["keyd.test"], ["T"])
    chain, now = pki.terminals["T"].certificate, int(begin.timestamp())
    path = tmp_path / "ca.pem"
    path.write_bytes(pki.authority.certificate)
    anchors = load_anchors(Terminals(authorities=str(path)))
    serial = anchors.verify_untrusted(chain, now).serial
    (tmp_path / "crl.pem").write_bytes(
        make_revocation_list(pki.authority, {serial: begin}, begin, end, 1)
    )
    both = load_anchors(Terminals(authorities=str(path), revoked=str(tmp_path / "crl.pem")))
    with pytest.raises(ChainRefused, match="revoked"):
        both.verify_untrusted(chain, now)


def test_authorities_that_are_none_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ca.pem", "no PEM")
    refusal(lambda path: load_anchors(Terminals(authorities=str(path))), path)
    refusal(lambda path: load_anchors(Terminals(authorities=str(path))), tmp_path / "none.pem")
    text = REQUIRED + '[terminals]\nrevoked = "crl.pem"\n'
    assert "goes with" in refusal(load_config, write(tmp_path / "keyd.toml", text))
