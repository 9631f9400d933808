"""Token check of the embedded PanDA."""

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from lsst.ctrl.bps.panda.local.identity import NotAllowedError, TokenCheck

_ISSUER = "https://login.example"
_NOW = 1_000_000.0


def _pack(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _token(key, *, header=None, **claims):
    given = {"iss": _ISSUER, "name": "alice", "exp": _NOW + 10, **claims}
    signed = f"{_pack(header or {'alg': 'RS256', 'kid': 'k1'})}.{_pack(given)}"
    return f"{signed}.{_pack(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


@pytest.fixture
def check(key):
    numbers = key.public_key().public_numbers()
    documents = {
        f"{_ISSUER}/.well-known/openid-configuration": {"jwks_uri": f"{_ISSUER}/keys"},
        f"{_ISSUER}/keys": {
            "keys": [
                {
                    "kid": "k1",
                    "kty": "RSA",
                    "n": _pack(numbers.n.to_bytes(256, "big")),
                    "e": _pack(numbers.e.to_bytes(3, "big")),
                }
            ]
        },
    }
    return TokenCheck(f"{_ISSUER}/", read=documents.__getitem__, clock=lambda: _NOW)


def test_good_token_is_accepted(check, key):
    assert check.verify(_token(key))["name"] == "alice"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": _NOW - 100}, "expired"),
        ({"iss": "https://evil.example"}, "evil.example"),
        ({"header": {"alg": "none"}}, "none"),
        ({"header": {"alg": "RS256", "kid": "k9"}}, "k9"),
        ({"header": {"kid": "k1"}}, "header"),
    ],
)
def test_bad_tokens_are_refused_with_a_reason(check, key, changes, said):
    with pytest.raises(NotAllowedError, match=said):
        check.verify(_token(key, **changes))


def test_changed_claims_are_noticed(check, key):
    header, _, signature = _token(key).split(".")
    forged = _pack({"iss": _ISSUER, "name": "root", "exp": _NOW + 10})
    with pytest.raises(NotAllowedError, match="signature"):
        check.verify(f"{header}.{forged}.{signature}")


def test_unreachable_issuer_is_said(key):
    def read(url):
        raise OSError("no route")

    with pytest.raises(NotAllowedError, match="no route"):
        TokenCheck(_ISSUER, read=read, clock=lambda: _NOW).verify(_token(key))
