"""A real OpenID provider (npm's oidc-provider) on loopback, with people who log in there."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

from .npm import install

_PROGRAM = Path(__file__).with_name("oidc_provider.mjs")


class OidcProvider:
    """The provider, and the auth configuration of a PanDA server that names it.

    Parameters
    ----------
    redirect_uri : `str`, optional
        Where browsers may be sent back to.
    """

    def __init__(self, redirect_uri: str = "") -> None:
        self._command = ["node", str(_PROGRAM), str(install("oidc-provider", "9")), redirect_uri]

    def __enter__(self) -> OidcProvider:
        self._node = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        words = self._node.stdout.readline().split()
        if words[:1] != ["PORT"]:
            self.__exit__()
            raise RuntimeError(f"the OpenID provider does not start: {words}")
        self.root = f"http://127.0.0.1:{words[1]}"
        self.issuer = f"{self.root}/realm"
        return self

    def __exit__(self, *_: object) -> None:
        self._node.kill()
        self._node.wait()
        self._node.stdout.close()

    def ask(self, path: str, **query: object) -> dict:
        """Ask for a page of JSON; with a query, change something."""
        url = f"{self.root}/{path}?{urlencode(query)}"
        with urllib.request.urlopen(url, data=b"" if query else None, timeout=30) as reply:
            return json.load(reply)
