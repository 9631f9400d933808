"""What is put into a command line is what the shell then sees."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

HOSTILE = [
    "plain.yaml",
    "a b",
    "  lead and trail  ",
    "it's",
    'say "hi"',
    "a+b:c%20d",
    "$HOME and ${HOME} and $(echo x) and `echo y`",
    "back\\slash\\",
    "new\nline",
    "tab\there",
    "* ? [a-z] {a,b} ~ ~root",
    "a;b&c|d<e>f(g)h#i!j",
    "-rf",
    "é ☃ 日本",
    "'",
    '"',
    "\\",
    "",
    "<FILE:k>",
    "{name}",
]

# Each makes the shell print one text (and a NUL behind it) that holds the value between X and Y.
PLACES = {
    "outside": r"printf '%s\0' X<FILE:k>Y",
    "glued": r"printf '%s\0' X'<'\<FILE:k>Y",  # after a backslash it is no placeholder
    "double": r'''printf '%s\0' "X<FILE:k>Y"''',
    "single": r"printf '%s\0' 'X<FILE:k>Y'",
    "ansi": r"printf '%s\0' $'X<FILE:k>Y'",
    "mixed": r"""printf '%s\0' X"don't"'say "'\"<FILE:k>"Y" """,
    "substitution": r'''printf '%s\0' "$(printf '%s' X<FILE:k>Y)"''',
    "quoted substitution": r'''printf '%s\0' "a$(printf '%s' "X<FILE:k>Y")b"''',
    "backticks": r"""V=`printf %s X<FILE:k>Y`; printf '%s\0' "$V" """,
    "backticks and quotes": r"""V=`printf %s "X<FILE:k>Y"`; printf '%s\0' "$V" """,
    "backticks and single quotes": r"""V=`printf %s 'X<FILE:k>Y'`; printf '%s\0' "$V" """,
    "subshell": r"(printf '%s\0' X<FILE:k>Y)",
    "comment": "true # don't <FILE:k>\nprintf '%s\\0' X<FILE:k>Y",
    "not a comment": r"true a#'b'; printf '%s\0' X<FILE:k>Y",
    "parameter": r"printf '%s\0' ${NOT_SET:-X<FILE:k>Y}",
    "variable": r'''V="X<FILE:k>Y"; printf '%s\0' "$V"''',
    "escaped quote": r"""printf '%s\0' \'X<FILE:k>Y\" """,
    "ansi with quote": r"""printf '%s\0' $'it\'s'X<FILE:k>Y""",
    "dollar before a quote": r"""printf '%s\0' 'a$'X<FILE:k>Y'$'""",
}


def shell(command):
    return subprocess.run(["/bin/bash", "-c", command], stdout=subprocess.PIPE, check=True).stdout


def put(command, value):
    return runner.insert_quoted(command, lambda kind, name: value)


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("place", sorted(set(PLACES) - {"glued"}))
def test_value_survives(place, value):
    if place == "parameter" and "}" in value:
        value = value.replace("}", "")
    if place == "comment":
        value = value.replace("\n", "")
    printed = shell(put(PLACES[place], value)).decode()
    assert f"X{value}Y" in printed or (place == "mixed" and f'Xdon\'tsay ""{value}Y' in printed)
    assert printed.count("\0") == 1


def test_value_is_the_only_word_it_makes():
    assert shell(put("printf '[%s]' /area/<FILE:k> --x=<FILE:k>,<FILE:k>", "a  b*")) == (
        b"[/area/a  b*][--x=a  b*,a  b*]"
    )


def test_behind_a_backslash_it_is_no_placeholder():
    assert put(PLACES["glued"], "v") == PLACES["glued"]


@pytest.mark.parametrize("value", ["a b", "it's", '"'])
def test_comment_does_not_end_or_open_anything(value):
    assert shell(put(PLACES["comment"], value)).decode() == f"X{value}Y\0"


@given(
    st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"])
        | st.sampled_from("'\"\\$`!*~ \n{}()#;&|<>"),
        max_size=12,
    )
)
def test_any_value_survives(value):
    places = ["outside", "double", "single", "ansi", "substitution", "subshell", "variable", "escaped quote"]
    printed = shell(put("; ".join(PLACES[place] for place in places), value)).decode()
    texts = printed.split("\0")[:-1]
    assert texts == [f"X{value}Y"] * 7 + [f"'X{value}Y\""]


def test_sh_without_bash_understands_it():
    command = put(r"""printf '%s\0' X<FILE:k>Y "X<FILE:k>Y" 'X<FILE:k>Y'""", "a 'b' \"c\" $d\n\\e")
    printed = subprocess.run(["/bin/sh", "-c", command], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert printed.split("\0")[:-1] == ["Xa 'b' \"c\" $d\n\\eY"] * 3


def test_kinds_and_names_are_passed():
    asked = []

    def find(kind, name):
        asked.append((kind, name))
        return "v"

    runner.insert_quoted("<FILE:a b> <ENV:HOME>/x <WMS:attemptNum> <OTHER:x> <FILE:>", find)
    # Variables of the environment are the shell's.
    assert asked == [("FILE", "a b"), ("WMS", "attemptNum"), ("FILE", "")]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("x {a} {b}", "x 1 --many of=them"),
        ("${a} ${a:-x} {unknown} {}", "${a} ${a:-x} {unknown} {}"),
        ("awk '{print $1}' f{1,2}", "awk '{print $1}' f{1,2}"),
        ("{a}{a}{{a}}", "11{1}"),
        ("'{a}'", "'1'"),
        ("{c}", "{a}"),
    ],
)
def test_values_are_text(command, expected):
    assert runner.insert_values(command, {"a": "1", "b": "--many of=them", "c": "{a}"}) == expected


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("<FILE:nope>", "the job's files are k"),
        ("<WMS:jobId>", "attemptNum"),
    ],
)
def test_missing_value_is_named(command, part):
    arguments = runner.Arguments([runner.encode_command(command), "j", "/a", "-", "-"])
    with pytest.raises(runner.FailureError, match=part) as caught:
        runner.make_command(arguments, {}, {"k": "v"}, lambda: 0, {})
    assert caught.value.code == runner.EXIT_PLACEHOLDER
    assert command in str(caught.value)


def test_values_may_hold_placeholders():
    arguments = runner.Arguments([runner.encode_command("run {q}"), "j", "/a", "-", "-"])
    command = runner.make_command(arguments, {"q": "<ENV:A>/<FILE:k>"}, {"k": "n"}, lambda: 3, {b"A": b"a b"})
    assert command == "run ${A}/n"


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("<ENV:TWO>", "a|b|"),
        ('"<ENV:TWO>"', "a b|"),
        ("'<ENV:TWO>'", "a b|"),
        ("x<ENV:UNSET>y <ENV:UNSET> z", "xy|z|"),
        ("\"<ENV:UNSET>\" '<ENV:UNSET>'", "||"),
        ("<ENV:ODD>", "$(date)`x`;'|"),
        ("'<ENV:ODD>'", "$(date)`x`;'|"),
    ],
)
def test_a_variable_means_what_it_means_in_a_shell(command, printed):
    environment = {b"TWO": b"a b", b"ODD": b"$(date)`x`;'"}
    arguments = runner.Arguments([runner.encode_command(f"printf '%s|' {command}"), "j", "/a", "-", "-"])
    made = runner.make_command(arguments, {}, {}, lambda: 0, environment)
    variables = {name.decode(): value.decode() for name, value in environment.items()}
    output = subprocess.run(
        ["/bin/bash", "-c", made], env=variables, stdout=subprocess.PIPE, check=True
    ).stdout
    assert output.decode() == printed
