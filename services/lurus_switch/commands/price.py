"""`lurus price`: what tokens cost, by date. Rates are given in USD per million tokens."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from lurus.provider.v1 import provider_pb2 as pb
from lurus_switch.amounts import positive_nano_usd, usd
from lurus_switch.commands import fields, options, price_again, price_transfer
from lurus_switch.commands.options import AsJson, DataDir, Yes
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import Column, local_time, print_fields, print_json, print_table, timestamp
from lurus_switch.price_files import KINDS

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)
app.command("import")(price_transfer.import_prices)
app.command("export")(price_transfer.export_prices)
app.command("unpriced")(price_again.unpriced)
app.command("reprice")(price_again.reprice)

Id = Annotated[str, typer.Argument(metavar="PRICE", help="Its id, `price_…`; `lurus price list` shows it.")]


def _rate(name: str, what: str) -> Any:
    return typer.Option(name, parser=options.positive_nano_usd_parser, metavar="USD", help=what)


def _tier(text: str) -> pb.PriceTier:
    threshold, _, stated = text.partition(":")
    amounts = dict(part.split("=", 1) for part in stated.split(",") if "=" in part)
    if not threshold.isdecimal() or not {"input", "output"} <= set(amounts) <= set(KINDS):
        raise ValueError(f"{text!r} is not a tier such as 200000:input=6,output=22.50")
    tier = pb.PriceTier(above_input_tokens=int(threshold))
    for kind in KINDS:
        rate = positive_nano_usd(amounts.get(kind, amounts["input"]))
        setattr(tier, f"{kind}_nano_usd", rate)
    return tier


def _unit(text: str) -> pb.UnitRate:
    kind, _, amount = text.partition("=")
    return pb.UnitRate(kind=kind, nano_usd_per_thousand=positive_nano_usd(amount))


@dataclass
class Fields:
    """What can be said of a price."""

    input_nano_usd: Annotated[Any, _rate("--input", "Fresh input.")] = None
    output_nano_usd: Annotated[Any, _rate("--output", "Output, reasoning included.")] = None
    cache_read_nano_usd: Annotated[Any, _rate("--cache-read", "Input read from the cache.")] = None
    cache_write_5m_nano_usd: Annotated[Any, _rate("--cache-write-5m", "Input cached for 5 minutes.")] = None
    cache_write_30m_nano_usd: Annotated[Any, _rate("--cache-write-30m", "Input cached for 30 minutes.")] = (
        None
    )
    cache_write_1h_nano_usd: Annotated[Any, _rate("--cache-write-1h", "Input cached for 1 hour.")] = None
    cache_write_12h_nano_usd: Annotated[Any, _rate("--cache-write-12h", "Input cached for 12 hours.")] = None
    provider_id: Annotated[str | None, typer.Option("--provider", help="Only when this one answers.")] = None
    effective_time: Annotated[
        Any,
        typer.Option(
            "--from",
            parser=options.later_parser,
            metavar="TIME",
            help="Counts from then on; default now.",
        ),
    ] = None
    source: Annotated[str | None, typer.Option("--source", help="Where the numbers come from.")] = None
    tiers: Annotated[
        list[Any] | None,
        typer.Option(
            "--above",
            parser=options.parser(_tier),
            metavar="TIER",
            help="Other rates for the whole of a request with more input tokens than this: "
            "200000:input=6,output=22.50; may be repeated.",
        ),
    ] = None
    unit_rates: Annotated[
        list[Any] | None,
        typer.Option(
            "--unit",
            parser=options.parser(_unit),
            metavar="UNIT",
            help="What is not tokens, per thousand: web_search=10.00; may be repeated.",
        ),
    ] = None


CACHE_RATES = (
    "cache_read_nano_usd",
    "cache_write_5m_nano_usd",
    "cache_write_30m_nano_usd",
    "cache_write_1h_nano_usd",
    "cache_write_12h_nano_usd",
)


@app.callback()
def price() -> None:
    """What tokens cost, by date. Rates are USD per million tokens, exact to the nano-USD.

    A price counts from its time on until the next one of the same model and
    provider; one in effect is history and does not change.

    \b
    Examples:
        lurus price create house-llm --input 0.50 --output 1.50
        lurus price create house-llm --input 0.40 --output 1.20 --from 2027-01-01
        lurus price list --model house-llm
    """


@app.command("list")
def list_prices(
    model: Annotated[str, typer.Option(help="Only of this model.")] = "",
    current: Annotated[bool, typer.Option("--current", help="Only those in effect now.")] = False,
    at_time: Annotated[
        Any,
        typer.Option("--at", parser=options.earlier_parser, metavar="TIME", help="Only those in effect then"),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Lists prices by model, then time."""
    request = pb.ListPricesRequest(model=model)
    if current or at_time is not None:
        request.at_time.CopyFrom(timestamp(at_time or datetime.now(UTC)))

    async def command(mesh: Mesh) -> None:
        found = await whole_list(mesh.provider.ListPrices, request, pb.ListPricesResponse())
        if as_json:
            return print_json(found)
        return print_table(_COLUMNS, found.prices, "no prices; add one with `lurus price create`")

    run(command, data_dir)


