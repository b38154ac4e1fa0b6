"""The fault kit: a provider that misbehaves as its models are named, and a proxy that breaks connections.

For tests of whatever calls an LLM provider, this gateway or another. It needs Python 3.11 or newer, pytest
for the fixtures, and nothing else.

Within this repository, in a `conftest.py` or a test module:

    pytest_plugins = ["tests.faults.plugin"]

    def test_my_client_survives_a_cut(faulty_provider):
        ...  # call f"{faulty_provider.url}/v1/messages" with the model "fault-cut-3"
        assert faulty_provider.calls[-1].sent_text == "w0 w1 w2 "

Elsewhere the same modules are the package `lurus_faults`, which comes with the wheel of Lurus Switch:

    pytest_plugins = ["lurus_faults.plugin"]

In other languages, from a shell (both print where they listen, as one line of JSON):

    python -m lurus_faults provider --port 18201
    python -m lurus_faults proxy --target 127.0.0.1:5432 --control 18302

`provider.py` has the provider, `behaviours.py` what its models do, `proxy.py` the proxy, `scripted.py` the
raw HTTP server below, for faults that have no name yet. `docs/faults.md` has all of them in tables.
"""
