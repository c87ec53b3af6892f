"""Which function handles which request: each says so itself, above its own name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyd.handlers.services import Services
    from keyd.keys.sam import Steps
    from keyd.protocol.fields import Request, Response
    from keyd.terminals import Session

    Handler = Callable[[Any, Session, Services], Response | Steps[Response] | Awaitable[Response]]

RequestT = TypeVar("RequestT", bound="Request[Any]")
ResponseT = TypeVar("ResponseT", bound="Response")

HANDLERS: Final[dict[type[Request[Any]], Handler]] = {}


def handles(
    request: type[RequestT],
) -> Callable[
    [Callable[[RequestT, Session, Services], Any]], Callable[[RequestT, Session, Services], Any]
]:
    """Register a function as the handler of a request type."""

    def register(
        handler: Callable[[RequestT, Session, Services], Any],
    ) -> Callable[[RequestT, Session, Services], Any]:
        if request in HANDLERS:
            raise TypeError(f"{request.__name__} has a handler already")
        HANDLERS[request] = handler
        return handler

    return register