@app.command()
def show(price_id: Id, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Shows one price."""

    async def command(mesh: Mesh) -> None:
        found = await mesh.provider.GetPrice(pb.GetPriceRequest(price_id=price_id))
        _show(found.price, as_json)

    run(command, data_dir)


@app.command()
@fields.flattened
def create(
    model: Annotated[str, typer.Argument(help="Exact name: the upstream model, else what clients ask for.")],
    given: Fields,
    price_id: Annotated[
        str, typer.Option("--id", metavar="ID", help="`price_…`, so that a repeat changes nothing.")
    ] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Adds a price. Cache rates that are not given are those of fresh input, so that no token is free."""
    message = pb.Price(price_id=price_id, model=model)
    stated = fields.fill(message, given)
    if not {"input_nano_usd", "output_nano_usd"} <= set(stated):
        raise typer.BadParameter("--input and --output are needed, in USD per million tokens")
    for rate in CACHE_RATES:
        if rate not in stated:
            setattr(message, rate, message.input_nano_usd)

    async def command(mesh: Mesh) -> None:
        created = await mesh.provider.CreatePrice(pb.CreatePriceRequest(price=message))
        _show(created.price, as_json)

    run(command, data_dir)


@app.command()
@fields.flattened
def update(price_id: Id, given: Fields, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Changes a price that is not in effect yet."""
    change = pb.Price(price_id=price_id)
    request = fields.masked(pb.UpdatePriceRequest(), fields.fill(change, given))
    request.price.CopyFrom(change)

    async def command(mesh: Mesh) -> None:
        updated = await mesh.provider.UpdatePrice(request)
        _show(updated.price, as_json)

    run(command, data_dir)


@app.command()
def delete(price_id: Id, yes: Yes = False, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Deletes a price that is not in effect yet."""
    options.confirm(f"Delete the price {price_id}?", yes)

    async def command(mesh: Mesh) -> None:
        deleted = await mesh.provider.DeletePrice(pb.DeletePriceRequest(price_id=price_id))
        return print_json(deleted) if as_json else print(f"{price_id} is deleted")

    run(command, data_dir)


def _show(message: pb.Price, as_json: bool) -> None:
    if as_json:
        return print_json(message)
    return print_fields(
        [
            ("id", message.price_id),
            ("model", message.model),
            ("provider", message.provider_id or "every one"),
            ("from", local_time(message, "effective_time")),
            *_rates(message, ""),
            *(row for tier in message.tiers for row in _rates(tier, f", above {tier.above_input_tokens:,}")),
            *((rate.kind, f"{usd(rate.nano_usd_per_thousand)} per thousand") for rate in message.unit_rates),
            ("source", message.source),
        ]
    )


def _rates(message: pb.Price | pb.PriceTier, when: str) -> list[tuple[str, str]]:
    return [
        (kind.replace("_", " ") + when, f"{usd(getattr(message, f'{kind}_nano_usd'))} per million tokens")
        for kind in KINDS
    ]


def _beside(row: pb.Price) -> str:
    tiers = [f"above {tier.above_input_tokens:,}" for tier in row.tiers]
    return ", ".join([*tiers, *(rate.kind for rate in row.unit_rates)])


_COLUMNS: list[Column[pb.Price]] = [
    ("MODEL", lambda row: row.model),
    ("PROVIDER", lambda row: row.provider_id),
    ("FROM", lambda row: local_time(row, "effective_time")),
    ("INPUT", lambda row: usd(row.input_nano_usd)),
    ("READ", lambda row: usd(row.cache_read_nano_usd)),
    ("WRITE 5M", lambda row: usd(row.cache_write_5m_nano_usd)),
    ("WRITE 1H", lambda row: usd(row.cache_write_1h_nano_usd)),
    ("OUTPUT", lambda row: usd(row.output_nano_usd)),
    ("TIERS AND UNITS", _beside),
    ("ID", lambda row: row.price_id),
]
