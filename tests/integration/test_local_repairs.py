"""Repairs of iDDS, each with a test that fails without it: in a process of its
own, with iDDS's tables and without its agents.
"""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

_BEGIN = """
import os, sys, threading
from pathlib import Path
from lsst.ctrl.bps.panda.local import idds_repairs
from lsst.ctrl.bps.panda.local.idds_host import IddsHost
from lsst.ctrl.bps.panda.local.settings import TIMINGS

directory = Path(sys.argv[1])
host = IddsHost(directory, database=f"sqlite:///{directory}/idds.db", timing=TIMINGS["quick"])
os.environ.update(host.environment())
os.environ.pop("IDDS_CLIENT_MODE", None)
host.prepare()

from idds.common import constants
from idds.orm import processings, requests, transforms
from idds.orm.base import models
from idds.orm.base.session import transactional_session

ROWS = 3

@transactional_session
def fill(session=None):
    for number in range(1, ROWS + 1):
        session.add(models.Request(
            request_id=number, scope="s", name=f"r{number}", requester="me", status=2, substatus=0, locking=0,
            request_type=constants.RequestType.Workflow))
    session.flush()
    for number in range(1, ROWS + 1):
        session.add(models.Transform(
            transform_id=number, request_id=number, name=f"t{number}", status=2, substatus=0, locking=0,
            transform_type=constants.TransformType.Workflow))
    session.flush()
    for number in range(1, ROWS + 1):
        session.add(models.Processing(
            processing_id=number, request_id=number, transform_id=number, status=2, substatus=0, locking=0,
            processing_type=constants.ProcessingType.Workflow,
            granularity_type=constants.GranularityType.File))

@transactional_session
def locked(table, session=None):
    return session.query(table).filter(table.locking != 0).count()

fill()
"""
_END = """
sys.stdout.flush()
# Threads of agents that were made would go on.
os._exit(0)
"""


def _run(tmp_path, code):
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + textwrap.dedent(code) + _END, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        env={key: value for key, value in os.environ.items() if not key.startswith(("IDDS_", "PANDA_"))},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("kind", ["request", "transform", "processing"])
def test_two_threads_never_take_the_same_row(tmp_path, kind):
    # Whoever has found rows waits for the other one before it locks them.
    taken = _run(
        tmp_path,
        f"""
        from idds.core import processings as core_processings, requests as core_requests
        from idds.core import transforms as core_transforms
        orm, core = {kind}s, core_{kind}s
        both = threading.Barrier(2)
        who = orm.get_process_thread_info

        def wait():
            try:
                both.wait(timeout=1)
            except threading.BrokenBarrierError:
                pass
            return who()

        orm.get_process_thread_info = wait
        status = [constants.{kind.capitalize()}Status(2)]

        def take_many():
            found = core.get_{kind}s_by_status{"_type" if kind == "request" else ""}(
                status=status, locking=True, min_request_id=1)
            print(*[row["{kind}_id"] for row in found])

        def take_one():
            found = core.get_{kind}_by_id_status({kind}_id=2, locking=True)
            print(*([found["{kind}_id"]] if found else []))

        threads = [threading.Thread(target=target) for target in (take_many, take_one)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """,
    )
    assert sorted(taken) == ["1", "2", "3"]


def test_a_request_that_is_built_is_not_building_again(tmp_path):
    """The clerk had read the request before the build task brought its workflow."""
    assert _run(
        tmp_path,
        """
        from idds.core import requests as core_requests
        from idds.common.constants import RequestStatus
        for before in (RequestStatus.Building, RequestStatus.Transforming):
            core_requests.update_request(1, {"status": before})
            core_requests.update_request(1, {"status": RequestStatus.Built})
            changes = {"status": before, "update_retries": 7}
            core_requests.update_request_with_transforms(1, changes, origin_status=before)
            found = core_requests.get_request(request_id=1)
            print(found["status"].name, found["update_retries"])
        core_requests.update_request_with_transforms(
            1, {"status": RequestStatus.Transforming}, origin_status=RequestStatus.Built)
        print(core_requests.get_request(request_id=1)["status"].name)
        """,
    ) == ["Built", "7", "Built", "7", "Transforming"]


def test_agents_that_start_leave_the_locks_of_those_that_work(tmp_path):
    counts = _run(
        tmp_path,
        """
        from idds.agents.clerk.clerk import Clerk
        from idds.agents.transformer.transformer import Transformer
        from idds.agents.carrier.poller import Poller
        from idds.core import processings as core_processings, requests as core_requests
        from idds.core import transforms as core_transforms
        assert core_requests.get_request_by_id_status(request_id=1, locking=True)
        assert core_transforms.get_transform_by_id_status(transform_id=1, locking=True)
        assert core_processings.get_processing_by_id_status(processing_id=1, locking=True)
        for kind in (Clerk, Transformer, Poller):
            kind().clean_locks(force=True)
        print(*(locked(table) for table in (models.Request, models.Transform, models.Processing)))
        # What a server that was killed had locked, the next one unlocks.
        idds_repairs.unlock_everything()
        print(*(locked(table) for table in (models.Request, models.Transform, models.Processing)))
        """,
    )
    assert counts == ["1", "1", "1", "0", "0", "0"]


