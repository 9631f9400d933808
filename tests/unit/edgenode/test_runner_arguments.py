"""The runner's arguments, options, pseudo-inputs and attempt number."""

import pytest

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

HEX = runner.encode_command("true")


def test_as_the_previous_plugin_writes_them():
    arguments = runner.Arguments(
        [
            HEX,
            "isr_1+qgraphNodeId:5+qgraphId:7",
            "/sdf/box/run1/",
            "butlerConfig:b/+runQgraphFile:r.qg",
            "runQgraphFile",
        ]
    )
    assert arguments.command == "true"
    assert arguments.files == [("butlerConfig", "b/"), ("runQgraphFile", "r.qg")]
    assert arguments.direct == ["runQgraphFile"]
    assert arguments.archive == ""


def test_files_left_away():
    arguments = runner.Arguments([HEX, "j", "/a/", "cmdlineplaceholder"])
    assert (arguments.files, arguments.direct) == ([], [])


def test_archive():
    url = "https://host:25443/server/panda/cache/jobO.1234-5.tar.gz"
    arguments = runner.Arguments([HEX, "j", "FileDistribution", "script:run.sh", url])
    assert (arguments.archive, arguments.direct) == (url, [])


def test_options_have_defaults():
    arguments = runner.Arguments([HEX, "j", "/a/", "-", "-"])
    assert arguments["parameters"] is None
    assert (arguments["grace"], arguments["tries"], arguments["keep-tokens"]) == (30.0, 3, "no")


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("parameters", "isr@1000", ("isr", 1000)),
        ("parameters", "a=40b@1", ("a=40b", 1)),
        ("retry-unless-exit", "1,2", [1, 2]),
        ("attempt", "3", 3),
        ("run", "u/me/a b", "u/me/a b"),
        ("grace", "0.5", 0.5),
        ("executables", "a+b", ["a", "b"]),
        ("cache", "/tmp/a b", "/tmp/a b"),
    ],
)
def test_option(name, value, read):
    arguments = runner.Arguments([HEX, "j", "/a/", "-", "-", runner.encode_option(name, value)])
    assert arguments[name] == read


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["j"], "1 arguments instead of 5"),
        ([HEX, "j", "/a", "-", "-", "more"], "6 arguments instead of 5"),
        (["xyz", "j", "/a", "-", "-"], "not in hexadecimal"),
        ([HEX, "j", "/a", "noname", "-"], "'noname'"),
        ([HEX, "j", "/a", "k:../x", "-"], "'../x'"),
        ([HEX, "j", "/a", "k:/etc/passwd", "-"], "'/etc/passwd'"),
        ([HEX, "j", "/a", "k:a+k:b", "-"], "given twice"),
        ([HEX, "j", "/a", "-", "-", "--nope=1"], "no option --nope"),
        ([HEX, "j", "/a", "-", "-", "--grace"], "--name=value"),
        ([HEX, "j", "/a", "-", "-", "--grace=soon"], "--grace cannot be 'soon'"),
        ([HEX, "j", "/a", "-", "-", "--grace=-1"], "--grace cannot be '-1'"),
        ([HEX, "j", "/a", "-", "-", "--parameters=isr"], "--parameters cannot be 'isr'"),
        ([HEX, "j", "/a", "-", "-", "--parameters=isr@0"], "--parameters cannot be 'isr@0'"),
        ([HEX, "j", "/a", "-", "-", "--keep-tokens=maybe"], "one of no, yes"),
        ([HEX, "j", "/a", "-", "-", "--attempt=-1"], "not negative"),
    ],
)
def test_misunderstood(arguments, part):
    with pytest.raises(ValueError, match="(?s).") as caught:
        runner.Arguments(arguments)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "names", ["../x", "/x", "", "a//b", "a/./b", "a/..", ".", "a\0b", "/", "a//"], ids=lambda name: repr(name)
)
def test_names_that_cannot_be_staged(names):
    with pytest.raises(ValueError, match="is not a relative path"):
        runner.encode_files([("k", names)])


def test_option_that_there_is_not():
    with pytest.raises(ValueError, match="no option --nope"):
        runner.encode_option("nope", "1")
    with pytest.raises(ValueError, match="cannot be"):
        runner.encode_option("prmon", "perhaps")


def test_nul_and_empty_are_refused():
    with pytest.raises(ValueError, match="NUL"):
        runner.encode_command("a\0b")
    with pytest.raises(ValueError, match="fileDistributionEndPoint"):
        runner.encode_area("")
    with pytest.raises(ValueError, match="empty key"):
        runner.encode_direct(["a", ""])


def test_exit_codes_are_nobody_elses():
    # 1 and 2 are payloads', PanDA's pilot reads 2, 3, 64, 251 and 255 in its way, shells have 126 and up.
    assert not set(runner.EXIT_CODES) & ({0, 1, 2, 3, 64} | set(range(126, 256)))
    constants = {
        value for name, value in vars(runner).items() if name.startswith("EXIT_") and name != "EXIT_CODES"
    }
    assert constants == set(runner.EXIT_CODES)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("isr:12x", True),
        ("isr:", True),
        ("isr", True),
        ("isr:-1", True),
        ("isr:eventservice_^1", False),
        ("isr:eventservice_4", False),
        ("isr:orderIdMap_x", False),
        ("name+novalue", False),
    ],
)
def test_pseudo_input_that_is_none(text, short):
    with pytest.raises(ValueError, match="pseudo-input"):
        runner.parse_input(text, short=short)


def test_plain_input_of_the_previous_plugin():
    job = runner.parse_input("isr_1+qgraphNodeId:u1,u2+qgraphId:7:8+empty:")
    assert (job.kind, job.values) == ("plain", {"qgraphNodeId": "u1,u2", "qgraphId": "7:8", "empty": ""})
    assert runner.parse_input("pure_pseudoinput+qgraphNodeId:+qgraphId:").values == {
        "qgraphNodeId": "",
        "qgraphId": "",
    }


def test_sane_names_look_as_the_previous_plugin_writes_them():
    values = [("qgraphNodeId", "0c8d-11,0c8d-12"), ("qgraphId", "171.5")]
    text = runner.render_plain_input("isr_HSC_1", values)
    assert text == "isr_HSC_1+qgraphNodeId:0c8d-11,0c8d-12+qgraphId:171.5"
    assert (
        runner.encode_files([("butlerConfig", "butler.yaml"), ("d", "t/")]) == "butlerConfig:butler.yaml+d:t/"
    )
    assert runner.encode_area("https://host:80/a_b/") == "https://host:80/a_b/"


@pytest.mark.parametrize(
    ("options", "environment", "number"),
    [
        ((), {}, 0),
        ((), {b"PanDA_AttemptNr": b"1"}, 0),
        ((), {b"PanDA_AttemptNr": b"3", b"PANDAID": b"7"}, 2),
        ((), {b"PanDA_AttemptNr": b"0"}, 0),
        ((), {b"PanDA_AttemptNr": b"unknown", b"PANDAID": b"unknown"}, 0),
        (("--attempt=4",), {b"PanDA_AttemptNr": b"2"}, 4),
    ],
)
def test_attempt_that_is_told(options, environment, number, tmp_path):
    arguments = runner.Arguments(["", "isr:1", runner.encode_area(str(tmp_path)), "-", "-", *options])
    assert runner.Attempts(arguments, environment).number() == number
    assert not list(tmp_path.iterdir())
