"""The mutants can be made of the code as it is: one that fits no more is one that nobody tries."""

import ast
from pathlib import Path

import pytest

from tests.chaos.mutants import MUTANTS, ROOT, Mutant, apply


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_can_be_made_and_its_test_exists(mutant: Mutant, tmp_path: Path) -> None:
    for path in {patch.path for patch in mutant.patches}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
    apply(tmp_path, mutant.patches)
    for path in tmp_path.rglob("*.py"):
        ast.parse(path.read_text())
    file, *names = mutant.test.split("::")
    text = (ROOT / file).read_text()
    assert all(f"class {name}" in text or f"def {name}(" in text for name in names), mutant.test
