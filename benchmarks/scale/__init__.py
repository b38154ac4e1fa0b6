"""What calls cost as something grows: streams, bodies, keys, providers, rows of the log, a day's usage.

    python -m benchmarks.scale --what streams,bodies,keys,providers,memory,logs,day [--out FILE]
    python -m benchmarks.scale --page FILE [FILE ...]

`gateway.py` has what a worker is asked, `stores.py` what is kept behind it, `page.py` writes kept figures
into `docs/scale.md`. Each figure stands beside `foreign_cores`, what others took of the machine meanwhile.
"""
