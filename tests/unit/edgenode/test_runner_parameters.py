"""The runner finds a job's parameters, however its pseudo-input names it."""

import json

import pytest

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

NAMES = ("qgraphNodeId", "exposure")


@pytest.fixture
def area(tmp_path, monkeypatch):
    """An area with shards of 10 jobs, and maps; the current directory is another."""
    folder = tmp_path / "area"
    for label in ("isr", "a b/c"):
        for index in range(3):
            path = folder / runner.shard_name(label, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [(f"{label}-{index * 10 + n}", f"x{n} y") for n in range(10 if index < 2 else 5)]
            path.write_text(runner.render_shard(NAMES, index * 10, rows))
    order_ids = {
        "isr": {"40": "isr_40+qgraphNodeId:u40+qgraphId:7", "41": "isr_41+qgraphNodeId:u41+qgraphId:7"}
    }
    (folder / "panda_order_id_map.json").write_text(json.dumps(order_ids))
    names = {"PH:isr_7": "isr_7+qgraphNodeId:u7,u8+qgraphId:7"}
    (folder / "qnode_map.json").write_text(json.dumps(names))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


def find(area, text, *options, files=(), direct=()):
    arguments = runner.Arguments(
        ["00", text, str(area), runner.encode_files(files), runner.encode_direct(direct)]
        + [runner.encode_option(name, value) for name, value in options]
    )
    fetcher = runner.Fetcher(arguments, sleep=lambda seconds: None)
    runner.deliver(arguments, fetcher)
    return runner.find_values(arguments, fetcher)


SHARDS = ("parameters", "isr@10")
ORDER_IDS = [("orderIdMapFilename", "panda_order_id_map.json")]
QNODES = [("qnodemap", "qnode_map.json")]


@pytest.mark.parametrize("order_id", [0, 9, 10, 19, 24])
def test_short(area, order_id):
    values = {"qgraphNodeId": f"isr-{order_id}", "exposure": f"x{order_id % 10} y"}
    assert find(area, f"isr:{order_id}", SHARDS) == values


def test_odd_label(area):
    label = "a b/c"
    option = ("parameters", runner.safe_label(label) + "@10")
    assert find(area, runner.render_short_input(label, 12), option)["qgraphNodeId"] == "a b/c-12"


def test_event_service_with_shards(area):
    assert find(area, "isr:eventservice_10^3", SHARDS)["qgraphNodeId"] == "isr-12"


@pytest.mark.parametrize("text", ["isr:3", "isr:eventservice_0^4", "PH:3"])
def test_jobs_without_parameters(area, text):
    assert find(area, text, ("parameters", "none")) == {}
    if "event" not in text:
        assert find(area, text) == {}


def test_own_values_win(area):
    assert find(area, "isr:3+exposure:mine", SHARDS) == {"qgraphNodeId": "isr-3", "exposure": "mine"}


@pytest.mark.parametrize("direct", [(), ("orderIdMapFilename",)])
@pytest.mark.parametrize("text", ["isr:orderIdMap_41", "isr:eventservice_40^2", "isr:eventservice_41^1^1"])
def test_order_id_map(area, text, direct):
    assert find(area, text, files=ORDER_IDS, direct=direct) == {"qgraphNodeId": "u41", "qgraphId": "7"}


def test_order_id_map_that_is_here_is_not_fetched_again(area):
    find(area, "isr:orderIdMap_41", files=ORDER_IDS)
    (area / "panda_order_id_map.json").unlink()
    assert find(area, "isr:orderIdMap_40", files=ORDER_IDS)["qgraphNodeId"] == "u40"


@pytest.mark.parametrize("direct", [(), ("qnodemap",)])
def test_map_of_names(area, direct):
    assert find(area, "PH:isr_7", files=QNODES, direct=direct) == {"qgraphNodeId": "u7,u8", "qgraphId": "7"}


def test_plain(area):
    assert find(area, "isr_1+qgraphNodeId:u1+qgraphId:") == {"qgraphNodeId": "u1", "qgraphId": ""}


@pytest.mark.parametrize(
    ("text", "options", "files", "part"),
    [
        ("isr:25", [SHARDS], [], "order id 25 is not among 20 to 24"),
        ("isr:x", [SHARDS], [], "'x' is not a number"),
        ("coadd:1", [SHARDS], [], "label 'isr'"),
        ("isr:orderIdMap_41", [], [], "no file 'orderIdMapFilename'"),
        ("isr:orderIdMap_42", [], ORDER_IDS, "'42' is not in the map"),
        ("coadd:orderIdMap_42", [], ORDER_IDS, "'coadd' is not in the map"),
        ("isr:eventservice_40^9", [], ORDER_IDS, "'48' is not in the map"),
        ("PH:isr_8", [], QNODES, "'PH:isr_8' is not in the map"),
        ("PH:isr_7", [], [], "qnode_map.json"),
    ],
)
def test_not_found(area, text, options, files, part):
    with pytest.raises(
        runner.FailureError, match=f"no parameters for {text!r}".replace("^", r"\^")
    ) as caught:
        find(area, text, *options, files=files)
    assert caught.value.code == runner.EXIT_PARAMETERS
    assert part in str(caught.value)


def test_missing_shard_is_a_missing_file(area):
    with pytest.raises(runner.FailureError, match="job_parameters/isr/000099.json") as caught:
        find(area, "isr:999", SHARDS)
    assert caught.value.code == runner.EXIT_MISSING


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1}', "{"])
def test_shard_that_is_none(area, text):
    (area / runner.shard_name("isr", 0)).write_text(text)
    with pytest.raises(runner.FailureError, match="no parameters for 'isr:1'"):
        find(area, "isr:1", SHARDS)


def test_truncated_shard_is_damaged(area):
    path = area / runner.shard_name("isr", 0)
    entry = {runner.shard_name("isr", 0): {"size": path.stat().st_size, "adler32": None}}
    (area / runner.MANIFEST).write_text(json.dumps({"format": 1, "files": entry}))
    path.write_text(path.read_text()[:-10])
    with pytest.raises(runner.FailureError, match="bytes instead of") as caught:
        find(area, "isr:1", SHARDS)
    assert caught.value.code == runner.EXIT_DAMAGED


def test_rows_must_fit_names():
    with pytest.raises(ValueError, match="order id 6: 1 values for 2 names"):
        runner.render_shard(["a", "b"], 5, [("1", "2"), ("1",)])


def test_shard_is_small():
    """A worker reads about 100 kB for 1,000 jobs with a node id each, however large the run is."""
    rows = [(f"0190a6b4-7d3e-7c4f-9a1b-{n:012d}",) for n in range(1000)]
    assert len(runner.render_shard(["qgraphNodeId"], 10**6, rows)) < 50_000
