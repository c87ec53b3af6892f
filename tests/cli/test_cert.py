"""Certificates from the command line: what is made opens a line, what is shown is what is there, no key is printed."""

from __future__ import annotations

import contextlib
import json
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from typer.testing import CliRunner

from keyd.cli.cert import app, open_key
from keyd.config import ConfigError
from keyd.errors import BadParameter, KeyFileUnusable, Refusal
from keyd.protocol.messages.registry import AuthorityReport
from keyd.tls import TlsClientContext, TlsFault, TlsKind, TlsServerContext
from keyd.tls.inspection import read_pem_untrusted
from keyd.tls.pki import make_revocation_list, random_serial
from tests.cli.test_terminal import counter
from tests.tls.lines import NOW, TODAY, needs_openssl, pki, talk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.test_terminal import Counter

__all__ = ["counter"]

KINDS: Final = list(TlsKind)
SERVER: Final = ["--server", "keyd.example", "--server", "10.1.2.3", "--server", "fd00::1"]


def run(*arguments: object) -> str:
    """Run `keyd cert`, which succeeds; return what it printed."""
    ended = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(ended.exception, (Refusal, ConfigError)):
        raise ended.exception
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def answer(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json"))


def open_line(kind: TlsKind, folder: Path, server: str, name: str, terminal: str) -> str:
    """Open a line with what is in the files; return who the server sees."""

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    accepting = TlsServerContext(
        kind, certificate=read(f"{server}.crt"), private_key=read(f"{server}.key"),
        client_authorities=read("ca.crt"),
    ).accept(int(time.time()))  # fmt: skip
    connecting = TlsClientContext(
        kind, certificate=read(f"terminal-{terminal}.crt"),
        private_key=read(f"terminal-{terminal}.key"), server_authorities=read("ca.crt"),
    ).connect(name, int(time.time()))  # fmt: skip
    talk(connecting, accepting)
    assert accepting.peer_certificate is not None
    return accepting.peer_certificate.common_name


# The PKI for tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_pki_in_one_command_opens_a_line(kind: TlsKind, tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    terminals = ["--terminal", "DESK-1", "--terminal", "ca"]
    said = run("test-pki", folder, "--kind", kind.value, *SERVER, *terminals, "--days", "2")
    assert "IT IS FOR TESTS" in said
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes.values()) == {0o600}
    names = {"ca", "server", "terminal-DESK-1", "terminal-ca"}
    assert set(modes) == {f"{name}{suffix}" for name in names for suffix in (".key", ".crt")}
    for name in ("keyd.example", "10.1.2.3", "fd00::1"):
        assert open_line(kind, folder, "server", name, "DESK-1") == "DESK-1"
    with pytest.raises(TlsFault):
        open_line(kind, folder, "server", "other.example", "DESK-1")
    # A second time, nothing is overwritten, and nothing is half made.
    for name in set(modes) - {"terminal-ca.crt"}:
        (folder / name).unlink()
    with pytest.raises(KeyFileUnusable, match="never overwritten"):
        run("test-pki", folder, "--kind", kind.value, *SERVER, *terminals)
    assert [path.name for path in folder.iterdir()] == ["terminal-ca.crt"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--server", ""],
        ["--server", "has space"],
        ["--server", "x" * 64],
        ["--server", "x." * 32 + "x"],
        ["--server", "keyd.example\n"],
        ["--server", "-x.example"],
        ["--server", "例子"],
        ["--server", "1:2"],
        ["--server", "10.1.2.300"],
        ["--server", "fe80::1%eth0"],
        ["--server", "a..b"],
        ["--server", "s", "--terminal", "a/b"],
        ["--server", "s", "--terminal", "A", "--terminal", "A"],
        ["--server", "s", "--days", "0"],
        ["--server", "s", "--kind", "rsa"],
    ],
)
def test_nonsense_makes_no_file(arguments: list[str], tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["test-pki", str(tmp_path / "pki"), *arguments])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert not (tmp_path / "pki").exists()