def test_messages_are_read_after_one_that_failed(tmp_path):
    said = _run(
        tmp_path,
        """
        from idds.agents.carrier import utils

        def fail(**options):
            raise RuntimeError("the database is away")

        stock = utils.core_processings.get_processings_by_status
        utils.core_processings.get_processings_by_status = fail
        try:
            utils.get_workload_id_transform_id_map(7)
        except RuntimeError as error:
            print("failed")
        utils.core_processings.get_processings_by_status = lambda **options: []
        other = threading.Thread(target=lambda: print(utils.get_workload_id_transform_id_map(8)), daemon=True)
        other.start()
        other.join(20)
        print("blocked" if other.is_alive() else "read")
        """,
    )
    assert said == ["failed", "None", "read"]


def test_news_of_a_job_do_not_go_back(tmp_path):
    # A job that is ready and finished within a moment, one whose end is told
    # before its beginning, and messages that come again after a restart.
    states = _run(
        tmp_path,
        """
        from idds.core import catalog
        status = constants.ContentStatus

        def known_as(job):
            return {"content_metadata": {"panda_id": job}}

        def tell(*news):
            catalog.add_contents_update([
                {"content_id": number, "request_id": 1, "transform_id": 1, "workload_id": 1,
                 "substatus": getattr(status, name), **(known_as(job) if job else {})}
                for number, name, job in news])

        def show():
            rows = catalog.get_contents_update(request_id=1)
            print(*(f"{row['content_id']}{row['substatus'].name}{row['content_metadata']['panda_id']}"
                    for row in sorted(rows, key=lambda row: row["content_id"])))

        tell((1, "Activated", 11), (2, "Activated", 12))
        tell((1, "Available", None), (3, "Activated", 13), (3, "Available", None))
        tell((2, "Activated", 22), (1, "Activated", None))
        show()

        @transactional_session
        def finish(session=None):
            session.query(models.Content_update).delete()
            session.add(models.Collection(
                coll_id=1, request_id=1, transform_id=1, name="c", scope="s", status=0, locking=0,
                relation_type=constants.CollectionRelationType.Output,
                coll_type=constants.CollectionType.Dataset))
            session.flush()
            for number in (1, 2):
                session.add(models.Content(
                    content_id=number, request_id=1, transform_id=1, coll_id=1, map_id=number, scope="s",
                    name=str(number), content_type=constants.ContentType.File, locking=0,
                    content_relation_type=constants.ContentRelationType.Output,
                    external_event_status=status.New,
                    status=status.Available if number == 1 else status.Failed,
                    substatus=status.Available if number == 1 else status.Failed))

        finish()
        tell((1, "Activated", 11), (2, "Activated", 32))
        show()
        """,
    )
    assert states == ["1Available11", "2Activated22", "3Available13", "2Activated32"]


def test_an_abort_reaches_what_is_made_after_it(tmp_path):
    made = _run(
        tmp_path,
        """
        import types
        from idds.agents.clerk.clerk import Clerk
        from idds.agents.common.eventbus.eventbus import EventBus
        from idds.common.event import EventType
        from idds.orm import commands
        kinds = constants.CommandType
        clerk = types.SimpleNamespace(is_ok_to_run_more_requests=lambda: False)

        def aborted():
            Clerk.get_operation_requests(clerk)
            events = EventBus().get(EventType.AbortProcessing, num_events=10)
            return [event._processing_id for event in events]

        def command(kind):
            commands.add_command(kind, constants.CommandStatus.Processed, 2, None, None)

        def make():
            for request_id in (1, 2):
                transform = transforms.add_transform(
                    request_id=request_id, workload_id=None, transform_type=constants.TransformType.Workflow)
                processing = processings.add_processing(
                    request_id=request_id, workload_id=None, transform_id=transform)
                print(request_id, transforms.get_transform(transform_id=transform)["command"].name,
                      processings.get_processing(processing_id=processing)["command"].name)

        command(kinds.AbortRequest)
        make()
        found = aborted()
        print(found == [processings.get_processings(request_id=2)[-1]["processing_id"]], found == aborted())
        processings.update_processing(found[0], {"status": constants.ProcessingStatus.Cancelled})
        command(kinds.ResumeRequest)
        make()
        print(len(aborted()))
        """,
    )
    nothing = ["NoneCommand", "NoneCommand"]
    aborted = ["AbortTransform", "AbortProcessing"]
    assert made == ["1", *nothing, "2", *aborted, "True", "True", "1", *nothing, "2", *nothing, "0"]


