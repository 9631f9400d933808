"""Tokens, their file, where they come from, and the checks on ID tokens."""

import copy
import json
import multiprocessing
import os
import pickle
import stat
import threading
import time
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from lsst.ctrl.bps.panda.auth.login import Provider, auth_config_url, verify_id_token
from lsst.ctrl.bps.panda.errors import SettingsError, TokenBrokenError, TokenExpiredError, TokenMissingError
from lsst.ctrl.bps.panda.rest.credentials import find_proxy, read_proxy
from lsst.ctrl.bps.panda.rest.tokens import (
    TokenSet,
    TokenStore,
    ensure_lifetime,
    find_token_source,
    parse_claims,
    parse_token_set,
    render_span,
    token_directory,
)

NOW = datetime.now(UTC).replace(microsecond=0)
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PROVIDER = Provider(
    issuer="https://iam.example.org",
    client_id="panda",
    client_secret="",
    audience="",
    device_endpoint="",
    token_endpoint="",
    jwks_uri="",
    algorithms=("RS256", "ES256"),
)


def make_claims(**changes):
    claims = {
        "iss": "https://iam.example.org",
        "sub": "42",
        "aud": "panda",
        "iat": int(NOW.timestamp()),
        "exp": int((NOW + timedelta(days=10)).timestamp()),
        "name": "Alice Example",
        "preferred_username": "alice",
        "groups": ["Rubin"],
    }
    claims.update(changes)
    return {key: value for key, value in claims.items() if value is not None}


def make_token(key=KEY, algorithm="RS256", kid="k1", **changes):
    return jwt.encode(make_claims(**changes), key, algorithm=algorithm, headers={"kid": kid} if kid else {})


def make_keys(**keys):
    found = []
    for kid, key in keys.items():
        entry = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
        found.append({**entry, "kid": kid, "use": "sig"})
    return {"keys": found}


TOKENS = TokenSet({"id_token": make_token(), "refresh_token": "r-1", "scope": "openid", "extra": {"a": 1}})


def test_a_token_set_keeps_all_fields_and_hides_them():
    assert parse_token_set(TOKENS.render()) == TOKENS
    assert json.loads(TOKENS.render())["extra"] == {"a": 1}
    assert repr(TOKENS) == "TokenSet(extra, id_token, refresh_token, scope)"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            leave(TOKENS)


def test_a_refresh_keeps_the_refresh_token_where_there_is_no_new_one():
    id_token = make_token(sub="42")
    assert TOKENS.renewed({"id_token": id_token}).refresh_token == "r-1"
    assert TOKENS.renewed({"id_token": id_token, "refresh_token": "r-2"}).refresh_token == "r-2"
    assert TokenSet({"id_token": id_token}).refresh_token is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"id_token": ""}', '{"id_token": "a.b"}', '{"id_token": 3}', "\x00"]
)
def test_a_broken_token_file_is_said(text, tmp_path):
    (tmp_path / ".token").write_text(text)
    with pytest.raises(TokenBrokenError, match="is broken.*panda_auth reset") as caught:
        TokenStore(tmp_path).load()
    assert str(tmp_path / ".token") in str(caught.value)


def test_token_files_that_cannot_be_read(tmp_path):
    store = TokenStore(tmp_path)
    with pytest.raises(TokenMissingError, match="panda_auth reset"):
        store.load()
    store.path.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenBrokenError, match="not text"):
        store.load()
    store.path.unlink()
    store.path.mkdir()
    with pytest.raises(TokenBrokenError, match="cannot be read"):
        store.load()


def test_the_file_is_private_whatever_the_umask(tmp_path):
    store = TokenStore(tmp_path / "deep" / "er")
    old = os.umask(0)
    try:
        store.save(TOKENS)
    finally:
        os.umask(old)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert store.is_private()
    assert store.load() == TOKENS
    store.path.chmod(0o644)
    assert not store.is_private()
    store.save(TOKENS)
    assert store.is_private()
    assert [path.name for path in store.directory.iterdir()] == [".token"]


def test_replacing_is_atomic_for_readers(tmp_path):
    store = TokenStore(tmp_path)
    # Sizes that differ much would show a half-written file.
    sets = [TokenSet({"id_token": make_token(), "filling": "x" * size}) for size in (1, 200_000)]
    store.save(sets[0])
    ended = threading.Event()
    seen = []

    def read():
        while not ended.is_set():
            seen.append(store.load() in sets)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        for tokens in sets:
            store.save(tokens)
    ended.set()
    reader.join()
    assert seen
    assert all(seen)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / ".token").symlink_to(tmp_path / "far" / ".token")
    TokenStore(tmp_path / "near").save(TOKENS)
    assert (tmp_path / "near" / ".token").is_symlink()
    assert TokenStore(tmp_path / "far").load() == TOKENS


def test_a_directory_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="PANDA_CONFIG_ROOT"):
        TokenStore(tmp_path / "file" / "below").save(TOKENS)


