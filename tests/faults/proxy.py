"""A TCP proxy that breaks connections between any two parts, switched while it runs.

    async with FaultProxy("127.0.0.1:5432") as proxy:
        ...  # let the client connect to proxy.address instead
        await proxy.change(mode="black_hole")
        await proxy.change(down={"latency_seconds": 0.2, "jitter_seconds": 0.1})
        await proxy.heal()

`down` is what the target sends to the client, `up` the other way. Faults of a direction are read anew for
every piece of data, so that a change holds for connections that are open, too; pieces wait one behind the
other, and offsets count from the start of a connection. With `control_port` the same
is switched over HTTP on the loopback interface: `GET /` tells the state, `POST /` with the arguments of
`change` as JSON changes it, `DELETE /` heals.
"""

import asyncio
import json
import random
import socket
import struct
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .scripted import Exchange, ScriptedUpstream

MODES = ("pass", "black_hole", "reset", "refuse")
PIECE_BYTES = 2**16
MAX_CONNECTIONS = 10_000
CONNECT_SECONDS = 10.0
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Faults:
    """What happens to the data of one direction. Zero or None is no fault."""

    latency_seconds: float = 0.0
    # Up to so much more, evenly distributed.
    jitter_seconds: float = 0.0
    bytes_per_second: float = 0.0
    # Keeps all data back, for as long as it is set.
    is_held: bool = False
    # Cuts the data into slices of so many bytes, with a pause behind each.
    slice_bytes: int = 0
    slice_pause_seconds: float = 0.0
    # After so many bytes the connection is broken (RST), closed in order, or closed in this direction only.
    reset_after_bytes: int | None = None
    close_after_bytes: int | None = None
    half_close_after_bytes: int | None = None
    # The bits of the byte at this offset are turned over.
    corrupt_at: int | None = None

    def change(self, values: dict[str, Any]) -> None:
        """Sets some of them.

        Raises:
            ValueError: there is no such fault.
        """
        unknown = set(values) - {known.name for known in fields(self)}
        if unknown:
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
        for name, value in values.items():
            setattr(self, name, value)

    def delay(self, size: int) -> float:
        """Returns how long a piece of so many bytes takes."""
        pace = size / self.bytes_per_second if self.bytes_per_second else 0.0
        return self.latency_seconds + random.uniform(0, self.jitter_seconds) + pace

    def last_offset(self) -> tuple[int, str] | None:
        """Returns where the connection ends in this direction, and how."""
        ends = {
            "reset": self.reset_after_bytes,
            "close": self.close_after_bytes,
            "half_close": self.half_close_after_bytes,
        }
        found = [(offset, how) for how, offset in ends.items() if offset is not None]
        return min(found) if found else None


@dataclass(eq=False, slots=True)
class _Connection:
    client: asyncio.StreamWriter
    target: asyncio.StreamWriter | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def end(self, is_reset: bool) -> None:
        for writer in (self.client, self.target):
            if writer is not None:
                _reset(writer) if is_reset else writer.close()
        for task in self.tasks:
            task.cancel()


