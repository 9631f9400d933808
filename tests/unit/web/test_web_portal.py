"""The portal without a browser: what follows from choices, what is refused, and what it keeps."""

import io
import re
from urllib.parse import urlsplit

import pytest
import yaml
from jsonschema import Draft202012Validator

from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.local.request_bodies import LARGEST_CATALOG
from lsst.ctrl.bps.panda.web.application import make_application
from lsst.ctrl.bps.panda.web.looks import Looks
from lsst.ctrl.bps.panda.web.portal import Portal

NASTY = "<script>alert('x')</script>\"&"
CATALOG = b"ra,dec,g,r\n10.0,5.0,18.0,17.5\n10.001,5.001,19.0,18.5\n"


def _offline():
    raise AssertionError("the portal asks no server")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("portal")


@pytest.fixture(scope="module")
def browser(directory):
    return make_application(Looks(_offline, 1.0), portal=Portal(directory)).test_client()


def read(browser, **choices):
    document = browser.get("/api/portal", query_string=choices).get_json()
    Draft202012Validator(read_schema()).validate(document)
    return document


def token(browser):
    return re.search(r'name="token" value="(\w+)"', browser.get("/portal").text)[1]


def upload(browser, name, content, *, code=303):
    data = {"token": token(browser), "file": (io.BytesIO(content), name)}
    reply = browser.post("/portal/catalog?bands=g,r", data=data)
    assert reply.status_code == code, reply.text
    return reply


def test_all_choices_are_in_the_address(browser):
    choices = {"place": ["62.0,-37.0", "242.0 30.5"], "bands": "g,i", "only": "0,2", "steps": "singleFrame"}
    document = read(browser, **choices)
    assert document["faults"] == {}
    # The link that it gives is the same form, and the same configuration.
    again = browser.get(f"/api/portal?{document['query']}").get_json()
    assert {**again, "choices": 0} == {**document, "choices": 0}
    assert again["choices"]["place"] == ["62.0,-37.0", "242.0,30.5"]
    assert document["quanta"] == {"simulate": 24, "isr": 24, "characterize": 24}
    made = yaml.safe_load(browser.get(f"/portal/portal.yaml?{document['query']}").text)
    assert made["skyOptions"] == "--place 62.0,-37.0 --place 242.0,30.5 --bands g,i"
    assert made["payload"]["dataQuery"] == "instrument='StarCam' AND detector IN (0, 2)"
    assert made["pipelineYaml"].endswith("pipeline.yaml#singleFrame")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("place", "400,0", "place is 400; it must be less than 360"),
        ("place", NASTY, "write right ascension and declination"),
        ("bands", "", "choose from g,r,i,z, each once"),
        ("visits_per_band", "1.5", "visits_per_band is 1.5; it must be a whole number"),
        ("exposure_time", "nan", "it must be a number"),
        ("seeing", "9", "seeing is 9; it must be at most 5"),
        ("only", "4", "there is no detector 4: the camera has 0 to 3"),
        ("steps", "all", "it must be one of 'simulate', 'singleFrame' or 'coadds'"),
        ("detectors", "1000000", "it must be at most 1000"),
        ("catalog", "../../etc/passwd", "which was not uploaded here"),
        ("catalog", "0123456789ab-x.csv", "which was not uploaded here"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(name, value, words, browser):
    assert words in read(browser, **{name: value})["faults"][name]
    page = browser.get("/portal", query_string={name: value})
    assert page.status_code == 200
    answer = re.search(rf'id="answer-{name}"[^>]*>([^<]*)<', page.text)[1]
    assert answer
    assert "<script>" not in page.text
    assert "Launch</button>" not in page.text


def test_too_much_and_what_the_form_does_not_have_are_refused(browser):
    assert "it must be 1 to 900" in read(browser, visits_per_band="300")["faults"][""]
    # No file of this machine can be named.
    for name in ("pointings", NASTY):
        assert "nothing of that name" in "".join(read(browser, **{name: "/etc/passwd"})["faults"].values())


def test_a_large_camera_is_drawn_and_its_detectors_are_kept(browser):
    only = ",".join(map(str, range(160)))
    small = {"bands": "r", "visits_per_band": 1}
    assert read(browser, detectors=189, only=only, **small)["choices"]["only"] == only
    page = browser.get("/portal", query_string={"detectors": 189, "only": "0, 1", **small}).text
    assert page.count('class="detector"') == 189
    assert page.count('aria-checked="true" aria-label="detector ') == 2
    assert "Cameras of up to 196" in browser.get("/portal", query_string={"detectors": 197, **small}).text
    costly = {"detectors": 189, "only": "0", "bands": "g,r,i", "visits_per_band": 300}
    assert "170100 detectors of all visits, of at most 20000" in read(browser, **costly)["faults"][""]


def test_a_catalogue_is_kept_by_what_it_holds(browser, directory):
    reply = upload(browser, "../<b>/my stars.csv", CATALOG)
    query = urlsplit(reply.headers["Location"]).query
    assert re.search(r"catalog=[0-9a-f]{12}-my_stars.csv", query)
    document = browser.get(f"/api/portal?{query}").get_json()
    assert document["faults"] == {}
    assert str(directory / "catalogs") in document["yaml"]
    assert upload(browser, "my stars.csv", CATALOG).headers["Location"] == reply.headers["Location"]
    assert "has no column &#39;i&#39;" in browser.get(f"/portal?{query}".replace("g%2Cr", "r,i")).text
    assert [path.parent for path in directory.rglob("*.csv")] == [directory / "catalogs"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.exe", CATALOG, "x.exe must end in one of .csv"),
        ("x.csv", b"a,b\n1,2\n", "x.csv has no column"),
        ("x.fits", b"no FITS", "x.fits cannot be read as FITS"),
        ("x.csv", b"ra,dec\n-37,95\n", "x.csv: column dec, row 1 is 95; it must be a number at least -90"),
        ("x.csv", b"ra,dec,axis_ratio\n1,2,1.5\n", "axis_ratio, row 1 is 1.5; it must be a number greater"),
        ("x.csv", b"ra,dec\n" + b"1,2\n" * 200_001, "x.csv has 200001 rows; there may be 200000"),
    ],
)
def test_a_file_that_is_no_catalogue_is_not_kept(name, content, words, browser, directory):
    before = list(directory.rglob("*.*"))
    assert words in upload(browser, name, content, code=422).text
    assert list(directory.rglob("*.*")) == before


def test_a_catalogue_that_is_too_large_is_refused(browser):
    upload(browser, "x.csv", CATALOG + b"1\n" * LARGEST_CATALOG, code=413)


def test_nothing_is_launched_without_the_pages_token(browser, directory):
    for address in ("/portal/launch?bands=g", "/portal/catalog"):
        assert browser.post(address, data={"token": "x"}).status_code == 403
    assert not (directory / "launches").exists()
    for name in ("..", "20260101T000000-abcdef", NASTY.replace("/", "")):
        assert browser.get(f"/portal/launches/{name}").status_code == 404


def test_pages_of_another_panda_have_no_portal():
    browser = make_application(Looks(_offline, 1.0)).test_client()
    reply = browser.get("/portal")
    assert reply.status_code == 404
    assert "These pages have no portal" in reply.text
