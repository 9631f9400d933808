"""What a grid proxy, the other way to say who we are, says about itself."""

__all__ = ["ProxyInfo", "read_proxy"]

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ..errors import TokenBrokenError, TokenMissingError


@dataclass(frozen=True, slots=True)
class ProxyInfo:
    """One proxy.

    Parameters
    ----------
    path : `str`
        The file.
    subject : `str`
        Distinguished name.
    issued, expires : `~datetime.datetime`
        From when to when it is valid, in UTC.
    """

    path: str
    subject: str
    issued: datetime
    expires: datetime

    def remaining(self, now: datetime) -> timedelta:
        """Give how long it is still valid.

        Parameters
        ----------
        now : `~datetime.datetime`
            The time, with a time zone.

        Returns
        -------
        remaining : `~datetime.timedelta`
            Negative if it has expired.
        """
        return self.expires - now


def read_proxy(path: str) -> ProxyInfo:
    """Read the certificate of a proxy; its key is not looked at.

    Parameters
    ----------
    path : `str`
        PEM file.

    Returns
    -------
    info : `ProxyInfo`
        What the first certificate in it says.

    Raises
    ------
    TokenMissingError
        Raised if there is no file.
    TokenBrokenError
        Raised if there is no certificate in it.
    """
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificates(Path(path).read_bytes())[0]
    except FileNotFoundError:
        raise TokenMissingError(
            f"The X.509 proxy {path} (X509_USER_PROXY) does not exist. Make one with 'voms-proxy-init'."
        ) from None
    except (OSError, ValueError, IndexError):
        raise TokenBrokenError(f"The X.509 proxy {path} holds no certificate that can be read.") from None
    return ProxyInfo(
        path,
        certificate.subject.rfc4514_string(),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )
