"""`lurus top`: an account's money and its requests, live."""

import asyncio
import shutil
import sys
from collections import deque
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import grpc.aio
import typer

from lurus.billing.v1 import billing_pb2 as pb
from lurus.log.v1 import log_pb2
from lurus.usage.v1 import usage_pb2
from lurus_switch.amounts import usd
from lurus_switch.bootstrap import ACCOUNT_ID
from lurus_switch.commands.options import DataDir
from lurus_switch.mesh import Mesh, run
from lurus_switch.output import all_input, clean, enum_word, local_time, short_duration

app = typer.Typer(rich_markup_mode=None, add_completion=False)

RECONNECT_SECONDS = 1.0
REDRAW_SECONDS = 0.25
RECENT_REQUESTS = 15
# Models that strangers name are not counted without end.
MAX_MODELS = 12
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


@dataclass
class Total:
    """What a model took since the view began."""

    request_count: int = 0
    error_count: int = 0
    cost_nano_usd: int = 0


@dataclass
class View:
    """What is shown. `budget` is None until it is known; `trouble` names what has gone."""

    account_id: str
    budget: pb.WatchBudgetResponse | None = None
    totals: dict[str, Total] = field(default_factory=dict)
    recent: deque[usage_pb2.UsageEvent] = field(default_factory=lambda: deque(maxlen=RECENT_REQUESTS))
    trouble: dict[str, str] = field(default_factory=dict)

    def take_budget(self, response: pb.WatchBudgetResponse) -> None:
        """Takes the budget as it is now."""
        self.budget = response

    def take_usage(self, response: log_pb2.WatchUsageResponse) -> None:
        """Counts a request that has finished."""
        if not response.HasField("event"):
            return
        event = response.event
        name = event.model if event.model in self.totals or len(self.totals) < MAX_MODELS else "others"
        total = self.totals.setdefault(name, Total())
        total.request_count += 1
        total.error_count += event.http_status >= 400
        total.cost_nano_usd += event.cost_nano_usd
        self.recent.appendleft(event)

    def lines(self) -> list[str]:
        """The whole screen."""
        shown = [f"lurus top - {self.account_id}", *_money(self.budget), ""]
        totals = sorted(self.totals.items(), key=lambda item: -item[1].cost_nano_usd)
        shown += [f"{'MODEL':<32}{'REQUESTS':>10}{'ERRORS':>8}{'COST':>18}   since this began"]
        shown += [
            f"{clean(name)[:31]:<32}{total.request_count:>10}{total.error_count:>8}"
            f"{usd(total.cost_nano_usd):>18}"
            for name, total in totals
        ]
        shown += ["", f"{'TIME':<21}{'MODEL':<32}{'END':<12}{'IN':>9}{'OUT':>8}{'COST':>16}{'TOTAL':>10}"]
        shown += [_request(event) for event in self.recent] or ["no requests yet"]
        return shown + [f"! {trouble}" for trouble in self.trouble.values()]


def _money(budget: pb.WatchBudgetResponse | None) -> list[str]:
    if budget is None:
        return ["waiting for the ledger"]
    balance, quota = budget.balance, budget.quota
    lines = [
        f"balance {usd(balance.balance_nano_usd)}   leased {usd(balance.leased_nano_usd)}"
        f"   reserved {usd(balance.reserved_nano_usd)}   available {usd(balance.available_nano_usd)}"
    ]
    caps = [
        f"{word} {usd(getattr(quota, f'{period}_left_nano_usd'))}"
        for period, word in (("daily", "today"), ("monthly", "this month"), ("total", "in all"))
        if quota.HasField(f"{period}_left_nano_usd")  # type: ignore[arg-type]  # three of its fields
    ]
    used = f"used today {usd(quota.daily_used_nano_usd)}, this month {usd(quota.monthly_used_nano_usd)}"
    return [*lines, f"{used}   left of the caps: {', '.join(caps) or 'there are none'}"]


def _request(event: usage_pb2.UsageEvent) -> str:
    end = enum_word(usage_pb2.Terminal.DESCRIPTOR, event.terminal)
    cost = "unpriced" if event.is_unpriced else usd(event.cost_nano_usd)
    return (
        f"{local_time(event, 'event_time'):<21}{clean(event.model)[:31]:<32}{end[:11]:<12}"
        f"{all_input(event.tokens):>9}{event.tokens.output:>8}{cost:>16}"
        f"{short_duration(event, 'total_duration'):>10}"
    )


@app.command()
def top(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its id, `acct_…`.")] = ACCOUNT_ID,
    data_dir: DataDir = None,
) -> None:
    """Shows an account's money and its requests as they finish; Ctrl-C ends it.

    On a terminal one screen that is drawn anew; elsewhere a line for each
    change of the budget and each request.
    """

    async def command(mesh: Mesh) -> None:
        view, changed = View(account_id), asyncio.Event()
        is_screen = sys.stdout.isatty()
        budget = pb.WatchBudgetRequest(account_id=account_id)
        usage = log_pb2.WatchUsageRequest(filter=log_pb2.LogFilter(account_id=account_id))
        take_budget = view.take_budget if is_screen else _print_budget
        take_usage = view.take_usage if is_screen else _print_usage
        following = [
            _follow(view, changed, "ledger", lambda: mesh.billing.WatchBudget(budget), take_budget),
            _follow(view, changed, "request log", lambda: mesh.log.WatchUsage(usage), take_usage),
        ]
        await asyncio.gather(*following, *([_draw(view, changed)] if is_screen else []))

    run(command, data_dir)


async def _follow(
    view: View,
    changed: asyncio.Event,
    what: str,
    watch: Callable[[], AsyncIterable[Any]],
    take: Callable[[Any], None],
) -> None:
    """Takes what a stream tells, for ever; one that has begun is opened anew when its service comes back."""
    has_begun = False
    while True:
        try:
            async for response in watch():
                has_begun = True
                view.trouble.pop(what, None)
                take(response)
                changed.set()
        except grpc.aio.AioRpcError as error:
            if not has_begun or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        view.trouble[what] = f"the {what} has gone; waiting for it"
        if not sys.stdout.isatty():
            print(view.trouble[what], file=sys.stderr)
        changed.set()
        await asyncio.sleep(RECONNECT_SECONDS)


async def _draw(view: View, changed: asyncio.Event) -> None:
    """Draws the screen anew when something has changed, as much of it as fits."""
    while True:
        changed.clear()
        size = shutil.get_terminal_size()
        fitting = [line[: size.columns - 1] for line in view.lines()[: size.lines - 1]]
        text = "".join(f"{line}{_REST_OF_LINE}\n" for line in fitting)
        print(f"{_HOME}{text}{_REST_OF_SCREEN}", end="", flush=True)
        await changed.wait()
        await asyncio.sleep(REDRAW_SECONDS)


def _print_budget(response: pb.WatchBudgetResponse) -> None:
    print(*_money(response), sep="\n", flush=True)


def _print_usage(response: log_pb2.WatchUsageResponse) -> None:
    if response.HasField("event"):
        print(_request(response.event), flush=True)
