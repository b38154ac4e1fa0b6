"""API keys and sealed secrets.

API keys have 256 random bits, so a keyed hash is all that a verifier needs.
Provider credentials are sealed with AES-256-GCM under a data key of their own,
which is sealed under the key of the settings.
"""

import hashlib
import hmac
import os
import secrets
import zlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_PREFIX = "lsk_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY_BYTES = 32
_BODY_CHARACTERS = 43
_CRC_CHARACTERS = 6
_SEAL_VERSION = b"\x01"
_NONCE_BYTES = 12
_WRAPPED_BYTES = _NONCE_BYTES + 32 + 16


class SealBroken(Exception):
    """A sealed secret was changed, belongs elsewhere, or was sealed under another key."""


def new_api_key() -> str:
    """Returns a new key: `lsk_`, 43 characters of randomness, 6 of CRC-32, so that scanners can tell it."""
    body = _base62(int.from_bytes(secrets.token_bytes(_KEY_BYTES), "big"), _BODY_CHARACTERS)
    return f"{KEY_PREFIX}{body}{_crc(body)}"


def is_api_key(text: str) -> bool:
    """Whether `text` has the shape and the checksum of a key that we made."""
    if not text.startswith(KEY_PREFIX) or len(text) != len(KEY_PREFIX) + _BODY_CHARACTERS + _CRC_CHARACTERS:
        return False
    body = text[len(KEY_PREFIX) : -_CRC_CHARACTERS]
    return text.isascii() and hmac.compare_digest(_crc(body), text[-_CRC_CHARACTERS:])


def key_verifier(pepper: str, secret: str) -> bytes:
    """Returns the 32 bytes that stand for a key at rest: HMAC-SHA256 under the pepper."""
    return hmac.digest(pepper.encode(), secret.encode(), hashlib.sha256)


def seal(key: bytes, secret: str, context: str) -> bytes:
    """Returns `secret` encrypted; it opens only with the same key and the same context.

    Args:
        key: 32 bytes, from the settings.
        secret: what is to be kept.
        context: where it belongs, e.g. `provider_id|credential_id`.
    """
    data_key = AESGCM.generate_key(256)
    bound = context.encode()
    key_nonce, nonce = os.urandom(_NONCE_BYTES), os.urandom(_NONCE_BYTES)
    wrapped = key_nonce + AESGCM(key).encrypt(key_nonce, data_key, bound)
    return _SEAL_VERSION + wrapped + nonce + AESGCM(data_key).encrypt(nonce, secret.encode(), bound)


def unseal(key: bytes, sealed: bytes, context: str) -> str:
    """Returns what `seal` was given.

    Raises:
        SealBroken: if it was changed, belongs elsewhere or needs another key.
    """
    bound = context.encode()
    head = len(_SEAL_VERSION)
    wrapped, rest = sealed[head : head + _WRAPPED_BYTES], sealed[head + _WRAPPED_BYTES :]
    try:
        data_key = AESGCM(key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], bound)
        return AESGCM(data_key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], bound).decode()
    except (InvalidTag, ValueError) as error:
        raise SealBroken("a sealed secret cannot be opened with LURUS_CREDENTIAL_KEY") from error


def last_four(secret: str) -> str:
    """What people may see of a secret: its last four characters, nothing of a short one."""
    return secret[-4:] if len(secret) >= 12 else ""


def _crc(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CRC_CHARACTERS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
