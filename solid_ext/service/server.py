"""The process: one event loop on one port, until it is told to stop."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from solid_ext.service.app import create_app
from solid_ext.service.limits import Limits
from solid_ext.service.model import Follower
from solid_ext.threads import set_threads


def serve(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    token: str | None = None,
    threads: int = 1,
    limits: Limits | None = None,
    on_start: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the model of a folder until SIGINT or SIGTERM; requests that have begun are answered first.

    Args:
        folder: of a run, or of a model; when it is replaced, the new one takes over.
        host: a name or an address of this machine; at one of the loopback the service takes requests for local names
            alone.
        port: 0 for a free one.
        token: that requests have to bear; None for none.
        threads: of torch, of the thread that computes.
        limits: of requests, and of what is kept.
        on_start: told the address when the service listens.

    Raises:
        ValueError: a folder that cannot be loaded, or an address that cannot be listened at.
    """
    limits = limits or Limits()
    set_threads(threads)
    listening = _listening(host, port)
    with listening:
        follower = Follower(folder)
        hosts = {"localhost", "127.0.0.1", "[::1]", host.lower()} if _is_loopback(listening) else None
        app = create_app(follower, limits, token=token, hosts=hosts)
        config = uvicorn.Config(
            app,
            http="h11",  # which bounds a head that has not come whole; httptools takes one of any size
            access_log=False,
            server_header=False,
            log_level="warning",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(limits.seconds) + 1,
            h11_max_incomplete_event_size=2 * limits.head_bytes,  # the guard refuses a head in words
        )
        try:
            listening.listen(config.backlog)  # now, so that whoever reads the address can connect
        except OSError as error:  # somebody who had bound it too was faster
            raise _unusable(host, port, error) from error
        port = listening.getsockname()[1]
        on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there, before the model is loaded, so that a port in use is known at once."""
    if not 0 <= port < 2**16:
        raise ValueError(f"serve: expected a port in 0 .. 65535, got {port}")
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        with suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, UnicodeError) as error:
        if found is not None:
            found.close()
        raise _unusable(host, port, error) from error
    return found


def _unusable(host: str, port: int, error: Exception) -> ValueError:
    return ValueError(f"serve: expected an address to listen at, got {host}:{port} ({error})")


def _is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback
