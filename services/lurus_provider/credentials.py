"""Secrets of providers: sealed on their way in, never out again.

Inside this service a `Provider` carries `sealed_secret` and no `secret`.
"""

import hmac
from collections.abc import Iterable
from contextlib import suppress
from copy import deepcopy

from lurus.provider.v1.provider_pb2 import Credential, Provider
from lurus_common.errors import InvalidRequest
from lurus_common.secrets import SealBroken, last_four, seal, unseal

DEFAULT_CREDENTIAL_ID = "default"
PARAM = "provider.credentials"


def seal_all(given: Provider, stored: Provider | None, key: bytes) -> None:
    """Seals the secrets of `given`, in place; one without a secret keeps the stored one.

    Args:
        given: checked, with its base URL in its one spelling.
        stored: what was there before, None when created.
        key: 32 bytes, from the settings.

    Raises:
        InvalidRequest: a secret is missing: of a new credential, or of any
            once the base URL has another origin, since whoever may edit a
            provider must not thereby learn its secrets.
    """
    earlier = {credential.credential_id: credential for credential in stored.credentials} if stored else {}
    has_moved = stored is not None and _origin(stored.base_url) != _origin(given.base_url)
    for credential in given.credentials:
        _seal(given.provider_id, credential, earlier.get(credential.credential_id), has_moved, key)


def _seal(
    provider_id: str, credential: Credential, stored: Credential | None, has_moved: bool, key: bytes
) -> None:
    name = credential.credential_id
    if not credential.secret and (stored is None or has_moved):
        reason = "base_url has another origin" if stored else "it is new"
        raise InvalidRequest(
            f"credential {name!r} needs its secret: {reason}", param=PARAM, credential_id=name
        )
    if stored and (not credential.secret or _is_secret(provider_id, stored, credential.secret, key)):
        credential.sealed_secret, credential.last_four = stored.sealed_secret, stored.last_four
    else:
        credential.sealed_secret = seal(key, credential.secret, _context(provider_id, name))
        credential.last_four = last_four(credential.secret)
    credential.ClearField("secret")


def have_secrets(stored: Provider, given: Iterable[Credential], key: bytes) -> bool:
    """Whether `given` are the credentials of `stored`, with the same secrets, in the same order."""
    pairs = list(given)
    return len(pairs) == len(stored.credentials) and all(
        (known.credential_id, known.is_disabled) == (credential.credential_id, credential.is_disabled)
        and _is_secret(stored.provider_id, known, credential.secret, key)
        for known, credential in zip(stored.credentials, pairs, strict=True)
    )


def _is_secret(provider_id: str, stored: Credential, secret: str, key: bytes) -> bool:
    # One that was sealed under another key is not known to be the same.
    with suppress(SealBroken):
        return hmac.compare_digest(open_secret(provider_id, stored, key).encode(), secret.encode())
    return False


def open_secret(provider_id: str, credential: Credential, key: bytes) -> str:
    """Returns the secret of a stored credential.

    Raises:
        SealBroken: if it was sealed under another key.
    """
    return unseal(key, credential.sealed_secret, _context(provider_id, credential.credential_id))


def without_secrets(provider: Provider) -> Provider:
    """Returns a copy that anybody may see."""
    shown = deepcopy(provider)
    for credential in shown.credentials:
        credential.ClearField("secret")
        credential.ClearField("sealed_secret")
    return shown


def _context(provider_id: str, credential_id: str) -> str:
    return f"{provider_id}|{credential_id}"


def _origin(base_url: str) -> str:
    return "/".join(base_url.split("/", 3)[:3])
