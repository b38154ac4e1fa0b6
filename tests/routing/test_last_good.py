"""Files of last known state: torn, changed and foreign ones are never used, and never cost a whole one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from lurus_routing.last_good import Kept, LastGoodFile

SECRET = b"a secret of the tests"
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "empty": ("damaged", lambda data: b""),
    "truncated": ("torn", lambda data: data[:-1]),
    "cut in its header": ("damaged", lambda data: data[:20]),
    "a bit of the content": ("damaged", lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]),
    "a bit of the header": ("damaged", lambda data: data.replace(b'"heard_ns": 2', b'"heard_ns": 3')),
    "of the future": ("version", lambda data: data.replace(b'"version": 1', b'"version": 2')),
    "of another kind": ("damaged", lambda data: data.replace(b'"kind": "things"', b'"kind": "others"')),
    "longer": ("torn", lambda data: data + b"x"),
    "a list": ("damaged", lambda data: b"[]\n" + data),
}


def make(directory: Path, secret: bytes = SECRET) -> LastGoodFile:
    return LastGoodFile(directory / "things", "things", secret)


def unusable(cause: str) -> float:
    labels = {"kind": "things", "cause": cause}
    return REGISTRY.get_sample_value("lurus_last_good_unusable_total", labels) or 0.0


def test_the_newest_generation_is_read(tmp_path: Path) -> None:
    file = make(tmp_path)
    assert file.read() is None
    for number in range(1, 4):
        assert file.write(Kept(b"content \n %d" % number, number, 10 * number))
        assert file.read() == Kept(b"content \n %d" % number, number, 10 * number)
    assert {path.name for path in tmp_path.iterdir()} == {"things", "things.previous", "things.lock"}
    assert (tmp_path / "things").stat().st_mode & 0o777 == 0o600


@pytest.mark.row("F32")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_gives_the_generation_before_it(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cause, change = DAMAGES[damage]
    file = make(tmp_path)
    for number in (1, 2):
        file.write(Kept(b"content %d" % number, number, 0))
    whole = (tmp_path / "things").read_bytes()
    assert change(whole) != whole
    (tmp_path / "things").write_bytes(change(whole))
    before = unusable(cause)
    assert file.read() == Kept(b"content 1", 1, 0)
    assert unusable(cause) == before + 1
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    file.write(Kept(b"content 3", 3, 0))
    assert file.read() == Kept(b"content 3", 3, 0)
    (tmp_path / "things").write_bytes(b"torn again")
    assert file.read() == Kept(b"content 1", 1, 0), "a damaged file took the place of a whole one"
    (tmp_path / "things.previous").write_bytes(b"torn too")
    assert file.read() is None


def test_a_file_of_another_installation_is_not_read(tmp_path: Path) -> None:
    make(tmp_path).write(Kept(b"content", 1, 0))
    assert make(tmp_path, b"another secret").read() is None


def test_who_has_heard_less_does_not_overwrite(tmp_path: Path) -> None:
    file, now = make(tmp_path), time.time_ns()
    assert file.write(Kept(b"late", now, 7))
    assert not file.write(Kept(b"early", now - 1, 9))
    assert file.read() == Kept(b"late", now, 7)
    # Unless the clock was set back: a time that lies ahead is nobody's.
    assert file.write(Kept(b"ahead", now + 3600 * 10**9, 7))
    assert file.write(Kept(b"right", time.time_ns(), 8))


WRITER = """
import itertools, sys, time
from pathlib import Path
from lurus_routing.last_good import Kept, LastGoodFile
file = LastGoodFile(Path(sys.argv[1]) / "things", "things", b"a secret of the tests")
print("ready", flush=True)
for number in itertools.count():
    file.write(Kept(bytes([65 + number % 26]) * 300_000, time.time_ns(), number))
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    for round_number in range(4):
        writers = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        time.sleep(0.02 + 0.013 * round_number)
        for writer in writers:
            writer.kill()
            writer.communicate()
        kept = make(tmp_path).read()
        assert kept is not None
        assert kept.content == kept.content[:1] * 300_000
    leftovers = [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert len(leftovers) <= 16