# Showing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_is_what_is_there(kind: TlsKind, tmp_path: Path) -> None:
    made = pki(kind)
    revoked = {0x1234: TODAY, random_serial(): TODAY}
    crl = make_revocation_list(made.authority, revoked, TODAY, TODAY, 7)
    file = tmp_path / "all.pem"
    file.write_bytes(
        b"in words\n"
        + made.server.certificate
        + made.authority.certificate
        + crl
        + made.server.private_key
    )
    server, authority, revocations, key = answer("show", file)
    assert (server["what"], server["kind"]) == ("certificate", kind.value)
    assert (server["common_name"], server["issuer"]) == ("keyd.example", "keyd synthetic CA")
    assert server["names"] == ["keyd.example", "127.0.0.1"]
    assert server["use"] == ["a server's side of a line"]
    assert server["not_after"] - NOW == 10 * 86_400
    assert authority["use"] == ["signing certificates"]
    assert (revocations["number"], set(revocations["revoked"])) == (7, {f"{s:X}" for s in revoked})
    assert (key["what"], key["public_key"]) == ("private key", server["public_key"])
    text = run("show", file)
    for words in ("keyd.example", "127.0.0.1", "2 certificates", "1234 since 2030-06-15 12:00 UTC"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 100
    # Of the private key nothing but its public half is in what is printed.
    secret = "".join(made.server.private_key.decode().splitlines()[1:-1])
    assert secret[44:80] not in text + json.dumps(key)
    assert set(key) == {"what", "kind", "public_key"}


@needs_openssl
@pytest.mark.parametrize("kind", KINDS)
def test_another_program_reads_the_same(kind: TlsKind, tmp_path: Path) -> None:
    file = tmp_path / "server.crt"
    file.write_bytes(pki(kind).server.certificate)
    (shown,) = answer("show", file)
    words = ["openssl", "x509", "-in", str(file), "-noout", "-serial", "-fingerprint", "-sha256"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
    assert int(told[0].partition("=")[2], 16) == int(shown["serial"], 16)
    assert told[1].partition("=")[2].replace(":", "") == shown["fingerprint"]


@needs_openssl
def test_a_certificate_that_keyd_has_no_line_for_is_shown_as_other(tmp_path: Path) -> None:
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key",
        "-out",
        "crt",
        "-days",
        "1",
    ]
    subject = ["-subj", "/O=Somebody/CN=rsa"]
    subprocess.run([*words, *subject], cwd=tmp_path, capture_output=True, check=True)
    (shown,) = answer("show", tmp_path / "crt")
    assert (shown["kind"], shown["common_name"]) == ("other", "rsa")
    with pytest.raises(BadParameter, match="PRIVATE KEY cannot be read"):
        run("show", tmp_path / "key")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "nothing in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "CERTIFICATE cannot be"),
        (b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----", "X509 CRL cannot be"),
        (
            b"-----BEGIN RSA PRIVATE KEY-----\nx\n-----END RSA PRIVATE KEY-----",
            "does not read a RSA",
        ),
        (b"-----BEGIN A-----\n-----END A-----" * 65, "too much"),
        (b"-----BEGIN A-----\n-----END B-----", "nothing in PEM"),
        (b"-----BEGIN A-----" * 400_000, "nothing in PEM"),
        (b"x" * (8 << 20) + b"x", "more than 8388608 bytes"),
    ],
)
def test_what_is_no_certificate_is_one_sentence(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(BadParameter, match=said):
        run("show", tmp_path / "file")


@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_is_a_value_error(kind: TlsKind) -> None:
    pem = pki(kind).server.certificate
    for at in range(30, len(pem), 7):
        damaged = pem[:at] + bytes([pem[at] ^ 1]) + pem[at + 1 :]
        # What is damaged may be a signature, which showing does not look at. Nothing else than this is raised.
        with contextlib.suppress(ValueError):
            read_pem_untrusted(damaged)


# A server's certificate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_is_signed_by_a_ca_in_a_file(kind: TlsKind, tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    run("test-pki", folder, "--kind", kind.value, "--server", "first", "--terminal", "T")
    run("request", folder / "second.key", "--kind", kind.value)
    (asked,) = answer("show", folder / "second.key.csr")
    assert (asked["what"], asked["common_name"], asked["kind"]) == (
        "certificate request",
        "keyd",
        kind.value,
    )
    assert stat.S_IMODE((folder / "second.key").stat().st_mode) == 0o600
    ca = ["--ca", folder / "ca.crt", "--ca-key", folder / "ca.key"]
    sign = ["sign-server", folder / "second.key.csr", *SERVER, *ca, "--out", folder / "second.crt"]
    said = run(*sign, "--days", "3")
    assert "keyd.example, 10.1.2.3, fd00::1" in said
    assert open_line(kind, folder, "second", "keyd.example", "T") == "T"
    with pytest.raises(KeyFileUnusable, match="never overwritten"):
        run(*sign)
    sign[-1] = folder / "third.crt"
    (folder / "ca.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        run(*sign)
    (folder / "ca.key").chmod(0o600)
    for wrong, words in (("ca.crt", "server.crt"), ("ca.key", "server.key")):
        swapped = [folder / words if each == folder / wrong else each for each in sign]
        with pytest.raises(KeyFileUnusable, match=r"not a CA's|not the CA certificate's"):
            run(*swapped)
    other = next(each for each in KINDS if each is not kind)
    run("request", folder / "other.key", "--kind", other.value)
    sign[1] = folder / "other.key.csr"
    with pytest.raises(BadParameter, match=f"not of the {kind.value} kind"):
        run(*sign)
    assert not (folder / "third.crt").exists()


def test_a_key_file_that_is_none_says_nothing_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"-----BEGIN PRIVATE KEY-----\nc3ludGhldGlj\n-----END PRIVATE KEY-----\n")
    file.chmod(0o600)
    with pytest.raises(KeyFileUnusable) as refusal:
        open_key(file)
    assert "c3ludGhldGlj" not in str(refusal.value)


# keyd's own CA --------------------------------------------------------------------------------------------


def test_keyds_own_cas_are_written_over_earlier_ones(counter: Counter) -> None:
    assert "no CA of its own" in counter.said("cert", "authorities", who="li")
    made = pki(TlsKind.GUOMI).authority
    lists = [make_revocation_list(made, {}, TODAY, TODAY, number) for number in (1, 2)]
    folder = counter.folder / "trust"
    folder.mkdir()
    for revocation_list in lists:
        report = AuthorityReport("guomi", made.certificate, revocation_list)
        counter.office.authorities = (report,)
        said = counter.said("cert", "authorities", "--to", "trust", who="li")
        assert "signing certificates" in said
        assert (folder / "ca-guomi.crt").read_bytes() == made.certificate
        assert (folder / "ca-guomi.crl").read_bytes() == revocation_list
    assert stat.S_IMODE((folder / "ca-guomi.crl").stat().st_mode) == 0o644
    assert sorted(path.name for path in folder.iterdir()) == ["ca-guomi.crl", "ca-guomi.crt"]
    counter.office.authorities = (AuthorityReport("../rsa", b"", b""),)
    assert "kind that this program does not know" in counter.refused(
        "cert", "authorities", "--to", "trust", who="li"
    )
    counter.office.authorities = ()


def test_a_ca_of_keyds_own_is_proposed(counter: Counter) -> None:
    name = ["--name", "某市社保终端 CA"]
    said = counter.said("cert", "make-authority", *name, "--years", "1", who="li")
    for words in ("keyd's own CA", "某市社保终端 CA", "guomi", "1 year", "keyd approve"):
        assert words in said
