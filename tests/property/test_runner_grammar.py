"""The runner reads back whatever was written in its grammar."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

# Any character, and the surrogates that stand for bytes which are not UTF-8.
CHARACTERS = st.one_of(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    st.sampled_from("+:%$'\"\\ \n\t{}<>|&;()#*?~`!^@,-./=\udc80\udcff"),
)


def same_bytes(text):
    """Whether the text is what reading its bytes gives (a run of surrogates may happen to be UTF-8)."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == text


TEXTS = st.text(CHARACTERS).filter(same_bytes)
WORDS = st.text(CHARACTERS, min_size=1).filter(same_bytes)
PARTS = st.text(CHARACTERS.filter(lambda c: c != "/"), min_size=1).filter(
    lambda part: part not in (".", "..") and same_bytes(part)
)
NAMES = st.builds(
    lambda parts, end: "/".join(parts) + end,
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from(["", "/"]),
)
SHELL_SAFE = re.compile(r"[A-Za-z0-9_./:@%+=,^-]*")


@given(TEXTS)
def test_quote(text):
    assert SHELL_SAFE.fullmatch(runner.quote(text))
    assert runner.unquote(runner.quote(text)) == text


@given(TEXTS)
def test_unquote_takes_anything(text):
    runner.unquote(text)


@given(TEXTS)
def test_command(text):
    encoded = runner.encode_command(text)
    assert re.fullmatch("[0-9a-f]*", encoded)
    assert runner.decode_command(encoded) == text


@given(WORDS)
def test_area(area):
    encoded = runner.encode_area(area)
    assert SHELL_SAFE.fullmatch(encoded)
    assert runner.decode_area(encoded) == area


@given(st.lists(st.tuples(WORDS, NAMES), max_size=4, unique_by=lambda pair: pair[0]))
def test_files(files):
    encoded = runner.encode_files(files)
    assert encoded
    assert SHELL_SAFE.fullmatch(encoded)
    assert runner.decode_files(encoded) == files


@given(st.lists(st.tuples(WORDS, TEXTS, PARTS), min_size=1, max_size=3, unique_by=lambda each: each[0]))
def test_outputs(parts):
    outputs = [(key, f"/{folder}/{name}") for key, folder, name in parts]
    encoded = runner.encode_outputs(outputs)
    assert SHELL_SAFE.fullmatch(encoded)
    assert runner.decode_outputs(encoded) == outputs
    assert (
        runner.Arguments(["00", "j", "/", "-", "-", runner.encode_option("outputs", encoded)])["outputs"]
        == outputs
    )


@given(st.lists(WORDS, max_size=4))
def test_direct(keys):
    encoded = runner.encode_direct(keys)
    assert encoded
    assert SHELL_SAFE.fullmatch(encoded)
    assert not runner.is_archive(encoded)
    assert runner.decode_direct(encoded) == keys


@pytest.mark.parametrize("keys", [["cmdlineplaceholder"], ["-"], ["jobO.x.tar.gz"], ["a/b"]])
def test_direct_keys_that_look_like_something_else(keys):
    assert runner.decode_direct(runner.encode_direct(keys)) == keys


@given(st.lists(TEXTS, min_size=2, max_size=2, unique=True))
def test_safe_label_is_injective(labels):
    safe = [runner.safe_label(label) for label in labels]
    assert safe[0] != safe[1]
    for text in safe:
        assert re.fullmatch(r"[A-Za-z0-9_=-][A-Za-z0-9_.=-]*", text)


@given(st.lists(TEXTS, unique=True, max_size=3), st.integers(0, 10**9), st.data())
def test_shard(names, first, data):
    rows = data.draw(st.lists(st.tuples(*[TEXTS for _ in names]), min_size=1, max_size=5))
    text = runner.render_shard(names, first, rows)
    for number, row in enumerate(rows):
        assert runner.find_in_shard(text, first + number) == dict(zip(names, row, strict=True))
    for outside in (first - 1, first + len(rows)):
        with pytest.raises(LookupError):
            runner.find_in_shard(text, outside)


@given(WORDS, st.integers(0, 10**9))
def test_short_and_order_id_inputs(label, order_id):
    short = runner.parse_input(runner.render_short_input(label, order_id), short=True)
    assert (short.kind, runner.unquote(short.label), short.order_id) == ("short", label, order_id)
    mapped = runner.parse_input(runner.render_order_id_input(label, order_id))
    assert (mapped.kind, runner.unquote(mapped.label), mapped.order_id) == ("order", label, order_id)


@given(WORDS)
def test_named_input(name):
    parsed = runner.parse_input(runner.render_named_input(name))
    assert parsed.kind == "named"
    assert parsed.text == "PH:" + runner.quote(name)


@given(WORDS, st.dictionaries(WORDS, TEXTS, max_size=3))
def test_plain_input(name, values):
    text = runner.render_plain_input(name, values.items())
    assert SHELL_SAFE.fullmatch(text)
    assume(text.partition("+")[0])
    parsed = runner.parse_input(text)
    assert (parsed.kind, parsed.values) == ("plain", values)


@given(st.integers(0, 10**6), st.integers(1, 100))
def test_event_input(base, number):
    for text in (f"isr:eventservice_{base}^{number}", f"isr:eventservice_{base}^{number}^1"):
        for short in (False, True):
            parsed = runner.parse_input(text, short=short)
            assert (parsed.kind, parsed.label, parsed.order_id) == ("event", "isr", base + number - 1)