def _count_in_turn(directory, name, rounds):
    store = TokenStore(directory)
    for _ in range(rounds):
        with store.lock():
            number = int((directory / name).read_text())
            (directory / name).write_text(str(number + 1))


def test_the_lock_lets_one_process_in(tmp_path):
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count_in_turn, args=(tmp_path, "number", 100)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "300"
    # panda-client removes everything that begins with its own names.
    assert not list(tmp_path.glob(".token*"))


def test_cleaning_removes_what_belongs_to_the_login(tmp_path):
    for name in (".token", ".page_cache_1", ".token.abc", "keep"):
        (tmp_path / name).write_text("")
    removed = TokenStore(tmp_path).clean()
    assert sorted(path.name for path in removed) == [".page_cache_1", ".token", ".token.abc"]
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


def test_the_directory_is_that_of_panda_client(tmp_path):
    assert token_directory({"PANDA_CONFIG_ROOT": str(tmp_path)}) == tmp_path
    assert str(token_directory({"PANDA_CONFIG_ROOT": "~/.pathena"})).endswith("/.pathena")
    assert token_directory({}) == token_directory({"PANDA_CONFIG_ROOT": ""}) == token_directory({}).absolute()


def test_tokens_are_taken_in_the_order_of_panda_client(tmp_path):
    TokenStore(tmp_path).save(TOKENS)
    (tmp_path / "token.txt").write_text("from-file\n")
    env = {
        "PANDA_CONFIG_ROOT": str(tmp_path),
        "OIDC_AUTH_ID_TOKEN": "third",
        "OIDC_AUTH_TOKEN_FILE": str(tmp_path / "token.txt"),
        "PANDA_AUTH_ID_TOKEN": "first",
    }
    expected = ["first", "from-file", "third", TOKENS.id_token]
    for wanted, name in zip(
        expected, ("PANDA_AUTH_ID_TOKEN", "OIDC_AUTH_TOKEN_FILE", "OIDC_AUTH_ID_TOKEN", ""), strict=True
    ):
        source = find_token_source(env)
        assert source.read() == wanted
        assert (source.store is not None) == (not name)
        assert wanted not in source.description
        # Set to nothing is not set.
        env[name] = ""


def test_a_token_file_of_the_user_that_cannot_be_read(tmp_path):
    path = tmp_path / "none"
    source = find_token_source({"OIDC_AUTH_TOKEN_FILE": str(path)})
    with pytest.raises(TokenMissingError, match="OIDC_AUTH_TOKEN_FILE"):
        source.read()
    path.write_bytes(b"\xff")
    with pytest.raises(TokenBrokenError, match="ASCII"):
        source.read()


def test_claims_of_a_token():
    claims = parse_claims(make_token(email="a@example.org", organisation_name="Rubin", aud=["panda", "x"]))
    assert (claims.name, claims.username, claims.groups) == ("Alice Example", "alice", ("Rubin",))
    assert claims.remaining(NOW) == timedelta(days=10)
    never = parse_claims(make_token(exp=None))
    assert never.remaining(NOW) == timedelta.max


@pytest.mark.parametrize("token", ["", "a.b.c", "eyJhbGciOiJub25lIn0.W10.", make_token()[:-400], "é.é.é"])
def test_what_is_no_token_is_said_without_showing_it(token):
    with pytest.raises(TokenBrokenError) as caught:
        parse_claims(token)
    assert caught.value.__context__ is None
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    ("needed", "left", "words"),
    [
        (timedelta(hours=1), timedelta(minutes=30), "expires in 30 min, and 1 h are needed"),
        (timedelta(0), timedelta(days=-3, hours=-4), "expired 3 d 4 h ago"),
        (timedelta(0), timedelta(0), "expired 0 s ago"),
    ],
)
def test_a_token_that_does_not_last_gives_the_command_to_type(needed, left, words):
    token = make_token(exp=int((NOW + left).timestamp()))
    with pytest.raises(TokenExpiredError, match=words) as caught:
        ensure_lifetime(token, needed, now=NOW)
    assert "'panda_auth refresh" in str(caught.value)


def test_a_token_that_lasts_passes():
    token = make_token(exp=int((NOW + timedelta(hours=1)).timestamp()))
    assert ensure_lifetime(token, timedelta(hours=1), now=NOW).username == "alice"
    # A negative need is a grace for clocks that differ.
    late = NOW + timedelta(hours=1, seconds=30)
    assert ensure_lifetime(token, timedelta(minutes=-1), now=late).username == "alice"
    with pytest.raises(TokenExpiredError):
        ensure_lifetime(token, timedelta(seconds=-10), now=late)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3700, "1 h 1 min"), (86400, "1 d"), (273600, "3 d 4 h"),
     (86460, "1 d")],
)  # fmt: skip
def test_spans_are_written_in_two_units(seconds, text):
    assert render_span(timedelta(seconds=seconds)) == text


