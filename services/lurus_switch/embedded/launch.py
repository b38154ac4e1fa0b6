"""Becomes another program that cannot outlive its parent.

Run by path, as `python -I -S launch.py PARENT_PID SIGNAL USER GROUP LISTENER -- PROGRAM ARGUMENTS`.
The supervisor has threads (gRPC, asyncio), where Python code between fork and
exec may deadlock; a fresh interpreter that replaces itself does the same work
safely and costs 30 ms and, after the exec, no memory. Imports the standard
library only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
FIRST_DESCRIPTOR = 3
NOT_STARTED = 127
"""Exit code when the program could not become another one."""


def die_with_parent(parent_pid: int, death_signal: int) -> None:
    """Makes the kernel send us `death_signal` when our parent ends; ends us if it has ended already.

    The parent is the *thread* that started us. A change of user clears the
    request, so it comes after one. Does nothing on systems without it.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(NOT_STARTED)


def _become_user(user: str, group: str) -> None:
    if group != "-":
        os.setgroups([])
        os.setgid(int(group))
    if user != "-":
        os.setuid(int(user))


def _hand_over(listener: str) -> None:
    """Leaves a listening socket to the program as systemd would, under the first number for that.

    Source: sd_listen_fds(3).
    """
    if listener != "-":
        os.dup2(int(listener), FIRST_DESCRIPTOR)
        if int(listener) != FIRST_DESCRIPTOR:
            os.close(int(listener))
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")


def _restore_signals() -> None:
    """Undoes what Python does to signals, since exec would hand it on."""
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def main(arguments: list[str]) -> None:
    """Becomes the program named in `arguments`, or ends with `NOT_STARTED`."""
    parent_pid, death_signal, user, group, listener, _, *argv = arguments
    try:
        os.umask(0o077)
        _become_user(user, group)
        die_with_parent(int(parent_pid), int(death_signal))
        _restore_signals()
        _hand_over(listener)
        os.execvp(argv[0], argv)  # noqa: S606  (the purpose of this module)
    except OSError as error:
        print(f"cannot start {argv[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(NOT_STARTED)


if __name__ == "__main__":
    main(sys.argv[1:])
