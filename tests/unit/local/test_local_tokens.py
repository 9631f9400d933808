"""Tokens of the embedded PanDA and of an OpenID issuer, and links for browsers."""

import base64
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from lsst.ctrl.bps.panda.local.identity import IssuerKeys, Links, NotAllowedError, Role, Tokens

_ISSUER = "https://login.example"
_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _token(key=_KEY, *, algorithm="RS256", kid="k1", **claims):
    given = {"iss": _ISSUER, "name": "alice", "exp": time.time() + 100, **claims}
    return jwt.encode(given, key, algorithm=algorithm, headers={"kid": kid})


def _documents():
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(_KEY.public_key()))
    return {
        f"{_ISSUER}/.well-known/openid-configuration": {"jwks_uri": f"{_ISSUER}/keys"},
        f"{_ISSUER}/keys": {"keys": [{**public, "kid": "k1", "use": "sig"}]},
    }


@pytest.fixture
def tokens():
    keys = IssuerKeys(f"{_ISSUER}/", read=_documents().__getitem__)
    keys.refresh()
    return Tokens("me", keys)


def test_tokens_of_this_start_say_who_and_what(tokens):
    owner = tokens.identify(tokens.issue(Role.OWNER))
    assert (owner.user, owner.production, owner.owner, owner.inside) == ("me", True, True, False)
    agent = tokens.identify(tokens.issue(Role.AGENT))
    assert (agent.user, agent.production, agent.owner, agent.inside) == ("me", True, False, True)
    user = tokens.identify(tokens.issue(Role.USER, "x" * 40))
    assert (user.user, user.production, user.owner, user.inside) == ("x" * 20, False, False, False)


def test_a_token_is_worthless_after_a_new_start(tokens):
    with pytest.raises(NotAllowedError, match="not one of this start"):
        Tokens("me").identify(tokens.issue(Role.OWNER))


def test_a_token_expires(tokens):
    with pytest.raises(NotAllowedError, match="expired"):
        tokens.identify(tokens.issue(Role.OWNER, seconds=-1))


def test_claims_without_our_signature_count_for_nothing(tokens):
    own = tokens.issue(Role.USER, "alice")
    header, payload, signature = own.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "role": "owner"}).encode()).decode().rstrip("=")
    with pytest.raises(NotAllowedError, match="not one of this start"):
        tokens.identify(f"{header}.{forged}.{signature}")
    for key, algorithm in (("x" * 32, "HS256"), (None, "none")):
        with pytest.raises(NotAllowedError):
            tokens.identify(jwt.encode({**claims, "role": "owner"}, key, algorithm=algorithm))


@pytest.mark.parametrize("token", ["", "junk", "a.b.c", "x" * 100_000, "é.è.à", "\0.\0.\0"])
def test_what_is_no_token_is_refused(tokens, token):
    for each in (tokens, Tokens("me")):
        with pytest.raises(NotAllowedError, match="token"):
            each.identify(token)


def test_a_cookie_opens_its_view_and_is_no_token(tokens):
    cookie = tokens.issue(Role.READER, view="v")
    tokens.check_reader(cookie, "v")
    for wrong in ("w", ""):
        with pytest.raises(NotAllowedError, match="cookie"):
            tokens.check_reader(cookie, wrong)
    with pytest.raises(NotAllowedError, match="page"):
        tokens.identify(cookie)
    for role in (Role.OWNER, Role.USER):
        with pytest.raises(NotAllowedError):
            tokens.check_reader(tokens.issue(role), "")


def test_a_token_of_the_issuer_names_an_ordinary_user(tokens):
    found = tokens.identify(_token(role="owner"))
    assert (found.user, found.production, found.owner) == ("alice", False, False)
    assert tokens.identify(_token(name=None, preferred_username="carol")).user == "carol"
    assert tokens.identify(_token(name=None, sub="s")).user == "s"
    assert tokens.identify(_token(name="al\x1b[2Jice\n")).user == "al[2Jice"
    with pytest.raises(NotAllowedError, match="no user"):
        tokens.identify(_token(name=None))
    with pytest.raises(NotAllowedError):
        Tokens("me").identify(_token())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": time.time() - 100}, "expired"),
        ({"exp": None}, "exp"),
        ({"iss": "https://evil.example"}, "evil.example"),
        ({"kid": "k9"}, "k9"),
        ({"key": rsa.generate_private_key(public_exponent=65537, key_size=2048)}, "[Ss]ignature"),
        ({"algorithm": "PS256"}, "alg"),
    ],
)
def test_bad_tokens_of_the_issuer_are_refused_with_a_reason(tokens, changes, said):
    with pytest.raises(NotAllowedError, match=said):
        tokens.identify(_token(**changes))


def test_the_key_of_the_issuer_is_no_secret_of_ours(tokens):
    """The old mistake: a public key taken as the key of an HMAC."""
    body = {"iss": "panda_local", "name": "me", "role": "owner", "exp": time.time() + 100}
    public = _documents()[f"{_ISSUER}/keys"]["keys"][0]["n"]
    with pytest.raises(NotAllowedError, match="not one of this start"):
        tokens.identify(jwt.encode(body, public, algorithm="HS256", headers={"kid": "k1"}))


def test_an_issuer_that_does_not_answer_is_said_and_asked_again_later_only():
    asked = []

    def read(url):
        asked.append(url)
        raise OSError("no route")

    now = [0.0]
    keys = IssuerKeys(_ISSUER, read=read, clock=lambda: now[0])
    keys.refresh()
    for moment in (1.0, 2.0, 3.0, 40.0):
        now[0] = moment
        with pytest.raises(NotAllowedError, match="no route"):
            Tokens("me", keys).identify(_token())
    end = time.monotonic() + 30
    while len(asked) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert len(asked) == 3


def test_links_are_good_once_and_for_a_while():
    now = [0.0]
    links = Links(clock=lambda: now[0])
    first, second = links.make("a"), links.make("b")
    assert links.is_open(first)
    assert links.use(first) == "a"
    assert not links.is_open(first)
    with pytest.raises(NotAllowedError, match="used before"):
        links.use(first)
    now[0] = Links.LIFE
    assert not links.is_open(second)
    with pytest.raises(NotAllowedError, match="too old"):
        links.use(second)


def test_links_do_not_pile_up():
    links = Links()
    codes = [links.make(str(number)) for number in range(200)]
    assert not links.is_open(codes[0])
    assert links.use(codes[-1]) == "199"
