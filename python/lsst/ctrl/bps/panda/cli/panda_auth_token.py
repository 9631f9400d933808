"""The commands of ``panda_auth``.

Results go to the standard output, everything else to the standard error.
Exit codes, for scripts:

==== ====================================================================
0    fine; for ``refresh`` also if there was nothing to do yet
1    anything else, such as a missing environment variable
2    wrong use of the command
3    there is no token
4    the token has expired, or does not last as long as asked for
5    the login or the refresh was refused
6    the PanDA server or the provider cannot be reached or understood
7    the token or its file is broken
130  cancelled with Ctrl-C
==== ====================================================================
"""

__all__ = ["begin_log", "clean", "refresh", "reset", "status"]

import functools
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from lsst.daf.butler.cli.cliLog import CliLog
from lsst.daf.butler.cli.opt import (
    log_file_option,
    log_label_option,
    log_level_option,
    log_tty_option,
    long_log_option,
)

from ..auth.login import DeviceGrant, RefreshOutcome, find_login_settings, keep_fresh, log_in
from ..auth.login import refresh as refresh_login
from ..errors import (
    AuthenticationError,
    LocalPandaError,
    PandaBpsError,
    TokenBrokenError,
    TokenExpiredError,
    TokenMissingError,
    TransportError,
)
from ..local.endpoint import find_own_panda
from ..rest.credentials import find_proxy, read_proxy
from ..rest.tokens import (
    Claims,
    TokenStore,
    ensure_lifetime,
    find_token_source,
    parse_claims,
    render_span,
    token_directory,
)
from . import INTERRUPTED
from .output import json_option, write_json

# First match wins: children before parents.
_EXIT_CODES: tuple[tuple[type[PandaBpsError], int, str], ...] = (
    (TokenMissingError, 3, "no-token"),
    (TokenExpiredError, 4, "expired"),
    (TokenBrokenError, 7, "broken"),
    (AuthenticationError, 5, "refused"),
    (TransportError, 6, "unreachable"),
    (PandaBpsError, 1, "error"),
)


def _guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors into a message and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, as_json: bool, **kwargs: Any) -> None:
        try:
            command(*args, as_json=as_json, **kwargs)
        except PandaBpsError as error:
            code, kind = next((code, kind) for cls, code, kind in _EXIT_CODES if isinstance(error, cls))
            # Of an expired token the content was shown already.
            if as_json and not isinstance(error, TokenExpiredError):
                write_json({"error": kind, "exit_code": code, "message": str(error)}, line=True)
            click.echo(f"Error: {error}", err=True)
            sys.exit(code)
        except KeyboardInterrupt:
            click.echo("\nCancelled. The token file is as it was.", err=True)
            sys.exit(INTERRUPTED)

    return run


def begin_log(words: Sequence[str]) -> None:
    """Begin to log, with the options that all commands of the stack have."""

    def begin(log_level: dict[str, str], long_log: bool, **log_options: Any) -> None:
        CliLog.initLog(longlog=long_log, **log_options)
        CliLog.setLogLevels(log_level)

    for add in (log_label_option, log_tty_option, log_file_option, long_log_option):
        begin = add()(begin)
    command = click.command()(log_level_option(default=["INFO"])(begin))
    command.main([*words], prog_name="panda_auth", standalone_mode=False)


@click.command(short_help="Show the token: whose, and until when.")
@click.option(
    "--needed",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="HOURS",
    help="Fail if the token does not last that long.",
)
@json_option
@_guarded
def status(needed: float, as_json: bool) -> None:
    """Print information about the auth token."""
    now = datetime.now(UTC)
    proxy = find_proxy(os.environ, uid=os.getuid())
    if proxy is not None and os.environ.get("PANDA_AUTH", "oidc") != "oidc":
        _show_proxy(proxy, timedelta(hours=needed), now, as_json=as_json)
        return
    source = find_token_source(os.environ)
    token = source.read()
    claims = parse_claims(token)
    _show_token(source.description, source.store, claims, now, as_json=as_json)
    ensure_lifetime(token, timedelta(hours=needed), now=now)


def _find_store() -> TokenStore:
    """Find the token to change, which is never the one that an embedded PanDA has made."""
    if (own := find_own_panda(os.environ)) is not None:
        raise LocalPandaError(
            f"PANDA_CONFIG_ROOT names the token of the embedded PanDA in {own}, which is made when it is "
            "started and needs no login. For another PanDA, set its variables anew, or use a new shell."
        )
    return TokenStore(token_directory(os.environ))


@click.command(short_help="Log in and get a new token.")
@json_option
@_guarded
def reset(as_json: bool) -> None:
    """Get a new auth token: log in with a browser, here or on another machine.

    The present token stays until there is a new one.
    """
    store = _find_store()
    claims = log_in(store, find_login_settings(os.environ), _show_grant)
    if not os.environ.get("PANDA_CONFIG_ROOT"):
        click.echo(
            "PANDA_CONFIG_ROOT is not set: the token is in the current directory and only found from here.",
            err=True,
        )
    _show_token(str(store.path), store, claims, datetime.now(UTC), as_json=as_json)