def test_a_command_that_is_done_is_not_begun_again(tmp_path):
    states = _run(
        tmp_path,
        """
        import datetime
        from idds.agents.clerk import clerk
        from idds.orm import commands
        status = constants.CommandStatus

        for request_id in (1, 2):
            commands.add_command(
                constants.CommandType.ResumeRequest, status.New, request_id, None, None)

        @transactional_session
        def age(session=None):
            session.query(models.Command).update({"updated_at": datetime.datetime(2026, 1, 1)})

        age()
        agent = clerk.Clerk()
        agent.is_ok_to_run_more_requests = lambda: True
        # A worker that has done its command before the clerk goes on.
        done = {"cmd_id": 1, "status": status.Processed, "locking": constants.CommandLocking.Idle}
        agent.submit = lambda function, request, command: (
            clerk.core_commands.update_commands([done]) if command == 1 else None)
        agent.get_operation_requests()

        @transactional_session
        def show(session=None):
            for row in session.query(models.Command).order_by(models.Command.cmd_id):
                print(row.cmd_id, row.status.name, row.locking.name)

        show()
        """,
    )
    assert states == ["1", "Processed", "Idle", "2", "Processing", "Idle"]


def test_what_has_no_news_is_polled_less_and_less_and_news_end_that(tmp_path):
    periods = _run(
        tmp_path,
        """
        from datetime import timedelta
        from lsst.ctrl.bps.panda.local.idds_repairs import tuning
        from idds.agents.carrier.poller import Poller
        from idds.orm import processings as orm
        from idds.core import processings as core_processings
        from idds.orm.base.session import read_session

        @transactional_session
        def begin(session=None):
            for table in (models.Transform, models.Processing):
                session.query(table).filter(table.transform_id == 1).update({"workload_id": 7})
            for table in (models.Request, models.Transform, models.Processing):
                session.query(table).update({"update_poll_period": timedelta(seconds=1)})

        @read_session
        def rows(number, session=None):
            found = (session.query(models.Request).filter_by(request_id=number),
                     session.query(models.Transform).filter_by(transform_id=number),
                     session.query(models.Processing).filter_by(processing_id=number))
            return [int(query.one().update_poll_period.total_seconds()) for query in found]

        def poll():
            row = core_processings.get_processing(processing_id=1)
            parameters = poller.load_poll_period(row, {})
            orm.update_processing(processing_id=1, parameters=parameters)
            print(rows(1)[2])

        begin()
        poller = Poller()
        for _ in range(5):
            poll()

        @transactional_session
        def rest(session=None):
            for table in (models.Request, models.Transform, models.Processing):
                session.query(table).update({"update_poll_period": timedelta(seconds=10)})

        rest()
        finished = {"msg_type": "job_status", "taskid": 7, "status": "finished"}
        tuning.NEWS.note([finished])
        print(*rows(1))
        tuning.NEWS.note([{**finished, "status": "failed"}])
        print(*rows(1), *rows(2))
        # As long as that is news, it stays so.
        poll()
        """,
    )
    assert periods[:5] == ["2", "4", "8", "10", "10"]
    assert periods[5:8] == ["10", "10", "10"]
    assert periods[8:] == ["1", "1", "1", "10", "10", "10", "1"]


def test_only_what_waits_for_an_output_that_has_come_is_triggered(tmp_path):
    found = _run(
        tmp_path,
        """
        from lsst.ctrl.bps.panda.local.idds_repairs import tuning
        kinds, states = constants.ContentRelationType, constants.ContentStatus

        def content(number, transform, kind, status, dependency=None):
            return models.Content(
                content_id=number, request_id=1, transform_id=transform, coll_id=transform, map_id=number,
                scope="s", name=f"c{number}", min_id=0, max_id=1, content_type=0, status=status,
                substatus=status, content_relation_type=kind, content_dep_id=dependency,
                locking=constants.ContentLocking.Idle, bytes=0, retries=0,
                external_event_status=constants.ContentStatus.New)

        @transactional_session
        def begin(session=None):
            for number in (2, 3):
                for table in (models.Transform, models.Processing):
                    session.query(table).filter(table.transform_id == number).update(
                        {"workload_id": number, "request_id": 1})
            session.add_all(models.Collection(
                coll_id=number, request_id=1, transform_id=number, relation_type=0, coll_type=0, status=0,
                locking=0, scope="s", name=f"c{number}") for number in (1, 2, 3))
            session.flush()
            session.add(content(1, 1, kinds.Output, states.Available))
            session.add(content(2, 1, kinds.Output, states.Activated))
            session.add(content(3, 2, kinds.InputDependency, states.New, 1))
            session.add(content(4, 3, kinds.InputDependency, states.New, 2))

        @transactional_session
        def release(session=None):
            session.query(models.Content).filter_by(content_id=3).update({"substatus": states.Available})

        @transactional_session
        def finish(session=None):
            session.query(models.Content).filter_by(content_id=2).update({"substatus": states.FinalFailed})

        begin()
        print(tuning._dependent_processings(1, 1))
        release()
        print(tuning._dependent_processings(1, 1))
        finish()
        print(tuning._dependent_processings(1, 1))
        """,
    )
    assert found == ["[2]", "[]", "[3]"]


