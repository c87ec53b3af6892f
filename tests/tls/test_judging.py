"""Invariant: a line that was let in once is judged by new authorities and lists as a new one would be; and a line that
asks for no certificate is encrypted all the same.
"""

from __future__ import annotations

import datetime
import gc

import pytest

from keyd.errors import LocalProtocolError
from keyd.tls import TlsClientContext, TlsFault, TlsKind, TlsState
from keyd.tls.pki import make_revocation_list
from tests.tls.lines import (
    CODE,
    DAY,
    KINDS,
    NOW,
    OTHER_CODE,
    TODAY,
    client_context,
    open_line,
    pki,
    server_context,
    stranger_pki,
    talk,
)
from tests.tls.test_handshake import revocation_list

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)


@every_kind
def test_a_good_line_stays_good(kind: TlsKind) -> None:
    _, server = open_line(kind)
    chain = server.peer_chain()
    assert len(chain) == 1
    for changes in ({}, {"revoked": revocation_list(kind, OTHER_CODE)}):
        judge = server_context(kind, **changes).judge(NOW)
        # What the judge stands on is its own: the context may go.
        gc.collect()
        for _ in range(3):
            judge.require_trusted(chain)


@every_kind
def test_a_resumed_line_is_judged_too(kind: TlsKind) -> None:
    server_side, client_side = server_context(kind), client_context(kind)
    first, _ = open_line(kind, server_side, client_side)
    _, again = open_line(kind, server_side, client_side, session=first.session)
    assert again.is_resumed
    server_context(kind).judge(NOW).require_trusted(again.peer_chain())
    revoked = server_context(kind, revoked=revocation_list(kind, CODE))
    with pytest.raises(TlsFault) as refused:
        revoked.judge(NOW).require_trusted(again.peer_chain())
    assert "revoked" in refused.value.cause


@every_kind
def test_what_would_not_be_let_in_is_not_trusted(kind: TlsKind) -> None:
    _, server = open_line(kind)
    chain = server.peer_chain()
    stale = make_revocation_list(
        pki(kind).authority,
        {},
        TODAY - datetime.timedelta(days=9),
        TODAY - datetime.timedelta(days=1),
        1,
    )
    stranger = stranger_pki(kind).authority.certificate
    cases = {
        "revoked": (server_context(kind, revoked=revocation_list(kind, CODE)), NOW, chain),
        "CRL has expired": (server_context(kind, revoked=stale), NOW, chain),
        "unable to get local issuer": (
            server_context(kind, client_authorities=stranger),
            NOW,
            chain,
        ),
        "certificate has expired": (server_context(kind), NOW + 20 * DAY, chain),
        "not yet valid": (server_context(kind), NOW - 20 * DAY, chain),
        "there is no certificate": (server_context(kind), NOW, []),
    }
    for cause, (context, now, certificates) in cases.items():
        with pytest.raises(TlsFault) as refused:
            context.judge(now).require_trusted(certificates)
        assert cause in refused.value.cause


@every_kind
def test_judging_does_not_stop_the_clock_of_handshakes(kind: TlsKind) -> None:
    """A judge has a time of its own: lines that begin later are judged by theirs."""
    server_side = server_context(kind)
    _, server = open_line(kind, server_side)
    server_side.judge(NOW).require_trusted(server.peer_chain())
    late = server_side.accept(NOW + 20 * DAY)
    connecting = client_context(kind).connect("keyd.example", NOW)
    with pytest.raises(TlsFault) as refused:
        talk(connecting, late)
    assert "expired" in refused.value.cause


@every_kind
def test_a_line_without_authorities_asks_for_no_certificate(kind: TlsKind) -> None:
    context = server_context(kind, client_authorities=None)
    bare = TlsClientContext(kind, server_authorities=pki(kind).authority.certificate)
    for client_side in (bare, client_context(kind)):
        client, server = open_line(kind, context, client_side)
        assert server.state is TlsState.OPEN
        assert server.peer_certificate is None
        assert server.peer_chain() == []
        assert server.channel_binding == client.channel_binding
        assert server.receive_data_untrusted(client.send(b"ask")) == b"ask"
    with pytest.raises(LocalProtocolError):
        context.judge(NOW)


@every_kind
def test_a_ticket_of_a_line_without_certificates_is_none_elsewhere(kind: TlsKind) -> None:
    bare = TlsClientContext(kind, server_authorities=pki(kind).authority.certificate)
    first, _ = open_line(kind, server_context(kind, client_authorities=None), bare)
    with pytest.raises(TlsFault) as refused:
        open_line(kind, server_context(kind), bare, session=first.session)
    assert "certificate" in refused.value.cause


@every_kind
def test_a_client_without_a_certificate_still_judges_keyd(kind: TlsKind) -> None:
    stranger = TlsClientContext(kind, server_authorities=stranger_pki(kind).authority.certificate)
    with pytest.raises(TlsFault):
        open_line(kind, server_context(kind, client_authorities=None), stranger)
