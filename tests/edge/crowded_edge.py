"""An edge in a process of its own with few file descriptors; prints its port. Nobody routes behind it."""

import asyncio
import resource
import sys

import uvloop

from lurus_common.rpc import open_channel
from lurus_common.settings import Settings
from lurus_edge.server import edge_server


async def main(descriptors: int) -> None:
    async def ready() -> dict[str, str]:
        return {}

    async with open_channel("127.0.0.1:1") as channel:
        settings = Settings(edge_port=0, drain_seconds=1)
        async with edge_server(
            settings, routing_channel=channel, service_channels={}, readiness=ready
        ) as server:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
            print(server.port, flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
