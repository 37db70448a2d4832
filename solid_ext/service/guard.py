"""What every request passes before it is read: who asks, how much, how long."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio

from solid_ext.service.limits import Limits
from solid_ext.service.metrics import Metrics
from solid_ext.service.problem import problem_response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """An ASGI application around another one: token, host name, size and time of each request, and its measures.

    Args:
        app: what answers.
        limits: of size and time.
        metrics: that count.
        paths: that are counted by name; others are "other".
        open_paths: that need no token.
        token: that the others need, as `Authorization: Bearer ..`; None for none.
        hosts: names by which the service may be called, in small letters; None for any. A service for this machine
            alone takes no others, as a page of elsewhere could have its own name lead here.
    """

    def __init__(
        self,
        app: Any,
        limits: Limits,
        metrics: Metrics,
        paths: set[str],
        open_paths: set[str],
        token: str | None,
        hosts: set[str] | None,
    ) -> None:
        self.app, self.limits, self.metrics, self.paths, self.open_paths = app, limits, metrics, paths, open_paths
        self.token, self.hosts = None if token is None else token.encode(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            refused = self._refused(scope)
            if refused is not None:
                await refused(scope, receive, sent)
                return
            with anyio.move_on_after(self.limits.seconds) as reading:
                body = await _body(receive, self.limits.body_bytes)
            if reading.cancelled_caught:
                late = f"expected the body of a request within {self.limits.seconds:g} s, got none in that time"
                await problem_response(408, late, {"connection": "close"})(scope, receive, sent)
            elif body is None:
                await self._too_large()(scope, receive, sent)
            else:
                with anyio.move_on_after(self.limits.seconds) as answering:
                    await self.app(scope, _replayed(body, receive), sent)
                if answering.cancelled_caught and not status:
                    late = f"expected an answer within {self.limits.seconds:g} s, got none in that time: try again"
                    await problem_response(503, late, {"retry-after": "1"})(scope, receive, sent)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _refused(self, scope: Scope) -> Any:
        """The answer to a request that is not read."""
        if _head_bytes(scope) > self.limits.head_bytes:
            return problem_response(
                431,
                f"expected a request's head of at most {self.limits.head_bytes:,} bytes, got more",
                {"connection": "close"},
            )
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self.hosts is not None and _name(host) not in self.hosts:
            return problem_response(421, f"expected a host of {', '.join(sorted(self.hosts))}, got {host[:80]!r}")
        if self.token is not None and scope["path"] not in self.open_paths:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(given.strip(), self.token) or scheme.lower() != b"bearer":
                return problem_response(
                    401,
                    "expected the header Authorization: Bearer TOKEN, got none or another",
                    {"www-authenticate": "Bearer"},
                )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limits.body_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> Any:
        return problem_response(
            413, f"expected a body of at most {self.limits.body_bytes:,} bytes, got more", {"connection": "close"}
        )


def _head_bytes(scope: Scope) -> int:
    """The size of a request's address and headers as they came."""
    address = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
    return address + sum(len(name) + len(value) + len(b": \r\n") for name, value in scope["headers"])


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


async def _body(receive: Receive, most: int) -> bytes | None:
    """The whole body; None where it is longer than `most`, or whoever sends it has gone."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read, for who reads it next; then what comes after it."""
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
