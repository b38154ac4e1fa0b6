"""What clients see while workers are rolled, by who owns the listening socket.

    python -m benchmarks.handover [--rounds N]

Three ways for several processes to serve one port:

    rebound  each worker binds a socket of its own with SO_REUSEPORT, and closes it when it ends
    shared   all workers inherit one listening socket
    slots    each place of a worker has a SO_REUSEPORT socket that outlives the workers in it

Clients connect all the time, ask once and leave. Printed: calls, those that failed and how, and how
evenly connections that stay open are spread over two workers.
"""

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import Counter

import uvloop

BACKLOG = 2048
WORKERS = 2
CALLERS = 48
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
KEPT = 64
# As a gateway does: its loop is busy for a moment with every request.
WORK_LOOPS = 2_000
TABLE = "{:<8} {:>7} {:>7} {:>9} {:>7}  {}"


def listen(port: int, share: bool = True) -> socket.socket:
    """Returns a listening socket on a port of this machine."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


async def work(listener: socket.socket) -> None:
    """Serves until SIGTERM; then accepts no more and finishes what it has."""
    open_count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_count
        open_count += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                sum(range(WORK_LOOPS))
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            open_count -= 1
            writer.close()

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    server = await asyncio.start_server(serve, sock=listener)
    print("ready", flush=True)
    await ended.wait()
    server.close()
    while open_count:  # a program that measures
        await asyncio.sleep(0.005)


class Way:
    """One way to own the sockets."""

    def __init__(self, name: str) -> None:
        self.name = name
        first = listen(0)
        self.port = first.getsockname()[1]
        self._keeper = first
        count = {"rebound": 0, "shared": 1, "slots": WORKERS}[name]
        self._sockets = [first] if count == 1 else [listen(self.port) for _ in range(count)]
        if count != 1:
            first.close()

    def start(self, slot: int) -> "subprocess.Popen[bytes]":
        """Starts a worker and waits until it serves."""
        argv = [sys.executable, "-m", "benchmarks.handover", "--port", str(self.port)]
        descriptors: tuple[int, ...] = ()
        if self._sockets:
            descriptor = self._sockets[slot % len(self._sockets)].fileno()
            argv += ["--descriptor", str(descriptor)]
            descriptors = (descriptor,)
        worker = subprocess.Popen(argv, stdout=subprocess.PIPE, pass_fds=descriptors)
        assert worker.stdout is not None
        worker.stdout.readline()
        return worker


async def call(port: int, seen: Counter[str]) -> None:
    """Connects, asks once, leaves."""
    seen["calls"] += 1
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readexactly(len(ANSWER))
        writer.close()
    except (OSError, asyncio.IncompleteReadError) as error:
        seen[type(error).__name__] += 1


async def measure(name: str, rounds: int) -> None:
    """Rolls both workers so many times under load, and prints what clients saw."""
    way = Way(name)
    workers = [await asyncio.to_thread(way.start, slot) for slot in range(WORKERS)]
    spread = await kept(way.port, workers)
    seen: Counter[str] = Counter()
    is_over = False

    async def caller() -> None:
        while not is_over:
            await call(way.port, seen)

    callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    for _ in range(rounds):
        for slot, old in enumerate(workers):
            workers[slot] = await asyncio.to_thread(way.start, slot)
            old.terminate()
            await asyncio.to_thread(old.wait)
    is_over = True
    await asyncio.gather(*callers)
    for worker in workers:
        worker.kill()
        worker.wait()
    failures = {kind: count for kind, count in seen.items() if kind != "calls"}
    print(TABLE.format(name, rounds * WORKERS, seen["calls"], sum(failures.values()), spread, failures or ""))


async def kept(port: int, workers: "list[subprocess.Popen[bytes]]") -> str:
    """Opens connections in a burst and returns how many each worker holds."""
    opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(KEPT)))
    writers = [writer for _, writer in opened]
    await asyncio.sleep(0.3)
    counts = [_connections(worker.pid, port) for worker in workers]
    for writer in writers:
        writer.close()
    return "/".join(map(str, counts))


def _connections(pid: int, port: int) -> int:
    import psutil

    return sum(row.status == "ESTABLISHED" for row in psutil.Process(pid).net_connections("tcp4"))


def main() -> None:
    """Measures all ways, or is a worker of one of them."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    arguments.add_argument("--descriptor", type=int, default=-1, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.descriptor >= 0:
        uvloop.run(work(socket.socket(fileno=given.descriptor)))
    elif given.port:
        uvloop.run(work(listen(given.port)))
    else:
        print(TABLE.format("sockets", "rolled", "calls", "failed", "spread", f"(process {os.getpid()})"))
        for name in ("rebound", "shared", "slots"):
            uvloop.run(measure(name, given.rounds))


if __name__ == "__main__":
    main()
