"""API keys: who may ask at all, where the server was given a list of them."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from serve_app.asgi import Scope, header
from serve_app.errors import SettingsError, Unauthorized

SCHEME = "Bearer "


class Keys:
    """The known keys, as their hashes; none: everybody may ask."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._hashes = [sha256(key.encode()).digest() for key in keys]

    @classmethod
    def read(cls, file: Path | None) -> Keys:
        """One key a line; empty lines and those that begin with # are none.

        Raises:
            SettingsError: the file cannot be read, or has no key.
        """
        if file is None:
            return cls()
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"setting api_keys_file: {file} cannot be read: {error}") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise SettingsError(f"setting api_keys_file: {file} has no key; write one a line")
        return cls(keys)

    def check(self, scope: Scope) -> None:
        """Let a request pass, or not.

        Raises:
            Unauthorized: it brings none of the keys.
        """
        if not self._hashes:
            return
        sent = header(scope, b"authorization")
        if sent is None:
            raise Unauthorized(
                "no API key; send it as 'Authorization: Bearer KEY'", param="Authorization"
            )
        given = sha256(sent.removeprefix(SCHEME).encode()).digest()
        known = [hmac.compare_digest(given, one) for one in self._hashes]  # all, whichever fits
        if not sent.startswith(SCHEME) or not any(known):
            raise Unauthorized(
                "the API key in Authorization is not one of this server's", param="Authorization"
            )