@click.command(short_help="Renew the token if it is about to expire.")
@click.option(
    "--days", default=4.0, show_default=True, type=click.FloatRange(0), help="Refresh when fewer days remain."
)
@click.option("--force", is_flag=True, help="Refresh however many days remain.")
@click.option("--watch", is_flag=True, help="Stay and refresh again and again.")
@click.option("--verbose", is_flag=True, help="Enable verbose output.")
@json_option
@_guarded
def refresh(days: float, force: bool, watch: bool, verbose: bool, as_json: bool) -> None:
    """Refresh the auth token without a browser, as from a cron job."""
    if verbose:
        CliLog.setLogLevels({"lsst.ctrl.bps.panda": "DEBUG"})
    settings = find_login_settings(os.environ)
    store = _find_store()
    threshold = timedelta.max if force else timedelta(days=days)
    if not watch:
        _show_outcome(refresh_login(store, settings, threshold=threshold), store, as_json=as_json)
        return
    for outcome in keep_fresh(store, settings, threshold=timedelta(days=days)):
        _show_outcome(outcome, store, as_json=as_json)


@click.command(short_help="Remove the token.")
@json_option
@_guarded
def clean(as_json: bool) -> None:
    """Clean up the token and the cache files of panda-client beside it."""
    store = _find_store()
    removed = [str(path) for path in store.clean()]
    if as_json:
        write_json({"removed": removed}, line=True)
    else:
        click.echo(
            "\n".join(f"Removed {path}" for path in removed) or f"Nothing to remove in {store.directory}"
        )


def _show_grant(grant: DeviceGrant) -> None:
    """Show the link and the code by which a person approves the login."""
    link = _printable(grant.verification_uri_complete or grant.verification_uri)
    code = _printable(grant.user_code)
    task = "check that it shows" if grant.verification_uri_complete else "enter there"
    click.echo(
        f"To log in, open this link in a browser, on any machine:\n\n    {link}\n\n"
        f"and {task} the code  {code}\n\n"
        f"Waiting for your approval for {render_span(timedelta(seconds=grant.expires_in))}; "
        "Ctrl-C cancels.",
        err=True,
    )


def _printable(text: str) -> str:
    """Remove characters of a server's text that could control the terminal."""
    return "".join(character for character in text if character.isprintable())


def _show_outcome(outcome: RefreshOutcome, store: TokenStore, *, as_json: bool) -> None:
    now = datetime.now(UTC)
    if as_json:
        content = {"refreshed": outcome.refreshed, **_describe(str(store.path), outcome.claims, now)}
        write_json(content, line=True)
        return
    expires = _render_expiry(outcome.claims.expires, now)
    if outcome.refreshed:
        click.echo(f"The token was refreshed; it expires {expires}.")
    else:
        click.echo(f"Too early to refresh; the token expires {expires}. See --days and --force.")


def _show_token(
    place: str, store: TokenStore | None, claims: Claims, now: datetime, *, as_json: bool
) -> None:
    content = _describe(place, claims, now)
    if store is not None:
        content["refreshable"] = store.load().refresh_token is not None
        content["private"] = store.is_private()
    rows = {
        "Filename": place,
        "Valid starting": _render_time(claims.issued),
        "Expires": _render_expiry(claims.expires, now),
        "Name": claims.name,
        "User": claims.username,
        "Email": claims.email,
        "Groups": ",".join(claims.groups),
        "Organization": claims.organisation,
    }
    _show(content, rows, as_json=as_json)
    if not content.get("private", True):
        click.echo(f"Warning: others can read {place}; 'chmod 600' it.", err=True)


def _show_proxy(path: str, needed: timedelta, now: datetime, *, as_json: bool) -> None:
    info = read_proxy(path)
    content = {"file": path, "subject": info.subject, **_describe_times(info.issued, info.expires, now)}
    rows = {
        "X.509 proxy": path,
        "Valid starting": _render_time(info.issued),
        "Expires": _render_expiry(info.expires, now),
        "Subject": info.subject,
    }
    _show(content, rows, as_json=as_json)
    info.ensure_lifetime(needed, now)


def _show(content: dict[str, Any], rows: dict[str, str], *, as_json: bool) -> None:
    """Show the content as JSON, or the rows as text."""
    if as_json:
        write_json(content, line=True)
        return
    for title, value in rows.items():
        click.echo(f"{title + ':':15} {_printable(value)}".rstrip())


def _describe(place: str, claims: Claims, now: datetime) -> dict[str, Any]:
    """Describe a token for ``--json``."""
    return {
        "file": place,
        "name": claims.name,
        "username": claims.username,
        "email": claims.email,
        "groups": list(claims.groups),
        "organization": claims.organisation,
        "issuer": claims.issuer,
        **_describe_times(claims.issued, claims.expires, now),
    }


def _describe_times(issued: datetime | None, expires: datetime | None, now: datetime) -> dict[str, Any]:
    left = None if expires is None else int((expires - now).total_seconds())
    return {
        "issued": issued and issued.isoformat(),
        "expires": expires and expires.isoformat(),
        "seconds_left": left,
        "valid": left is None or left > 0,
    }


def _render_time(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z}" if moment is not None else "unknown"


def _render_expiry(expires: datetime | None, now: datetime) -> str:
    if expires is None:
        return "never"
    left = expires - now
    span = render_span(abs(left))
    return f"{_render_time(expires)} ({f'in {span}' if left > timedelta(0) else f'{span} ago'})"
