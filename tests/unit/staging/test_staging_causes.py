"""What a failed transfer is said to have failed of."""

from __future__ import annotations

import errno
import os
import socket
import ssl

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from lsst.ctrl.bps.panda.staging.transfers import VerificationError, describe_cause, is_permanent


def client_error(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "PutObject",
    )


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/area/x")


@pytest.mark.parametrize(
    ("error", "words", "permanent"),
    [
        (os_error(errno.ENOSPC), "no space left", True),
        (os_error(errno.EDQUOT), "quota", True),
        (os_error(errno.EROFS), "read-only", True),
        (os_error(errno.EACCES), "permission denied", True),
        (os_error(errno.ENAMETOOLONG), "too long", True),
        (os_error(errno.EIO), "Input/output error", False),
        (os_error(errno.ESTALE), "Stale file handle", False),
        (ConnectionResetError("reset"), "ConnectionResetError", False),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "nothing listens", False),
        (socket.gaierror(-2, "Name or service not known"), "host is not known", True),
        (ssl.SSLCertVerificationError("[SSL: CERTIFICATE_VERIFY_FAILED] x"), "LSST_HTTP_CACERT_BUNDLE", True),
        (TimeoutError("not done within 300 s"), "not done within 300 s", False),
        (VerificationError("the store holds 3 of 5 bytes"), "3 of 5 bytes", False),
        (ValueError("Can not write file x, status: 401 Unauthorized"), "over https only", True),
        (ValueError("Can not write file x, status: 403 Forbidden"), "refuses", True),
        (ValueError("Can not write file x, status: 507 Insufficient Storage"), "no space left", True),
        (ValueError("Can not write file x, status: 413 Too large"), "larger than", True),
        (ValueError("Can not write file x, status: 418 I'm a teapot"), "teapot", False),
        (NotImplementedError("... is not implemented by plain HTTP servers"), "no WebDAV server", True),
        (client_error("NoSuchBucket", 404), "no such bucket", True),
        (client_error("SignatureDoesNotMatch", 403), "secret access key", True),
        (client_error("InvalidAccessKeyId", 403), "access key id", True),
        (client_error("AccessDenied", 403), "refuses", True),
        (client_error("SlowDown", 503), "SlowDown", False),
        (EndpointConnectionError(endpoint_url="http://x"), "does not answer", True),
        (NoCredentialsError(), "no S3 credentials", True),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, Exception) else "",
)
def test_cause_is_in_words_and_known_to_be_lasting_or_not(error, words, permanent):
    assert words in describe_cause(error)
    assert is_permanent(error) is permanent


def test_original_text_is_kept_but_cut_and_on_one_line():
    cause = describe_cause(OSError(errno.EIO, "line one\nline two " + "x" * 1000))
    assert "line one line two" in cause
    assert len(cause) < 400
    assert "\n" not in cause
