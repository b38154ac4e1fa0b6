"""What is asked and answered in every cell of the matrix; drivers get `FOR_DRIVERS` as JSON."""

import json
from typing import Any

SYSTEM = "You are a forecaster.\nBe brief – «kurz»."
QUESTION = "What is the weather in Zürich? 世界 😀"
EARLIER_QUESTION = "Are you there?"
EARLIER_ANSWER = "I am."
# A white pixel.
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
MAX_TOKENS = 4000

TEXT = ("Grüße aus Zürich: ", "21.5° ", "und ", "sonnig 🌞.\n", "世界 ", "\u2028end")
FINAL = ("The tool ", "has spoken: ")
THINKING = ("Let me ", "think: ", "the tool knows.")
BEFORE_CALL = ("I ask ", "the tool. ")

WEATHER_ARGUMENTS = '{"city":"Zürich","days":3,"exact":1234567890123456}'
TIME_ARGUMENTS = '{"zone":"Asia/Tokyo \\"quoted\\""}'
RESULTS = {
    "get_weather": 'sunny, 21.5°, "quoted"\n\\back',
    "get_time": "12:30 in 東京",
}
STRUCTURED = {"city": "Zürich", "degrees": 21.5}

TOOLS: list[dict[str, Any]] = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "schema": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "integer"},
            },
            "required": ["city", "days", "exact"],
            "additionalProperties": False,
        },
    },
    {
        "name": "get_time",
        "description": "The time in a zone.",
        "schema": {
            "type": "object",
            "properties": {"zone": {"type": "string"}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}

# What the provider says it has counted.
INPUT_TOKENS, CACHED_TOKENS, OUTPUT_TOKENS = 12, 3, 9
THROTTLE_SECONDS = 7
BAD_REQUEST = "the scripted provider does not like this request"

FOR_DRIVERS: dict[str, Any] = {
    "system": SYSTEM,
    "question": QUESTION,
    "earlier": [EARLIER_QUESTION, EARLIER_ANSWER],
    "image": IMAGE,
    "max_tokens": MAX_TOKENS,
    "tools": TOOLS,
    "results": RESULTS,
    "schema": SCHEMA,
}
ARGUMENTS = {"get_weather": json.loads(WEATHER_ARGUMENTS), "get_time": json.loads(TIME_ARGUMENTS)}
