"""A soak: a whole mesh under calls of every kind and faults of what is behind it, and what it keeps of them.

    make soak SECONDS=1200
    python -m benchmarks.soak --seconds 120 --rate 10 --out soak.json --plot soak.svg

`churn.py` has the clients, `faults.py` what is killed and frozen, `samples.py` looks at every process every
few seconds, `verdict.py` says whether all of it came back to where it began, `run.py` does all in order.
"""
