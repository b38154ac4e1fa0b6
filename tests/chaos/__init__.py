"""The chaos audit: a whole mesh under load, parts of it killed at random, and its ledgers compared.

    make chaos SEED=7 SECONDS=60
    python -m tests.chaos --seed 7 --seconds 60 --json

`load.py` has the callers, `killer.py` what is killed, `ledgers.py` reads what five books say,
`invariants.py` compares them, `audit.py` does all of it in order. `mutants.py` breaks the product on purpose
and sees which test notices. `docs/chaos.md` tells what it found.
"""
