"""API keys, their verifiers, and sealed secrets."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurus_common.secrets import (
    KEY_PREFIX,
    SealBroken,
    is_api_key,
    key_verifier,
    last_four,
    new_api_key,
    seal,
    unseal,
)

KEY = bytes(range(32))


class TestApiKeys:
    def test_they_are_random_and_of_one_shape(self) -> None:
        keys = {new_api_key() for _ in range(500)}
        assert len(keys) == 500
        for key in keys:
            assert len(key) == len(KEY_PREFIX) + 49
            assert set(key.removeprefix(KEY_PREFIX)) <= set(string.ascii_letters + string.digits)
            assert is_api_key(key)

    def test_a_changed_character_is_noticed(self) -> None:
        key = new_api_key()
        for position in range(len(key)):
            other = "0" if key[position] != "0" else "1"
            assert not is_api_key(key[:position] + other + key[position + 1 :])

    @pytest.mark.parametrize(
        "text", ["", "lsk_", "sk-ant-api03", "LSK_" + "a" * 49, "lsk_" + "é" * 49, "lsk_" + "\0" * 49]
    )
    def test_strangers_are_told_apart(self, text: str) -> None:
        assert not is_api_key(text)

    @given(st.text(max_size=80))
    def test_no_text_breaks_it(self, text: str) -> None:
        assert not is_api_key(text)
        assert not is_api_key(KEY_PREFIX + text)

    def test_verifiers_depend_on_key_and_pepper(self) -> None:
        key = new_api_key()
        assert len(key_verifier("p", key)) == 32
        assert key_verifier("p", key) == key_verifier("p", key)
        assert len({key_verifier("p", key), key_verifier("q", key), key_verifier("p", new_api_key())}) == 3
        assert key.encode() not in key_verifier("p", key)


class TestSeals:
    @given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300), st.text(max_size=50))
    def test_what_is_sealed_can_be_opened(self, secret: str, context: str) -> None:
        context = context.encode("utf-8", "replace").decode()
        assert unseal(KEY, seal(KEY, secret, context), context) == secret

    def test_no_two_seals_are_alike(self) -> None:
        assert len({seal(KEY, "s", "c") for _ in range(100)}) == 100
        assert b"sk-ant" not in seal(KEY, "sk-ant-secret", "c")

    def test_every_changed_bit_is_noticed(self) -> None:
        sealed = seal(KEY, "sk-ant-secret", "p|c")
        for position in range(1, len(sealed)):
            broken = bytearray(sealed)
            broken[position] ^= 1
            with pytest.raises(SealBroken):
                unseal(KEY, bytes(broken), "p|c")

    def test_another_key_or_place_does_not_open_it(self) -> None:
        sealed = seal(KEY, "sk-ant-secret", "p|c")
        for key, context in ((bytes(32), "p|c"), (KEY, "p|d"), (KEY, "")):
            with pytest.raises(SealBroken) as caught:
                unseal(key, sealed, context)
            assert "sk-ant" not in str(caught.value)

    @pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" * 30, b"x" * 100])
    def test_what_is_no_seal_is_refused(self, sealed: bytes) -> None:
        with pytest.raises(SealBroken):
            unseal(KEY, sealed, "c")


def test_four_characters_are_shown_of_long_secrets_only() -> None:
    assert last_four("sk-ant-1234567890") == "7890"
    assert last_four("short") == last_four("") == ""
