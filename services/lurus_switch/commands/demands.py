"""Options and words for what keys and accounts demand of providers."""

from typing import Annotated, Any

import typer

from lurus.billing.v1 import billing_pb2 as pb
from lurus_switch.amounts import usd
from lurus_switch.commands import options

RequiredTags = Annotated[
    list[str] | None,
    typer.Option(
        "--require-tag",
        metavar="TAG",
        help="Ask only providers with this tag. Repeat; '' demands none.",
    ),
]
MaxInputPrice = Annotated[
    Any,
    typer.Option(
        "--max-input-price",
        parser=options.positive_nano_usd_parser,
        metavar="USD",
        help="The most that a million tokens of input may cost; 0: any.",
    ),
]
MaxOutputPrice = Annotated[
    Any,
    typer.Option(
        "--max-output-price",
        parser=options.positive_nano_usd_parser,
        metavar="USD",
        help="The most that a million tokens of output may cost; 0: any.",
    ),
]


def demands(stated: pb.Demands) -> str:
    """Returns demands in words; `none` without any."""
    words = [f"tag {tag}" for tag in stated.required_tags]
    if stated.max_input_nano_usd:
        words.append(f"input at most {usd(stated.max_input_nano_usd)}")
    if stated.max_output_nano_usd:
        words.append(f"output at most {usd(stated.max_output_nano_usd)}")
    return ", ".join(words) or "none"
