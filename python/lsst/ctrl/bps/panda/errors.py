"""The errors of this plugin, one hierarchy.

Each class has a standard exception as a second parent, because BPS and programs that use the service class
catch those.  The text of an error names the thing, the value and what to do; it never holds a token.
"""

__all__ = [
    "AuthenticationError",
    "ConnectionFailedError",
    "LocalPandaError",
    "LoginError",
    "PandaBpsError",
    "PlanError",
    "RefreshRefusedError",
    "RefusedError",
    "ReplyError",
    "RucioError",
    "RunNotFoundError",
    "ServerError",
    "SettingsError",
    "StagingError",
    "SubmissionUncertainError",
    "TokenBrokenError",
    "TokenExpiredError",
    "TokenMissingError",
    "TransportError",
]

import click


class PandaBpsError(click.ClickException, RuntimeError):
    """Parent of all errors that this plugin raises on purpose.

    BPS's commands show click's errors as their text, and all others with a traceback.
    """


class SettingsError(PandaBpsError, ValueError):
    """A key of the BPS configuration or an environment variable is missing
    or has a value that cannot be used.

    The text names the key, its value and where the value came from.

    Parameters
    ----------
    message : `str`
        The text.
    key, label : `str`, optional
        Key of the configuration, and the label that it was read for.
    file : `str`, optional
        File in which the value stands.
    line : `int`, optional
        Line in that file, from 1.
    """

    def __init__(
        self, message: str, *, key: str = "", label: str = "", file: str = "", line: int = 0
    ) -> None:
        super().__init__(message)
        self.key = key
        self.label = label
        self.file = file
        self.line = line


class PlanError(PandaBpsError, ValueError):
    """A generic workflow that cannot be planned, for instance a cycle or a parent that does not exist."""


class StagingError(PandaBpsError, OSError):
    """Files that could not be put into the staging area.

    The text lists every file and its cause.
    """


class TransportError(PandaBpsError, OSError):
    """Parent of the errors of communication with a server.

    Parameters
    ----------
    message : `str`
        What happened, and what to do.
    endpoint : `str`, optional
        URL that was asked.
    request : `str`, optional
        What was asked, in a few words (``submit``, ``get_requests 12``).
    reply : `str`, optional
        What came back, cut to a few hundred characters.
    fault : `str`, optional
        Kind of fault: a value of `.rest.faults.Fault`.
    cause : `str`, optional
        Words of what is behind it: the library's, or the server's.
    status : `int`, optional
        HTTP status, if there was a reply.
    maybe_sent : `bool`, optional
        The request may have reached the server and may have had its effect.
        `False` says for certain that it had none.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str = "",
        request: str = "",
        reply: str = "",
        fault: str = "",
        cause: str = "",
        status: int | None = None,
        maybe_sent: bool = False,
    ) -> None:
        details = {"endpoint": endpoint, "request": request, "reply": reply}
        super().__init__(message)
        self._text = "; ".join([message, *(f"{name}: {text}" for name, text in details.items() if text)])
        self.endpoint = endpoint
        self.request = request
        self.reply = reply
        self.fault = fault
        self.cause = cause
        self.status = status
        self.maybe_sent = maybe_sent

    def __str__(self) -> str:
        return self._text

    def format_message(self) -> str:
        """Return the text for the terminal."""
        return self._text


class ConnectionFailedError(TransportError, ConnectionError):
    """No connection: name not found, refused, TLS, or a time-out."""


class AuthenticationError(TransportError, PermissionError):
    """The server does not accept the credentials, or there are none."""


class ServerError(TransportError):
    """The server answered that it failed (HTTP 5xx and the like)."""


class ReplyError(TransportError, ValueError):
    """A reply that is not understood: not JSON, cut, a web page, another shape than the protocol has."""


class RefusedError(TransportError):
    """The server understood and refused, often inside a reply that says
    success (``[true, [false, text]]``, ``[true, [[-1, {...}]]]``).
    """


class SubmissionUncertainError(TransportError):
    """A submission whose outcome could not be settled: nothing was sent
    again, and the text says how to look the run up by its name.
    """


class RunNotFoundError(PandaBpsError, LookupError):
    """No run has this id, name or submit directory."""


class RucioError(PandaBpsError, OSError):
    """Rucio, or the Butler whose files are registered in it, does not answer or refuses."""


class LocalPandaError(PandaBpsError):
    """The embedded PanDA cannot start, be found or be used."""


class TokenMissingError(AuthenticationError):
    """There is no token file."""


class TokenBrokenError(AuthenticationError):
    """A token, or the file that holds it, cannot be used: cut, not JSON, of
    another issuer, or signed by somebody else.
    """


class TokenExpiredError(AuthenticationError):
    """The token is not valid any more, or not for long enough."""


class LoginError(AuthenticationError):
    """A login was refused, cancelled, or not approved in time."""


class RefreshRefusedError(AuthenticationError):
    """The provider does not give a new token for the refresh token."""
