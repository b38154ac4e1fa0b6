"""Real stores as child processes of ours, and the supervisor that also runs our own services."""

from lurus_switch.embedded.backends import NAMES, BackendUrls, EmbeddedBackends
from lurus_switch.embedded.data_dir import DataDir, free_port
from lurus_switch.embedded.errors import (
    AlreadyRunning,
    BinaryNotFound,
    DataDirUnusable,
    EmbeddedError,
    PortTaken,
    StartFailed,
)
from lurus_switch.embedded.launch import die_with_parent
from lurus_switch.embedded.spec import ProcessEvent, ProcessSpec, ProcessState, ProcessStatus
from lurus_switch.embedded.supervisor import Supervisor

__all__ = [
    "NAMES",
    "AlreadyRunning",
    "BackendUrls",
    "BinaryNotFound",
    "DataDir",
    "DataDirUnusable",
    "EmbeddedBackends",
    "EmbeddedError",
    "PortTaken",
    "ProcessEvent",
    "ProcessSpec",
    "ProcessState",
    "ProcessStatus",
    "StartFailed",
    "Supervisor",
    "die_with_parent",
    "free_port",
]
