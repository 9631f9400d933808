"""The token file: where panda-client has it, in its format, so that a login
made with either serves both; but readable by the owner only from its first
byte, and replaced as a whole.
"""

__all__ = ["TokenStore", "token_directory"]

import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import SettingsError, TokenBrokenError, TokenMissingError
from .tokens import TokenSet, parse_token_set

_LOG = logging.getLogger(__name__)

# Names that panda-client 2.2.0 uses in its directory; its own clean-up removes
# everything that begins with them, hence the other name for the lock.
_TOKEN_NAME = ".token"
_CACHE_PREFIX = ".page_cache_"
_LOCK_NAME = ".panda_auth.lock"


def token_directory(env: Mapping[str, str]) -> Path:
    """Find the directory of the token file as panda-client does.

    Parameters
    ----------
    env : `~collections.abc.Mapping` [`str`, `str`]
        Environment.

    Returns
    -------
    directory : `~pathlib.Path`
        ``PANDA_CONFIG_ROOT``, with ``~`` put in full, else the current
        directory.
    """
    return Path(env.get("PANDA_CONFIG_ROOT") or ".").expanduser().absolute()


class TokenStore:
    """One token file.

    Parameters
    ----------
    directory : `~pathlib.Path`
        Where it is; made when something is saved.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return f"TokenStore({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / _TOKEN_NAME

    def load(self) -> TokenSet:
        """Read the tokens.

        Returns
        -------
        tokens : `TokenSet`
            What the file holds, written by us or by panda-client.

        Raises
        ------
        TokenMissingError
            Raised if there is no file.
        TokenBrokenError
            Raised if it cannot be read or holds something else.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise TokenMissingError(
                f"There is no token file {self.path}. Log in with 'panda_auth reset'."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise TokenBrokenError(f"The token file {self.path} cannot be read: {reason}.") from None
        try:
            return parse_token_set(text)
        except TokenBrokenError as error:
            problem = error.message
        raise TokenBrokenError(f"The token file {self.path} is broken. {problem}")

    def save(self, tokens: TokenSet) -> None:
        """Replace the file.

        Another process sees the old file or the new one.  The mode is 0600
        from the first byte, whatever the umask.

        Parameters
        ----------
        tokens : `TokenSet`
            What to write.

        Raises
        ------
        SettingsError
            Raised if the directory cannot be written.
        """
        # A link stays a link, and the new file lies beside what it points at.
        target = Path(os.path.realpath(self.path))
        try:
            self._make_directory()
            descriptor, temporary = tempfile.mkstemp(prefix=f"{_TOKEN_NAME}.", dir=target.parent)
        except OSError as error:
            raise SettingsError(
                f"The token cannot be written to {target.parent} (PANDA_CONFIG_ROOT): {error.strerror}."
            ) from None
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(tokens.render())
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def is_private(self) -> bool:
        """Tell whether only the owner can read the file; panda-client leaves
        that to the umask.
        """
        return not self.path.stat().st_mode & 0o077

    def clean(self) -> tuple[Path, ...]:
        """Remove the token and what panda-client keeps beside it.

        Returns
        -------
        removed : `tuple` [`~pathlib.Path`, ...]
            What was there.
        """
        removed = []
        for pattern in (f"{_TOKEN_NAME}*", f"{_CACHE_PREFIX}*"):
            for path in sorted(self.directory.glob(pattern)):
                path.unlink(missing_ok=True)
                removed.append(path)
        return tuple(removed)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time get new tokens.

        A refresh token is often good for one use only, so two refreshes at
        once would spoil the second.
        """
        self._make_directory()
        descriptor = os.open(self.directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                # Some network file systems have no locks.
                _LOG.warning("%s cannot be locked (%s); going on without.", self.directory, error.strerror)
            yield
        finally:
            os.close(descriptor)

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
