"""Names of tasks and restarts are read as they were written; parameters travel in pieces of bounded size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowGroup, GenericWorkflowJob
from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner
from lsst.ctrl.bps.panda.plan.graph import labels_of, levels_of
from lsst.ctrl.bps.panda.plan.model import NamingKind, PlanSettings, RunIdentity
from lsst.ctrl.bps.panda.plan.naming import (
    BUILD_LABEL,
    BUILD_TASK,
    MAX_JOBS_PER_SHARD,
    MAX_SHORT_LABEL,
    MAX_TASK_NAME,
    SHARD_SIZE,
    NamedJobs,
    collection_name,
    label_of_collection,
    label_of_task,
    make_naming,
    ordinal_of_task,
    printable,
    printable_label,
    restart_name,
    run_of_task,
    split_server_name,
    task_name,
)

RUN = "u_ann_pay_20261120T120000Z"
WORDS = st.text("abcXYZ019_.-", min_size=1, max_size=40)
SETTINGS = PlanSettings(run=RunIdentity(RUN, "", "", "", "", "", "S", "/s", "/a/", "P", "B"), labels={})


@given(WORDS, st.integers(1, 20000), st.integers(1, 2000), st.integers(0, 3))
def test_a_task_name_is_read_as_it_was_written(label, ordinal, chunk, restarts):
    run = restart_name(RUN, restarts) if restarts else RUN
    name = task_name(run, ordinal, label, chunk)
    assert label_of_task(name, run) == label
    assert ordinal_of_task(name, run) == ordinal
    assert split_server_name(f"{name}_41_7") == (name, 7)
    # The time stamp at its end tells where an unknown run's name ends.
    assert label_of_task(name, "") == label
    assert ordinal_of_task(name, "") == ordinal


@pytest.mark.parametrize("label", ["isr", "measure_2_stars", "x"])
def test_the_run_of_a_task_is_found_in_its_name(label):
    assert run_of_task(task_name(RUN, 3, label, 12)) == RUN
    assert run_of_task(f"{RUN}_{BUILD_TASK}") == RUN
    assert run_of_task("something else") == "something else"


@given(st.text(min_size=1, max_size=30), st.integers(1, 20000))
def test_a_label_that_a_task_name_cannot_hold_travels_in_its_collection(label, number):
    carried = label_of_collection(collection_name(number, label))
    assert (carried or label_of_task(task_name(RUN, number, label, 1), RUN)) == label
    assert carried == "" or carried != label_of_task(task_name(RUN, number, label, 1), RUN)


def test_a_collection_that_carries_no_label_or_one_that_is_too_long():
    assert collection_name(4, "isr") == "pseudo_input_collection#4"
    assert collection_name(4, "l+1") == "pseudo_input_collection#4#l%2B1"
    assert collection_name(4, "\u00fc" * 90) == "pseudo_input_collection#4"
    assert label_of_collection("some#other#name") == label_of_collection("") == ""


@pytest.mark.parametrize("run", ["u_ann_plus+a", "name: with \u00fc", "r" * 300])
def test_a_run_name_that_a_task_name_cannot_hold_is_found_in_it(run):
    name = task_name(run, 3, "isr", 12)
    assert (label_of_task(name, run), ordinal_of_task(name, run)) == ("isr", 3)


def test_a_task_that_idds_submitted_again_has_one_number_more():
    assert split_server_name("run_02_isr_01_19_75", 19) == ("run_02_isr_01", 75)
    assert split_server_name("run_02_isr_01_19_75_1", 19) == ("run_02_isr_01", 75)


def test_a_name_without_the_ids_of_idds_has_no_transform():
    assert split_server_name("a_task_12") == ("a_task_12", 0)
    assert split_server_name("by_hand") == ("by_hand", 0)


def test_the_build_task_comes_first_and_a_strange_one_last():
    assert ordinal_of_task(BUILD_TASK, RUN) < ordinal_of_task(task_name(RUN, 1, "isr", 1), RUN)
    assert ordinal_of_task("strange", RUN) > ordinal_of_task(task_name(RUN, 9999, "isr", 1), RUN)
    assert label_of_task(f"{RUN}_{BUILD_TASK}", RUN) == label_of_task(BUILD_TASK, RUN) == BUILD_LABEL
    assert label_of_task("a:b;c", RUN) == "a_b_c"
    assert label_of_task("", RUN) == "unknown"


@pytest.mark.parametrize("size", [MAX_TASK_NAME - 11, MAX_TASK_NAME - 10, 400])
def test_a_task_name_has_a_limit_and_stays_unique(size):
    long = "r" * size
    names = {task_name(long + end, 1, "isr", 1) for end in ("", "a", "b")}
    assert len(names) == 3
    assert all(len(name) <= MAX_TASK_NAME for name in names)
    assert (f"{long}_01_isr_01" in names) == (size + 10 <= MAX_TASK_NAME)


@pytest.mark.parametrize("label", ["a" * MAX_SHORT_LABEL, "a" * (MAX_SHORT_LABEL + 1), "a b", "ä"])
def test_labels_in_pseudo_inputs_are_short_harmless_and_unique(label):
    naming = make_naming(SETTINGS, event_service=False)
    (name,) = naming.pseudo_inputs(NamedJobs(label, ["j"]))
    (other,) = naming.pseudo_inputs(NamedJobs(label + "x", ["j"]))
    assert name != other
    assert len(name) <= MAX_SHORT_LABEL + 2
    assert runner.parse_input(name, short=True).order_id == 0
    assert (name == f"{label}:0") == (label == "a" * MAX_SHORT_LABEL)


def make_jobs(count: int, keys: int, size: int) -> NamedJobs:
    """Make jobs with values of one size."""
    jobs = NamedJobs("isr")
    names = tuple(f"k{number}" for number in range(keys))
    jobs.extend([f"j{number}" for number in range(count)], names, [tuple(["v" * size] * keys)] * count)
    return jobs


@pytest.mark.parametrize(("keys", "size"), [(1, 1), (1, 40), (50, 1), (50, 100), (1, 60_000), (3, 50_000)])
def test_shards_are_of_bounded_size(keys, size):
    jobs = make_jobs(6000 if size < 1000 else 5, keys, size)
    shards = make_naming(SETTINGS, event_service=False).files([jobs])
    assert jobs.per_shard <= MAX_JOBS_PER_SHARD
    one_job = keys * (size + 20)
    assert all(len(shard.text) <= max(SHARD_SIZE, one_job) + 1000 for shard in shards)
    assert len(shards) == -(-len(jobs.names) // jobs.per_shard)
    if jobs.per_shard not in (1, MAX_JOBS_PER_SHARD):
        assert max(len(shard.text) for shard in shards) > SHARD_SIZE / 3, "shards are not too small"
    last = len(jobs.names) - 1
    assert runner.find_in_shard(shards[last // jobs.per_shard].text, last)["k0"] == "v" * size


def test_jobs_of_a_label_may_differ_in_their_values():
    jobs = NamedJobs("isr")
    jobs.extend(["a"], ("x", "y"), [("1", "2")])
    jobs.extend(["b"], ("y", "z"), [("3", "4")])
    assert jobs.keys == ("x", "y", "z")
    assert list(jobs.rows(("x", "z", "y"))) == [("1", "", "2"), ("", "4", "3")]


@pytest.mark.parametrize(
    ("kind", "event_service", "start"),
    [
        (NamingKind.SHORT, False, "isr:0"),
        (NamingKind.SHORT, True, "isr:0"),
        (NamingKind.PLAIN, False, "j+"),
        (NamingKind.PLAIN, True, "isr:orderIdMap_0"),
        (NamingKind.QNODE_MAP, False, "PH:j"),
        (NamingKind.QNODE_MAP, True, "isr:orderIdMap_0"),
        (NamingKind.ORDER_ID_MAP, False, "isr:orderIdMap_0"),
    ],
)
def test_event_service_needs_names_by_order_id(kind, event_service, start):
    settings = PlanSettings(run=SETTINGS.run, labels={}, naming=kind)
    jobs = NamedJobs("isr")
    jobs.extend(["j"], ("x",), [("1",)])
    (name,) = make_naming(settings, event_service=event_service).pseudo_inputs(jobs)
    assert name.startswith(start)


def test_labels_are_found_in_groups_and_in_the_final_workflow():
    workflow = GenericWorkflow("u_run")
    workflow.add_job(GenericWorkflowJob("a", "isr"))
    group = GenericWorkflowGroup("g", "order")
    group.add_job(GenericWorkflowJob("b", "inside"))
    workflow.add_job(group)
    final = GenericWorkflow("final")
    final.add_job(GenericWorkflowJob("c", "end"))
    workflow.add_final(final)
    assert labels_of(levels_of(workflow)) == ["end", "inside", "isr", "order"]
    assert [level.name for level, _ in levels_of(workflow)] == ["u_run", "final", "g"]


@given(st.text(st.characters(), max_size=30))
def test_any_text_can_be_printed(text):
    assert printable(text).isascii()
    assert printable(text).isprintable()
    assert not {":", ";"} & set(printable_label(text))


def test_letters_lose_their_accents_and_the_rest_is_escaped():
    assert printable("Jürgen Ærø\n\u2603") == "Jurgen AEro\\n\\u2603"
