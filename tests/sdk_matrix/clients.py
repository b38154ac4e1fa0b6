"""Which clients the matrix has, and what must be installed for each."""

import shutil
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "clients"
NODE_MODULES = FOLDER / "node_modules"
_LANGCHAIN_PYTHON = FOLDER / ".venv" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Client:
    """An SDK and the API that it is told to speak."""

    name: str
    dialect: str
    # The driver that knows it.
    group: str
    # Whether it gives a model's thinking back in the next turn.
    returns_thinking: bool = True


def _group(group: str) -> list[Client]:
    return [
        Client(f"{group}-anthropic", "A", group),
        Client(f"{group}-chat", "C", group, returns_thinking=False),
        Client(f"{group}-responses", "R", group),
    ]


# The vendors' Python SDKs, which run in the tests' own process, the vendors' JavaScript SDKs, and two
# frameworks above them.
GROUPS = ("py", "js", "vercel", "lang")
CLIENTS = {client.name: client for group in GROUPS for client in _group(group)}
TITLES = {
    "py": "Python SDKs",
    "js": "JavaScript SDKs",
    "vercel": "Vercel AI SDK",
    "lang": "LangChain",
}


def command_of(group: str) -> list[str]:
    """Returns what runs the driver of a group that has a process of its own."""
    if group == "lang":
        return [str(_LANGCHAIN_PYTHON), str(FOLDER / "langchain_driver.py")]
    return ["node", str(FOLDER / {"js": "vendors.mjs", "vercel": "vercel.mjs"}[group])]


def missing(group: str) -> str:
    """Returns why a group cannot run here, empty if it can."""
    if group == "py":
        return ""
    if group == "lang":
        return "" if _LANGCHAIN_PYTHON.exists() else "LangChain is not installed: run make test"
    if shutil.which("node") is None:
        return "node is not here"
    package = {"js": "@anthropic-ai/sdk", "vercel": "ai"}[group]
    has_package = (NODE_MODULES / package / "package.json").exists()
    return "" if has_package else f"{package} is not installed: npm was not here"


def claude_command() -> str | None:
    """Returns the path of Claude Code, None if it is not installed."""
    own = NODE_MODULES / ".bin" / "claude"
    return str(own) if own.exists() else shutil.which("claude")
