"""How a command encrypts its line to keyd: the options, and what they make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from keyd.config import ConfigError, require_private
from keyd.tls import TlsClientContext, TlsKind, TlsUnusable


class Encryption(NamedTuple):
    """What makes a client's line an encrypted one; without a context it is plain."""

    context: TlsClientContext | None = None
    server_name: str | None = None


def encryption(
    kind: Annotated[
        TlsKind | None, typer.Option("--tls", help="Encrypt the line: guomi or standard.")
    ] = None,
    authorities: Annotated[
        Path | None,
        typer.Option("--tls-authorities", help="File with the CA of keyd's certificate."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", help="File with the terminal's certificate.")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option("--tls-key", help="File with the certificate's private key.")
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option("--tls-name", help="Name in keyd's certificate, if not the address's host."),
    ] = None,
) -> Encryption:
    """Make of the options what a client takes.

    Raises:
        ConfigError: an option is missing, or a file cannot be read or used.
    """
    if kind is None:
        if authorities or certificate or private_key or server_name:
            raise ConfigError("say which kind of line it is: --tls guomi or --tls standard")
        return Encryption()
    if authorities is None or certificate is None or private_key is None:
        raise ConfigError("--tls needs --tls-authorities, --tls-certificate and --tls-key")
    require_private(private_key)
    try:
        context = TlsClientContext(
            kind,
            server_authorities=authorities.read_bytes(),
            certificate=certificate.read_bytes(),
            private_key=private_key.read_bytes(),
        )
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
    except TlsUnusable as error:
        raise ConfigError(f"--tls: {error}") from None
    return Encryption(context, server_name)
