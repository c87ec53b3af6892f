"""Whatever was said on a line before, what is waited for is acknowledged at once."""

from __future__ import annotations

import socket

import trio
import trio.testing

from keyd.lending.promptly import receive_promptly


def is_prompt(stream: trio.SocketStream) -> bool:
    return bool(stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))


async def test_what_is_waited_for_is_acknowledged_at_once() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()
    async with listener, await trio.open_tcp_stream(host, port) as theirs:
        ours = await listener.accept()
        async with ours:
            # A conversation, in which the kernel waits for an answer that would carry the acknowledgement.
            for _ in range(3):
                await theirs.send_all(b"\0\1")
                assert await receive_promptly(ours, 2) == b"\0\1"
                await ours.send_all(b"ok")
                assert await theirs.receive_some(2) == b"ok"
                assert not is_prompt(ours)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive_promptly, ours, 2)
                await trio.testing.wait_all_tasks_blocked()
                assert is_prompt(ours)
                await theirs.send_all(b"\0\1")


async def test_a_line_that_ended_says_so() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()
    async with listener, await trio.open_tcp_stream(host, port) as theirs:
        ours = await listener.accept()
        await theirs.aclose()
        async with ours:
            assert await receive_promptly(ours, 2) == b""
