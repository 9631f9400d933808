"""Why a transfer failed, in words: the exceptions of file systems, HTTP,
S3 and their libraries become a sentence that says what to do.
"""

from __future__ import annotations

__all__ = ["VerificationError", "describe_cause", "is_permanent"]

import errno
import re

_LIMIT = 300

_ERRNO_ADVICE = {
    errno.ENOSPC: "no space left in the staging area",
    errno.EDQUOT: "disk quota of the staging area exceeded",
    errno.EFBIG: "larger than a file may be there (file size limit)",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the staging area is on a read-only file system",
    errno.ENAMETOOLONG: "the name is too long for the file system of the staging area",
    errno.ENOTDIR: "a file lies where a directory is needed",
    errno.EISDIR: "a directory lies where the file should go",
}

_STATUS_ADVICE = {
    400: "the store does not understand the request",
    401: (
        "not logged in, or the token has run out (LSST_HTTP_AUTH_BEARER_TOKEN is sent over https only, never"
        " over http)"
    ),
    403: "the store refuses this user or these credentials",
    405: "the store does not allow writing there (is it a WebDAV server, and this its writable path?)",
    409: "a directory above it is missing and could not be made",
    413: "larger than the store accepts",
    507: "no space left in the staging area",
}

_NO_ANSWER = "the store does not answer, or only with errors, although asked several times"

_PHRASES = (
    ("SignatureDoesNotMatch", "the store refuses the credentials: the secret access key is wrong"),
    ("InvalidAccessKeyId", "the store refuses the credentials: it does not know the access key id"),
    ("ExpiredToken", "the store refuses the credentials: they have run out"),
    (
        "NoCredentialsError",
        "no S3 credentials found (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the AWS credentials file)",
    ),
    (
        "ProfileNotFound",
        "the S3 profile in the URI (s3://profile@bucket/) has no credentials in the AWS credentials file",
    ),
    ("NoSuchBucket", "no such bucket"),
    ("AccessDenied", "the store refuses this user or these credentials"),
    ("QuotaExceeded", "quota of the staging area exceeded"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the store's certificate is not trusted (set LSST_HTTP_CACERT_BUNDLE)",
    ),
    ("gaierror", "the name of the store's host is not known"),
    ("ConnectionRefusedError", "nothing listens at the store's host and port"),
    ("EndpointConnectionError", _NO_ANSWER),
    ("Could not connect to the endpoint", _NO_ANSWER),
    ("Max retries exceeded", _NO_ANSWER),
    ("plain HTTP servers", "no WebDAV server answers there, or it hides behind a refused log-in"),
)

_PERMANENT_STATUS = frozenset({400, 401, 403, 404, 405, 409, 413, 507})

_STATUS = re.compile(r"status:?\s*(?:code:?\s*)?\(?(\d{3})\b|\((\d{3})\) when calling", re.IGNORECASE)


class VerificationError(OSError):
    """What lies in the staging area is not what was sent there."""


def _status(text: str) -> int:
    found = _STATUS.search(text)
    return int(found[1] or found[2]) if found else 0


def _text(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."


def _advice(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    for phrase, advice in _PHRASES:
        if phrase in text:
            return advice
    if status := _STATUS_ADVICE.get(_status(text)):
        return status
    if isinstance(error, OSError) and error.errno is not None:
        return _ERRNO_ADVICE.get(error.errno, "")
    return ""


def describe_cause(error: BaseException) -> str:
    """Say why a transfer failed.

    Parameters
    ----------
    error : `BaseException`
        What was raised.

    Returns
    -------
    cause : `str`
        One line: what it means if that is known, and the original text, cut.
    """
    if isinstance(error, VerificationError):
        return str(error)
    advice = _advice(error)
    return f"{advice} [{_text(error)}]" if advice else _text(error)


def is_permanent(error: BaseException) -> bool:
    """Tell whether trying again cannot help.

    Parameters
    ----------
    error : `BaseException`
        What was raised.

    Returns
    -------
    permanent : `bool`
        `True` for refused credentials, missing sources, full or read-only
        file systems and the like.
    """
    if isinstance(error, VerificationError):
        return False
    if isinstance(error, NotImplementedError | FileNotFoundError | PermissionError):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNO_ADVICE:
        return True
    if isinstance(error, ConnectionRefusedError):
        # A server that is being restarted.
        return False
    # Libraries that have tried again for a minute need not be asked again.
    text = f"{type(error).__name__}: {error}"
    return _status(text) in _PERMANENT_STATUS or any(phrase in text for phrase, _ in _PHRASES)
