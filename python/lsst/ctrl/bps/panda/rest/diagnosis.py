"""From an error of the transport to one sentence that says which part between
here and iDDS does not work, and what to do.
"""

__all__ = ["diagnose"]

from collections.abc import Mapping
from urllib.parse import urlsplit

from ..errors import TransportError
from .faults import Fault

_OTHER_PROTOCOL = "The URL is probably wrong: what answers at {endpoint} does not speak PanDA's protocol."

_SENTENCES: Mapping[str, str] = {
    Fault.NAME_NOT_FOUND: (
        "The name of the host {host} cannot be resolved; check PANDA_URL_SSL and the network."
    ),
    Fault.CONNECTION_REFUSED: (
        "The connection to {host} was refused: no PanDA server listens there; check the port in "
        "PANDA_URL_SSL, or whether the server is down."
    ),
    Fault.UNREACHABLE: "There is no way to {host}; check network, VPN and proxy settings.",
    Fault.CONNECT_TIMEOUT: "{host} does not answer the attempt to connect; it is down or behind a firewall.",
    Fault.TLS: (
        "No encrypted connection (TLS) to {host}: its certificate is not accepted or the port does not "
        "speak TLS; check scheme and port in PANDA_URL_SSL and the trusted authorities (REQUESTS_CA_BUNDLE)."
    ),
    Fault.BAD_URL: "PANDA_URL_SSL is not a URL that can be used: {endpoint}",
    Fault.READ_TIMEOUT: (
        "{host} took the request, but its reply did not come in time; the server is overloaded or hangs."
    ),
    Fault.CONNECTION_LOST: (
        "The connection to {host} broke off before the reply; the server may be restarting."
    ),
    Fault.REPLY_CUT: "The reply of {host} was cut short; the server may be restarting.",
    Fault.PERMISSION: (
        "{host} answers, but gives no permission; check the login with 'panda_auth status', "
        "log in with 'panda_auth reset'."
    ),
    Fault.GATEWAY: "The front end at {host} answers, but PanDA's relay behind it is down.",
    Fault.SERVER: "PanDA's relay at {host} is down: it answers with an internal error.",
    Fault.BUSY: "{host} has too much to do; try again later.",
    Fault.RELAY: "PanDA's relay at {host} works, but could not forward the command.",
    Fault.IDDS: "PanDA's relay at {host} works, but iDDS behind it is down.",
    Fault.WEB_PAGE: "The URL is wrong: {endpoint} gives a web page, not PanDA; check PANDA_URL_SSL.",
    Fault.NOT_JSON: _OTHER_PROTOCOL,
    Fault.SHAPE: _OTHER_PROTOCOL,
    Fault.NOT_FOUND: (
        "The URL is wrong: {host} has no PanDA relay at {endpoint}; check the path in PANDA_URL_SSL."
    ),
    Fault.REDIRECT: "The URL is wrong: {endpoint} points elsewhere; check PANDA_URL_SSL.",
}

# Words of iDDS's client, which runs inside the relay, when it gets no answer
# from iDDS: then the relay's own failure is that of iDDS.
_IDDS_IS_DOWN = (
    "connection refused",
    "max retries exceeded",
    "timed out",
    "cannot connect",
    "failed to connect",
)


def diagnose(error: BaseException) -> str:
    """Say in a sentence which part does not work.

    Parameters
    ----------
    error : `BaseException`
        What a call raised.

    Returns
    -------
    sentence : `str`
        It names the host and what to check, and ends with the server's
        words.  Errors that are not of the transport are given as they are.
    """
    if not isinstance(error, TransportError):
        return str(error) or type(error).__name__
    sentence = _SENTENCES.get(_locate(error))
    if sentence is None:
        return str(error)
    host = urlsplit(error.endpoint).netloc or error.endpoint or "the server"
    # The transport's own messages end in the cause, in parentheses.
    said = error.reply or error.message.partition(". (")[2].removesuffix(")") or error.message
    return f"{sentence.format(host=host, endpoint=error.endpoint or host)} [{said}]"


def _locate(error: TransportError) -> str:
    lowered = error.message.lower()
    if error.fault == Fault.GATEWAY and "idds" in error.reply.lower():
        return Fault.IDDS
    if error.fault == Fault.RELAY and any(words in lowered for words in _IDDS_IS_DOWN):
        return Fault.IDDS
    return error.fault
