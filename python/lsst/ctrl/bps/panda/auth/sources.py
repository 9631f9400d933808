"""Where the token of a process comes from: the variables that panda-client
reads, in its order, else the token file.
"""

__all__ = ["TokenSource", "find_token_source"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import TokenBrokenError, TokenMissingError
from .store import TokenStore, token_directory


@dataclass(frozen=True, slots=True)
class TokenSource:
    """One place that has a token.

    Parameters
    ----------
    description : `str`
        The place, for people.
    read : `~collections.abc.Callable`
        Gives the ID token as it is there now.
    store : `TokenStore` or `None`
        The token file, if it is that: only there it can be renewed.
    """

    description: str
    read: Callable[[], str]
    store: TokenStore | None = None


def find_token_source(env: Mapping[str, str]) -> TokenSource:
    """Choose the place.

    The first of ``PANDA_AUTH_ID_TOKEN`` (the token itself),
    ``OIDC_AUTH_TOKEN_FILE`` (a file that holds nothing else),
    ``OIDC_AUTH_ID_TOKEN`` (the token itself), and the file ``.token`` in
    ``PANDA_CONFIG_ROOT``.  A variable set to nothing counts as not set.

    Parameters
    ----------
    env : `~collections.abc.Mapping` [`str`, `str`]
        Environment.

    Returns
    -------
    source : `TokenSource`
        Nothing was read yet.
    """
    path = env.get("OIDC_AUTH_TOKEN_FILE", "")
    given: tuple[tuple[str, Callable[[], str], str], ...] = (
        ("PANDA_AUTH_ID_TOKEN", lambda: env["PANDA_AUTH_ID_TOKEN"].strip(), "PANDA_AUTH_ID_TOKEN"),
        ("OIDC_AUTH_TOKEN_FILE", partial(_read_file, path), f"{path} (OIDC_AUTH_TOKEN_FILE)"),
        ("OIDC_AUTH_ID_TOKEN", lambda: env["OIDC_AUTH_ID_TOKEN"].strip(), "OIDC_AUTH_ID_TOKEN"),
    )
    for name, read, description in given:
        if env.get(name):
            return TokenSource(description, read)
    store = TokenStore(token_directory(env))
    return TokenSource(str(store.path), lambda: store.load().id_token, store)


def _read_file(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise TokenMissingError(f"The token file {path} (OIDC_AUTH_TOKEN_FILE) does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds other than ASCII characters"
        raise TokenBrokenError(
            f"The token file {path} (OIDC_AUTH_TOKEN_FILE) cannot be read: {reason}."
        ) from None
