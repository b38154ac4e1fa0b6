"""A routing service in a process of its own, for the tests that kill it; settings from the environment."""

import asyncio
import os
import sys

import uvloop

from lurus_common.settings import read_settings
from lurus_routing.server import routing_server


async def main() -> None:
    async with routing_server(read_settings(os.environ)) as port:
        print(port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
