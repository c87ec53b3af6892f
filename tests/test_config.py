"""Invariant: the shipped files say exactly what `keyd.config` does, and a wrong file is refused in one sentence
that names the file and the place, and never a secret.
"""

from __future__ import annotations

import os
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
    Pkcs11Config,
    SealConfig,
    StoreConfig,
    expand,
    load_config,
    load_terminals,
    read_passphrase,
)
from keyd.opening import expand_url
from keyd.terminals import Terminals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONF = Path(__file__).parents[1] / "conf"
SHIPPED = CONF / "keyd.toml"
EXAMPLE = CONF / "terminals.toml.example"

# A key that must not be found where keys do not belong.
CANARY = "C0FFEE00DECAFBADC0FFEE00DECAFBAD"

REQUIRED = """
[store]
url = "sqlite:///keyd.db"
[terminals]
file = "terminals.toml"
[audit]
folder = "journal"
"""

# "# name = value" is a default; an example is indented further.
_DEFAULT = re.compile(r"^# ([a-z_]+ = .*)$", re.MULTILINE)
_EXAMPLE = re.compile(r"^#   ([a-z_]+ = .*)$", re.MULTILINE)


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
        terminals=config.terminals,
        audit=Audit("/var/lib/keyd/journal"),
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
        (REQUIRED.replace("url =", "#"), "missing required field `url`"),
        (REQUIRED.replace("sqlite:///keyd.db", ""), "length >= 1 - at `$.store.url`"),
        (REQUIRED + "[keys]\nsealed_file = 'keys.sealed'\n", "unknown field `keys`"),
        (REQUIRED + "[custody]\nsockets = 'admin.sock'\n", "unknown field `sockets`"),
        (REQUIRED.partition("[terminals]")[0], "missing required field `terminals`"),
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


# The terminals file. -----------------------------------------------------------------------------------------


def test_the_example_loads_and_says_that_its_keys_are_synthetic(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert "THE KEYS BELOW ARE SYNTHETIC" in text
    terminals = load_terminals(write(tmp_path / "terminals.toml", text))
    assert list(terminals) == ["DESK-0001", "CARDMAKER.510100-02"]
    # They read as text, so that nobody takes them for random ones.
    assert all(key.startswith(b"SYNTHETIC KEY ") for key in terminals.values())


def test_no_terminal_is_a_terminals_file_too(tmp_path: Path) -> None:
    assert load_terminals(write(tmp_path / "terminals.toml", "[terminals]\n")) == {}


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_taken(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "terminals.toml", f'terminals.DESK.key = "{CANARY}"', mode)
    assert load_terminals(path) == {"DESK": bytes.fromhex(CANARY)}
    assert (
        read_passphrase(write(tmp_path / "passphrase", "a passphrase\n", mode)) == b"a passphrase"
    )


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    terminals = write(tmp_path / "terminals.toml", f'terminals.DESK.key = "{CANARY}"', mode)
    assert f"chmod 600 {terminals}" in refusal(load_terminals, terminals)
    passphrase = write(tmp_path / "passphrase", CANARY, mode)
    assert "others may read it" in refusal(read_passphrase, passphrase)


def test_a_systemd_credential_has_systemds_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = write(tmp_path / "terminals.toml", f'terminals.DESK.key = "{CANARY}"', 0o440)
    assert load_terminals(path) == {"DESK": bytes.fromhex(CANARY)}
    # What lies beside or below is no credential.
    (tmp_path / "below").mkdir()
    below = write(tmp_path / "below" / "terminals.toml", path.read_text(), 0o440)
    assert "others may read it" in refusal(load_terminals, below)


@pytest.mark.parametrize(
    "text",
    [
        f'terminals.DESK.key = "{CANARY}00"',
        f'terminals.DESK.key = "{CANARY[:-1]}"',
        f'terminals.DESK.key = "{CANARY[:-1]}G"',
        f'terminals.DESK.key = """{CANARY}\n"""',
        f'terminals.DESK.secret = "{CANARY}"',
        f'terminals.DESK.{CANARY} = ""',
        f'terminals.DESK = "{CANARY}"',
        f'terminals."a code with spaces".key = "{CANARY}"',
        f'terminals."".key = "{CANARY}"',
        f'terminals."{"D" * 33}".key = "{CANARY}"',
        f'terminals."DESK\\n".key = "{CANARY}"',
        f'terminals = "{CANARY}"',
        f'DESK = "{CANARY}"',
        f"terminals.DESK.key = 0x{CANARY[:14]}",
        f'terminals.DESK.key = "{CANARY}" "{CANARY}"',
        f'terminals.DESK.key = "{CANARY}',
        f'terminals.DESK.key = "{CANARY}"\nterminals.DESK.key = "{CANARY}"',
        f"terminals.DESK.key = {CANARY}",
        "",
    ],
)
def test_a_wrong_terminals_file_is_refused_without_its_keys(tmp_path: Path, text: str) -> None:
    refusal(load_terminals, write(tmp_path / "terminals.toml", text))


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    assert "is empty" in refusal(read_passphrase, write(tmp_path / "passphrase", "\r\n\n"))


def test_a_passphrase_keeps_everything_but_the_line_end(tmp_path: Path) -> None:
    path = write(tmp_path / "passphrase", " two  words \r\n")
    assert read_passphrase(path) == b" two  words "


def test_a_secret_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refusal(read_passphrase, tmp_path / "passphrase")
    assert "No such file" in refusal(load_terminals, tmp_path / "terminals.toml")


def test_no_repr_shows_a_terminal_key(tmp_path: Path) -> None:
    path = write(tmp_path / "terminals.toml", f'terminals.DESK.key = "{CANARY}"')
    keys = load_terminals(path)
    shown = repr(Terminals(keys, os.urandom))
    shown += "".join(map(repr, Terminals(keys, os.urandom)._terminals.values()))
    assert "DESK" in shown
    assert CANARY.lower() not in shown.lower()
    assert repr(bytes.fromhex(CANARY)) not in shown


def test_the_default_listens_on_this_machine_only() -> None:
    assert all(address.startswith("127.0.0.1:") for address in Listen().tcp)
    assert Listen().allow_plain_tcp is False