def test_news_of_a_task_are_looked_at_at_once_and_counts_are_gathered(tmp_path):
    events = _run(
        tmp_path,
        """
        import time
        from lsst.ctrl.bps.panda.local.idds_repairs import tuning
        from idds.agents.common.eventbus.eventbus import EventBus
        from idds.common.event import EventType, SyncProcessingEvent
        from idds.rest.v1 import requests as rest

        @transactional_session
        def begin(session=None):
            for table in (models.Transform, models.Processing):
                session.query(table).filter(table.transform_id == 1).update({"workload_id": 7})

        def waiting(kind):
            return len(EventBus().get(kind, num_events=100))

        begin()
        tuning.NEWS.note([{"msg_type": "job_status", "taskid": 7, "status": "finished"}])
        print(waiting(EventType.UpdateProcessing))
        tuning.NEWS.note([{"msg_type": "task_status", "taskid": 7, "status": "done"}])
        print(waiting(EventType.UpdateProcessing))
        for processing_id in (1, 1, 2, 1):
            EventBus().send(SyncProcessingEvent(processing_id=processing_id))
        print(waiting(EventType.SyncProcessing))
        end = time.monotonic() + 20
        count = 0
        while count < 2 and time.monotonic() < end:
            time.sleep(0.05)
            count += waiting(EventType.SyncProcessing)
        print(count)
        EventBus().send(SyncProcessingEvent(processing_id=1))
        while count < 3 and time.monotonic() < end:
            time.sleep(0.05)
            count += waiting(EventType.SyncProcessing)
        print(count)
        new = rest.add_request(scope="s", name="new", requester="me", status=constants.RequestStatus.New,
                               request_type=constants.RequestType.Workflow, request_metadata={})
        print(new == EventBus().get(EventType.NewRequest)[0]._request_id)
        """,
    )
    assert events == ["0", "1", "0", "2", "3", "True"]


def test_works_are_read_as_by_idds_itself(tmp_path):
    same = _run(
        tmp_path,
        """
        import ast, inspect, json
        from idds.common import dict_class, utils
        from idds.core import transforms as core
        from idds.orm import collections as orm_collections, transforms as orm_transforms
        from idds.doma.workflowv2.domapandawork import DomaPanDAWork
        kinds = constants.CollectionRelationType

        inputs = [{"name": "a:0", "order_id": 0, "dependencies": []}]
        work = DomaPanDAWork(task_name="one", dependency_map=inputs)
        text = utils.json_dumps({"work": work, "plain": [1, 2.5, True, None, "x", {"y": [0, ""]}]})
        again = utils.json_loads(text)
        print(type(again["work"]).__name__)
        before, after = json.loads(text), json.loads(utils.json_dumps(again))
        print(before["plain"] == after["plain"])
        before, after = before["work"]["attributes"], after["work"]["attributes"]
        # iDDS puts a mark on enumerations that it reads.
        print(*{key for key in (*before, *after) if before.get(key) != after.get(key)})

        @transactional_session
        def fill_more(session=None):
            for number in (1, 2):
                transform = session.query(models.Transform).filter_by(transform_id=number).one()
                transform.request_id, transform.transform_metadata = 1, {"work_name": f"t{number}"}
                for kind in (kinds.Input, kinds.Output, kinds.Log):
                    session.add(models.Collection(
                        request_id=1, transform_id=number, workload_id=number, scope="s",
                        name=f"{kind.name}{number}", relation_type=kind, coll_type=0, status=0, substatus=0,
                        locking=0))

        fill_more()
        # The function of iDDS itself, as its file has it.
        tree = ast.parse(open(core.__file__).read())
        tree.body = [each for each in tree.body if getattr(each, "name", "") == "get_work_name_to_coll_map"]
        stock = dict(core.__dict__)
        exec(compile(tree, "stock", "exec"), stock)
        expected = stock["get_work_name_to_coll_map"](request_id=1)
        print(len(expected), expected == core.get_work_name_to_coll_map(request_id=1))
        """,
    )
    assert same == ["DomaPanDAWork", "True", "work_type", "2", "True"]