class FaultProxy:
    """The proxy. `mode` is what happens to new connections.

    `pass` forwards them, `black_hole` takes them and does nothing, `reset` takes and breaks them, `refuse`
    does not listen. A change to `reset` or `refuse` breaks the open ones too; `black_hole` freezes them.
    """

    def __init__(self, target: str, port: int = 0, control_port: int | None = None) -> None:
        self.target = target
        self.port = port
        self.mode = "pass"
        self.up = Faults()
        self.down = Faults()
        # Since the start, of all connections.
        self.connection_count = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        # Set whenever a fault has changed; data that is held looks again.
        self._changed = asyncio.Event()
        self._control = ScriptedUpstream(self._switch) if control_port is not None else None
        if self._control is not None:
            self._control.port = control_port or 0

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where it listens, as a base URL."""
        return f"http://{self.address}"

    @property
    def control_url(self) -> str:
        """Where it is switched."""
        assert self._control is not None, "the proxy was made without a control port"
        return self._control.url

    @property
    def open_count(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def __aenter__(self) -> "FaultProxy":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens."""
        await self._listen()
        if self._control is not None:
            await self._control.start()

    async def stop(self) -> None:
        """Breaks all connections and listens no more."""
        if self._control is not None:
            await self._control.stop()
        self._close_door()
        await self._end_all(is_reset=True)

    async def change(
        self,
        *,
        mode: str | None = None,
        up: dict[str, Any] | None = None,
        down: dict[str, Any] | None = None,
    ) -> None:
        """Changes what happens from now on; what is not named stays.

        Raises:
            ValueError: there is no such mode or fault.
        """
        if mode is not None and mode not in MODES:
            raise ValueError(f"no such mode: {mode}; there are {', '.join(MODES)}")
        for faults, values in ((self.up, up), (self.down, down)):
            faults.change(values or {})
        if mode is not None:
            await self._enter(mode)
        self._changed.set()
        self._changed = asyncio.Event()

    async def heal(self) -> None:
        """Takes all faults away. Connections that were frozen go on."""
        self.up, self.down = Faults(), Faults()
        await self.change(mode="pass")

    async def cut(self) -> None:
        """Breaks the connections that are open now."""
        await self._end_all(is_reset=True)

    def state(self) -> dict[str, Any]:
        """Returns everything as JSON has it."""
        return {
            "address": self.address,
            "target": self.target,
            "mode": self.mode,
            "up": asdict(self.up),
            "down": asdict(self.down),
            "connection_count": self.connection_count,
            "open_count": self.open_count,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }

    async def _enter(self, mode: str) -> None:
        self.mode = mode
        if mode in ("reset", "refuse"):
            await self._end_all(is_reset=True)
        if mode == "refuse":
            self._close_door()
        elif self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def _close_door(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _end_all(self, is_reset: bool) -> None:
        ending = list(self._connections)
        for connection in ending:
            connection.end(is_reset)
        tasks = [task for connection in ending for task in connection.tasks]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        if self.mode == "reset" or len(self._connections) >= MAX_CONNECTIONS:
            _reset(writer)
            return
        connection = _Connection(writer)
        task = asyncio.current_task()
        assert task is not None
        connection.tasks.add(task)
        self._connections.add(connection)
        try:
            await self._serve(connection, reader)
        except asyncio.CancelledError:
            pass  # Ended by a change or by the stop.
        finally:
            self._connections.discard(connection)
            connection.tasks.discard(task)
            connection.end(is_reset=False)

    async def _serve(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        while self.mode == "black_hole":
            await self._changed.wait()
        host, _, port = self.target.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                target_reader, target_writer = await asyncio.open_connection(host, int(port))
        except (OSError, TimeoutError):
            _reset(connection.client)
            return
        connection.target = target_writer
        for writer in (connection.client, target_writer):
            writer.transport.set_write_buffer_limits(0)  # What was drained has left this process.
        ways = (
            self._pump(connection, reader, target_writer, is_up=True),
            self._pump(connection, target_reader, connection.client, is_up=False),
        )
        tasks = [asyncio.ensure_future(way) for way in ways]
        connection.tasks.update(tasks)
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_up: bool,
    ) -> None:
        """Carries the data of one direction until it ends or a fault ends it."""
        offset = 0
        try:
            while data := await reader.read(PIECE_BYTES):
                offset = await self._carry(connection, writer, data, offset, is_up)
            await self._until_free(is_up)
            writer.write_eof()
        except _EndOfDirection:
            writer.write_eof()
        except _EndOfConnection:
            return
        except OSError:
            connection.end(is_reset=True)

    async def _carry(
        self,
        connection: _Connection,
        writer: asyncio.StreamWriter,
        data: bytes,
        offset: int,
        is_up: bool,
    ) -> int:
        """Forwards one read; returns the offset behind it."""
        while data:
            await self._until_free(is_up)
            faults = self.up if is_up else self.down
            size = faults.slice_bytes or len(data)
            last = faults.last_offset()
            piece = data[:size] if last is None else data[: max(0, min(size, last[0] - offset))]
            if delay := faults.delay(len(piece)):
                await asyncio.sleep(delay)
                await self._until_free(is_up)
            self._count(len(piece), is_up)
            writer.write(_corrupted(piece, offset, faults.corrupt_at))
            await writer.drain()
            offset += len(piece)
            data = data[len(piece) :]
            if last is not None and offset >= last[0]:
                self._end(connection, last[1])
            if faults.slice_bytes and faults.slice_pause_seconds:
                await asyncio.sleep(faults.slice_pause_seconds)
        return offset

    def _count(self, size: int, is_up: bool) -> None:
        if is_up:
            self.bytes_up += size
        else:
            self.bytes_down += size

    @staticmethod
    def _end(connection: _Connection, how: str) -> None:
        if how == "half_close":
            raise _EndOfDirection
        connection.end(is_reset=how == "reset")
        raise _EndOfConnection

    async def _until_free(self, is_up: bool) -> None:
        """Waits while data of this direction is held back."""
        while self.mode == "black_hole" or (self.up if is_up else self.down).is_held:
            await self._changed.wait()

    async def _switch(self, exchange: Exchange) -> None:
        """Answers the control port."""
        request = exchange.request
        status, answer = 200, None
        try:
            if request.method == "DELETE":
                await self.heal()
            elif request.method in ("POST", "PUT"):
                await self.change(**request.json())
        except (ValueError, TypeError) as error:
            status, answer = 400, {"error": str(error)}
        data = json.dumps(answer or self.state()).encode()
        named = {"content-type": "application/json", "content-length": str(len(data))}
        await exchange.send_head(status, named)
        await exchange.send(data)


class _EndOfDirection(Exception):
    """One direction ends, the other goes on."""


class _EndOfConnection(Exception):
    """A fault has ended the connection."""


def _corrupted(data: bytes, offset: int, at: int | None) -> bytes:
    if at is None or not offset <= at < offset + len(data):
        return data
    changed = bytearray(data)
    changed[at - offset] ^= 0xFF
    return bytes(changed)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Breaks a connection (RST)."""
    with suppress(OSError, AttributeError):
        found = writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