def test_a_good_token_passes_the_checks():
    keys = make_keys(k0=OTHER_KEY, k1=KEY)
    assert verify_id_token(make_token(), keys, PROVIDER).username == "alice"
    # Without a name there must be one key only.
    assert verify_id_token(make_token(kid=None), make_keys(k1=KEY), PROVIDER).subject == "42"
    several = make_token(aud=["panda", "other"], azp="panda")
    assert verify_id_token(several, keys, PROVIDER).issuer == PROVIDER.issuer


def test_the_token_of_a_browser_is_that_of_its_login():
    keys = make_keys(k1=KEY)
    assert (
        verify_id_token(make_token(nonce="of-this-login"), keys, PROVIDER, nonce="of-this-login").subject
        == "42"
    )
    for nonce in ("of-another-login", "", None):
        with pytest.raises(TokenBrokenError, match="made for another login"):
            verify_id_token(make_token(nonce=nonce), keys, PROVIDER, nonce="of-this-login")


HOUR = 3600
BAD_TOKENS = {
    "signed by somebody else": (lambda: make_token(OTHER_KEY), "Signature verification failed"),
    "key not shown": (lambda: make_token(kid="k9"), "a key that the provider does not show"),
    "no name of the key": (lambda: make_token(kid=None), "a key that the provider does not show"),
    "not signed": (lambda: make_token(key=None, algorithm="none"), "not allowed"),
    "shared secret": (lambda: make_token("s" * 64, "HS256"), "not allowed"),
    "algorithm not offered": (lambda: make_token(algorithm="RS512"), "not allowed"),
    "other issuer": (lambda: make_token(iss="https://evil.example.org"), "issuer"),
    "other audience": (lambda: make_token(aud="other"), "[Aa]udience"),
    "several audiences, made for another": (
        lambda: make_token(aud=["panda", "x"], azp="x"),
        "another client",
    ),
    "several audiences, for nobody": (lambda: make_token(aud=["panda", "x"]), "another client"),
    "expired": (
        lambda: make_token(iat=int(time.time()) - 2 * HOUR, exp=int(time.time()) - HOUR),
        r"expired; the clock of this machine seems to be 7[12]\d\d s ahead",
    ),
    "of the future": (
        lambda: make_token(iat=int(time.time()) + HOUR),
        r"the clock of this machine seems to be 3[56]\d\d s behind",
    ),
    "without end": (lambda: make_token(exp=None), "exp"),
    "without subject": (lambda: make_token(sub=None), "sub"),
    "not a token": (lambda: "a.b.c", "not accepted"),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_a_bad_token_fails_the_checks(case):
    make, words = BAD_TOKENS[case]
    token = make()
    with pytest.raises(TokenBrokenError, match=words) as caught:
        verify_id_token(token, make_keys(k0=OTHER_KEY, k1=KEY), PROVIDER)
    assert token.split(".")[1] not in str(caught.value).split("not accepted")[1] or case == "not a token"
    assert caught.value.__context__ is None


@pytest.mark.parametrize("keys", [{}, {"keys": []}, {"keys": "x"}, {"keys": [{"kty": "RSA"}]}])
def test_a_broken_key_set_fails_the_checks(keys):
    with pytest.raises(TokenBrokenError, match="not accepted"):
        verify_id_token(make_token(), keys, PROVIDER)


def test_the_url_of_the_configuration():
    wanted = "https://panda.example.org:8443/auth/Rubin:production_auth_config.json"
    assert auth_config_url("https://panda.example.org:8443/server/panda", "Rubin:production") == wanted
    assert auth_config_url("http://h/server/panda", "../x") == "http://h/auth/..%2Fx_auth_config.json"
    for wrong in ("", "panda.example.org", "ftp://h/x", "https://"):
        with pytest.raises(SettingsError, match="PANDA_URL_SSL"):
            auth_config_url(wrong, "Rubin")


def write_proxy(path, *, days):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Alice proxy")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=30))
        .not_valid_after(NOW + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)


def test_a_proxy_says_how_long_it_lasts(tmp_path):
    path = tmp_path / "proxy"
    write_proxy(path, days=2)
    info = read_proxy(str(path))
    assert (info.subject, info.remaining(NOW)) == ("CN=Alice proxy", timedelta(days=2))
    info.ensure_lifetime(timedelta(days=1), NOW)
    with pytest.raises(TokenExpiredError, match="voms-proxy-init"):
        info.ensure_lifetime(timedelta(days=3), NOW)
    write_proxy(path, days=-1)
    with pytest.raises(TokenExpiredError, match="expired 1 d ago"):
        read_proxy(str(path)).ensure_lifetime(timedelta(0), NOW)
    path.write_text("no certificate")
    with pytest.raises(TokenBrokenError):
        read_proxy(str(path))
    with pytest.raises(TokenMissingError):
        read_proxy(str(tmp_path / "none"))
    assert find_proxy({"X509_USER_PROXY": str(path)}) == str(path)
    assert find_proxy({}) is None
