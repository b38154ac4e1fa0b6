"""Runs the faulty provider or the fault proxy in a process of its own, for whatever speaks HTTP or TCP."""

import argparse
import asyncio
import json
import sys

from .provider import FaultyProvider
from .proxy import FaultProxy


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    provider = kinds.add_parser("provider", help="a provider whose models misbehave as they are named")
    provider.add_argument("--port", type=int, default=0)
    proxy = kinds.add_parser("proxy", help="a TCP proxy that breaks connections")
    proxy.add_argument("--target", required=True, help="HOST:PORT")
    proxy.add_argument("--port", type=int, default=0)
    proxy.add_argument("--control", type=int, default=0, help="the port where it is switched by JSON")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace) -> None:
    server: FaultyProvider | FaultProxy
    if arguments.kind == "provider":
        server = FaultyProvider()
        server.port = arguments.port
    else:
        server = FaultProxy(arguments.target, arguments.port, arguments.control)
    async with server:
        said = {"url": server.url}
        if isinstance(server, FaultProxy):
            said["control_url"] = server.control_url
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(_run(_arguments()))
    except KeyboardInterrupt:
        sys.exit(130)
