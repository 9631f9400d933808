"""Credentials from the environment, and text without secrets."""

import os
import re
import string
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsst.ctrl.bps.panda.errors import (
    AuthenticationError,
    LocalPandaError,
    SettingsError,
    TokenExpiredError,
    TokenMissingError,
)
from lsst.ctrl.bps.panda.local.endpoint import (
    Endpoint,
    environment,
    start_ticks,
    token_folder,
    write_endpoint,
    write_token,
)
from lsst.ctrl.bps.panda.rest.credentials import (
    Anonymous,
    BearerToken,
    X509Proxy,
    checks_certificates,
    find_credentials,
    redact,
)
from lsst.ctrl.bps.panda.rest.tokens import TokenSet, TokenStore

NOW = datetime.now(UTC)


def make_token(*, life=timedelta(days=10), age=timedelta(0)):
    issued = NOW - age
    claims = {"sub": "1", "iat": int(issued.timestamp()), "exp": int((issued + life).timestamp())}
    return jwt.encode(claims, "k" * 64, algorithm="HS256")


def oidc(tmp_path, **more):
    return {"PANDA_AUTH": "oidc", "PANDA_AUTH_VO": "Rubin", "PANDA_CONFIG_ROOT": str(tmp_path), **more}


def test_the_variables_choose(tmp_path):
    proxy = tmp_path / "proxy"
    assert isinstance(find_credentials({}), Anonymous)
    assert isinstance(find_credentials({"PANDA_AUTH": "none", "X509_USER_PROXY": "/x"}), Anonymous)
    for mode in ("", "voms", "x509_no_grid", "VOMS"):
        found = find_credentials({"PANDA_AUTH": mode, "X509_USER_PROXY": str(proxy)})
        assert isinstance(found, X509Proxy)
        assert found.path == str(proxy)
    assert isinstance(find_credentials(oidc(tmp_path)), BearerToken)
    assert find_credentials(oidc(tmp_path, PANDA_AUTH_VO="", OIDC_AUTH_VO="Other")).vo == "Other"


def test_bad_variables_are_said():
    with pytest.raises(SettingsError, match="PANDA_AUTH='kerberos' is unknown"):
        find_credentials({"PANDA_AUTH": "kerberos"})
    with pytest.raises(SettingsError, match="PANDA_AUTH_VO"):
        find_credentials({"PANDA_AUTH": "oidc"})


def test_nothing_is_read_before_it_is_needed(tmp_path):
    found = find_credentials(oidc(tmp_path))
    with pytest.raises(TokenMissingError, match="panda_auth reset"):
        found.headers()
    TokenStore(tmp_path).save(TokenSet({"id_token": make_token()}))
    first = found.headers()["Authorization"]
    TokenStore(tmp_path).save(TokenSet({"id_token": make_token(life=timedelta(days=20))}))
    assert found.headers()["Authorization"] != first


def test_an_expired_token_gives_the_command_to_type(tmp_path):
    old = make_token(life=timedelta(hours=1), age=timedelta(hours=2))
    TokenStore(tmp_path).save(TokenSet({"id_token": old}))
    for env in (oidc(tmp_path), oidc(tmp_path, PANDA_AUTH_ID_TOKEN=old)):
        with pytest.raises(TokenExpiredError, match="'panda_auth refresh'"):
            find_credentials(env).headers()
    # Clocks may differ by a minute.
    just = make_token(life=timedelta(hours=1), age=timedelta(hours=1, seconds=20))
    found = find_credentials(oidc(tmp_path, PANDA_AUTH_ID_TOKEN=just), now=lambda: NOW)
    assert found.headers()["Origin"] == "Rubin"


def test_what_is_no_token_is_left_to_the_server_to_judge(tmp_path):
    found = find_credentials(oidc(tmp_path, PANDA_AUTH_ID_TOKEN=" opaque-token \n"))
    assert found.headers()["Authorization"] == "Bearer opaque-token"
    with pytest.raises(AuthenticationError, match="blanks"):
        find_credentials(oidc(tmp_path, PANDA_AUTH_ID_TOKEN="two words")).headers()


@pytest.mark.parametrize(
    ("life", "age", "asked"),
    [
        (timedelta(days=10), timedelta(0), 0),
        (timedelta(days=10), timedelta(days=10) - timedelta(minutes=4), 1),
        # Half of its life, for tokens that are shorter than that.
        (timedelta(minutes=4), timedelta(minutes=1), 0),
        (timedelta(minutes=4), timedelta(minutes=3), 1),
    ],
)
def test_a_token_about_to_expire_is_renewed(tmp_path, life, age, asked):
    TokenStore(tmp_path).save(TokenSet({"id_token": make_token(life=life, age=age)}))
    renewals = []

    def renew(store):
        renewals.append(store.path)
        store.save(TokenSet({"id_token": make_token()}))
        return True

    found = find_credentials(oidc(tmp_path), renew=renew, now=lambda: NOW)
    found.headers()
    found.headers()
    assert len(renewals) == asked
    assert find_credentials(oidc(tmp_path), renew=renew).renew() is True
    assert find_credentials(oidc(tmp_path)).renew() is False


