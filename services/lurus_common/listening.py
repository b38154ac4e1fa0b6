"""Sockets that listen: made here, or inherited from whoever started us; and how many may be open."""

import os
import resource
import socket
from collections.abc import Mapping

from lurus_common.settings import SettingsError

BACKLOG = 2048
# What the kernel keeps for a client that does not read; by itself it grows to megabytes. Each
# connection gets it from its listener.
SEND_BYTES = 256 * 1024
# Where inherited descriptors begin. Source: sd_listen_fds(3).
FIRST_DESCRIPTOR = 3


def listen(host: str, port: int, share_port: bool = False) -> socket.socket:
    """Returns a listening socket; `share_port` lets other processes bind the port as well."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def inherited_listener(environment: Mapping[str, str]) -> socket.socket | None:
    """Returns the listening socket that our parent has left open for us, None if there is none.

    Source: sd_listen_fds(3): LISTEN_PID names us, LISTEN_FDS counts the sockets.

    Raises:
        SettingsError: there is not exactly one, or it does not listen.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    if environment.get("LISTEN_FDS") != "1":
        raise SettingsError("LISTEN_FDS must be 1: one socket is served, the edge's")
    try:
        listener = socket.socket(fileno=FIRST_DESCRIPTOR)
        is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SettingsError(f"LISTEN_FDS promises a socket that is not there: {error}") from None
    if not is_listening:
        raise SettingsError("LISTEN_FDS names a socket that does not listen")
    listener.setblocking(False)
    os.set_inheritable(FIRST_DESCRIPTOR, False)
    return listener


def raise_descriptor_limit() -> int:
    """Lets this process and its children open as many files as the system allows; returns how many.

    Each stream takes two descriptors, and the usual soft limit is 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # a system whose hard limit is not one that it grants
        return soft
    return hard