def test_lifetimes(tmp_path):
    found = find_credentials(oidc(tmp_path, PANDA_AUTH_ID_TOKEN=make_token(life=timedelta(hours=5))))
    found.ensure_lifetime(timedelta(hours=4))
    with pytest.raises(TokenExpiredError, match="6 h are needed"):
        found.ensure_lifetime(timedelta(hours=6))
    Anonymous().ensure_lifetime(timedelta(days=1000))
    with pytest.raises(TokenMissingError):
        X509Proxy(str(tmp_path / "none")).ensure_lifetime(timedelta(0))


def test_a_proxy_is_a_certificate(tmp_path):
    path = tmp_path / "proxy"
    with pytest.raises(AuthenticationError, match="voms-proxy-init"):
        X509Proxy(str(path)).certificate()
    path.write_text("pem")
    assert X509Proxy(str(path)).certificate() == str(path)
    assert X509Proxy(str(path)).headers() == {}


def test_without_credentials_nothing_is_sent():
    assert Anonymous().headers() == {}


def test_the_token_of_the_embedded_panda_goes_to_its_own_server_only(tmp_path):
    endpoint = Endpoint(
        "http://127.0.0.1:9/server/panda", os.getpid(), start_ticks(os.getpid()), "1", str(tmp_path)
    )
    variables = {name: value for name, value in environment(endpoint).items() if value}
    write_token(token_folder(tmp_path), make_token(life=timedelta(days=1)))
    found = find_credentials(variables, renew=lambda store: pytest.fail("nobody renews it"))
    with pytest.raises(LocalPandaError, match="no embedded PanDA runs"):
        found.headers()
    write_endpoint(endpoint)
    sent = found.headers()
    assert sent == {"Authorization": f"Bearer {endpoint.token}", "Origin": "local"}
    # It is read each time: a new start makes another one.
    write_token(token_folder(tmp_path), make_token(life=timedelta(days=2)))
    assert found.headers() != sent
    # Killed, and somebody else may have its port.
    write_endpoint(replace(endpoint, started=1))
    with pytest.raises(LocalPandaError, match="does not run any more"):
        found.headers()
    write_endpoint(endpoint)
    elsewhere = find_credentials({**variables, "PANDA_URL_SSL": "https://panda.example:8443/server/panda"})
    with pytest.raises(LocalPandaError, match="panda.example"):
        elsewhere.headers()


def test_only_off_switches_the_check_of_certificates_off():
    assert not checks_certificates({"PANDA_VERIFY_HOST": "off"})
    assert all(checks_certificates({"PANDA_VERIFY_HOST": value}) for value in ("", "on", "0", "no"))
    assert checks_certificates({})


JWT = make_token()


@pytest.mark.parametrize(
    "text",
    [
        f"x {JWT} y",
        f"Authorization: Bearer {JWT}",
        "{'Authorization': 'Bearer abcdefgh12345678'}",
        '{"refresh_token": "abcdefgh12345678", "x": 1}',
        r"{\"access_token\":\"abcdefgh12345678\"}",
        "client_secret=abcdefgh12345678&x=1",
        "device_code: abcdefgh12345678",
        "https://me:abcdefgh12345678@host/x",
        "-----BEGIN PRIVATE KEY-----\nabcdefgh12345678\n-----END PRIVATE KEY-----",
        "-----BEGIN CERTIFICATE-----\nabcdefgh12345678",
        JWT[: len(JWT) - 10],
    ],
)
def test_secrets_are_hidden(text):
    shown = redact(text)
    assert "[hidden]" in shown
    assert "abcdefgh12345678" not in shown
    assert JWT.split(".")[1] not in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    ["", "The token file is missing", "request 12 of run_20261120T095125Z_01", "https://host:8443/server/panda",
     "eyJ", "Bearer of news", "refresh_token"],
)  # fmt: skip
def test_other_text_is_left_alone(text):
    assert redact(text) == text


@given(
    before=st.text(max_size=30),
    secret=st.text(alphabet=string.ascii_letters + string.digits + "-_.~+/", min_size=6, max_size=60),
    after=st.text(max_size=30),
)
def test_known_secrets_never_show(before, secret, after):
    shown = redact(before + secret + after, [secret])
    assert secret not in shown.replace("[hidden]", "") or secret in before + after or secret in "[hidden]"


def test_the_environment_of_this_process_was_not_needed():
    """The functions take a mapping; os.environ has no part in it."""
    assert not re.search("oidc", repr(find_credentials({}, uid=None)))
    assert os.environ.get("PANDA_AUTH_ID_TOKEN") is None
