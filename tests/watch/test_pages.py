"""The pages by requests: who may ask, what they do, and that nothing that is sent breaks them."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from edge_sel.data.builtin import load_relit
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import UsageError
from edge_sel.watch.home import open_home
from edge_sel.watch.learner import Learner
from edge_sel.watch.teacher import Teacher
from edge_sel.web.labelling import Desk, label_app
from edge_sel.web.run import token_for
from edge_sel.web.serving import ModelService, serve_model_app
from tests.watch.conftest import PACK, Clock

HERE = "http://localhost:8765"
TOKEN = "a-token-of-some-length"


@contextmanager
def desk_of(watched, folder) -> Iterator[Desk]:
    shutil.copytree(watched / "home", folder)
    own = Learner(open_home(folder), OrtEngine(1))
    made = Desk(own, Teacher(own, Clock(), np.random.default_rng(0)), Clock())
    made.learn()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def desk(watched, tmp_path):
    with desk_of(watched, tmp_path / "home") as made:
        yield made


@pytest.fixture(scope="module")
def steady(watched, tmp_path_factory) -> Iterator[TestClient]:
    """A page that nobody changes anything on, for requests that are refused."""
    with desk_of(watched, tmp_path_factory.mktemp("steady") / "home") as made:
        yield client(label_app(made, None))


def client(app, **more) -> TestClient:
    return TestClient(app, base_url=HERE, **more)


@pytest.fixture
def page(desk) -> TestClient:
    return client(label_app(desk, None))


def test_a_label_is_asked_given_taken_back_and_given_anew(page, desk):
    answer = page.get("/api/next").json()
    number = answer["image"]["number"]
    assert answer["labelled"] == 0 and answer["image"]["guess"] in answer["classes"]
    after = page.post("/api/label", json={"image": number, "name": "4"}).json()
    assert after["labelled"] == 1 and after["image"]["number"] != number
    assert page.post("/api/undo", json={}).json()["labelled"] == 0
    assert page.post("/api/undo", json={}).json()["undone"] is False
    assert page.post("/api/label", json={"image": number, "name": "a  new one "}).json()["classes"][-1] == "a new one"
    assert page.post("/api/label", json={"image": number, "name": None}).json()["labelled"] == 1
    skipped = page.get("/api/next").json()["image"]["number"]
    assert page.post("/api/skip", json={"image": skipped}).json()["image"]["number"] != skipped


def test_a_candidate_follows_the_labels(page, desk):
    for _ in range(12):
        answer = page.get("/api/next").json()
        page.post("/api/label", json={"image": answer["image"]["number"], "name": answer["image"]["guess"]})
    answer = page.get("/api/next").json()
    assert answer["labelled"] == 12 and len(answer["curve"]) >= 2 and "labels" in answer["verdict"]


def test_two_people_have_images_of_their_own(desk):
    app = label_app(desk, None)
    ann, bob = client(app), client(app)
    one, other = ann.get("/api/next").json()["image"], bob.get("/api/next").json()["image"]
    assert one["number"] != other["number"]
    ann.post("/api/label", json={"image": one["number"], "name": "1"})
    bob.post("/api/label", json={"image": one["number"], "name": "2"})
    assert ann.get("/api/next").json()["disputed"] == [one["number"]]
    assert bob.post("/api/undo", json={}).json()["disputed"] == []
    assert ann.get("/api/next").json()["labelled"] == 1


def test_the_picture_and_the_page_ask_nobody_else(page, desk):
    number = page.get("/api/next").json()["image"]["number"]
    found = page.get(f"/image/{number}")
    assert found.headers["content-type"] == "image/png" and found.content.startswith(b"\x89PNG")
    front = client(label_app(desk, None)).get("/")
    assert "default-src 'none'" in front.headers["content-security-policy"]
    assert (
        front.headers["x-content-type-options"] == "nosniff"
        and "HttpOnly; SameSite=Strict" in front.headers["set-cookie"]
    )
    for path in ("/", "/label.js", "/label.css"):
        assert "http://" not in page.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page.get(path).text


@pytest.mark.parametrize("path", ["/image/0", "/image/99999", "/image/../home.json", "/image/1e3", "/../home.json",
                                  "/image/%2e%2e%2fhome.json", "/label.py", "/home.json", "/kept/", "//etc/passwd"])  # fmt: skip
def test_nothing_else_of_the_home_is_read(steady, path):
    found = steady.get(path)
    assert found.status_code in (400, 404) and "format" not in found.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"image": "1", "name": "x"}', b'{"image": 1}', b'{"image": -1, "name": "x"}',
                                  b'{"image": 1e400, "name": "x"}', b'{"image": 1, "name": "../../x"}', b"\xff\xfe",
                                  b'{"image": 1, "image": 2, "name": "x"}', b'{"image": 1, "name": ["x"]}', b"[" * 30000,
                                  b'{"image": 1, "name": "x", "more": 1}', b'{"image": 99999, "name": "x"}'])  # fmt: skip
def test_bad_bodies_are_one_line(steady, body):
    found = steady.post("/api/label", content=body, headers={"content-type": "application/json"})
    assert found.status_code == 400 and set(found.json()) == {"error"} and "\n" not in found.json()["error"]


def test_too_much_is_refused(steady):
    large = b'{"image": 1, "name": "' + b"x" * (1 << 20) + b'"}'
    assert steady.post("/api/label", content=large, headers={"content-type": "application/json"}).status_code == 413

    def parts():
        for _ in range(100):
            yield b" " * 4096

    assert steady.post("/api/label", content=parts(), headers={"content-type": "application/json"}).status_code == 413


@pytest.mark.parametrize("headers, status", [
    ({"host": "evil.example"}, 421), ({"host": "localhost.evil.example"}, 421), ({"host": ""}, 421),
    ({"content-type": "text/plain"}, 403), ({"content-type": "application/x-www-form-urlencoded"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403), ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403),
    ({"origin": HERE, "sec-fetch-site": "same-origin"}, 200), ({"host": "192.168.1.9:8765"}, 200), ({"host": "[::1]:1"}, 200),
])  # fmt: skip
def test_only_our_own_page_changes_anything(steady, headers, status):
    found = steady.post("/api/undo", content=b"{}", headers={"content-type": "application/json", **headers})
    assert found.status_code == status


def test_other_machines_need_the_token(desk):
    app = label_app(desk, TOKEN)
    assert client(app).get("/").status_code == 403
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "x"):
        assert client(app).get("/", params={"token": wrong}).status_code == 403
    assert client(app).get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client(app).get("/", headers={"authorization": "Bearer x"}).status_code == 403
    known = client(app)
    assert known.get("/", params={"token": TOKEN}).status_code == 200
    assert known.get("/api/next").status_code == 200  # by the cookie
    assert (
        token_for("127.0.0.1", None) is None and token_for("::1", None) is None and token_for("localhost", None) is None
    )
    assert len(token_for("0.0.0.0", None)) >= 20 and token_for("0.0.0.0", TOKEN) == TOKEN
    with pytest.raises(UsageError):
        token_for("0.0.0.0", "short")
    with pytest.raises(UsageError):
        token_for("0.0.0.0", "with spaces and; more")


def test_status_and_metrics(page, desk):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    answer = page.get("/api/status").json()
    assert answer["counters"]["images"] == 150 and answer["model"] == 0
    families = {family.name: family for family in text_string_to_metric_families(page.get("/metrics").text)}
    outcomes = {sample.labels["outcome"]: sample.value for sample in families["edge_sel_watch_images"].samples}
    assert sum(outcomes.values()) == 150 and families["edge_sel_watch_model"].samples[0].value == 0


# A model that is served


def digit(row: int, kind: str = "PNG") -> bytes:
    made = io.BytesIO()
    Image.fromarray(load_relit("test").read(np.array([row]))[0]).save(made, kind)
    return made.getvalue()


@pytest.fixture(scope="module")
def fixed() -> TestClient:
    return client(serve_model_app(ModelService(None, PACK, 1), None))


def test_an_image_in_classes_out(fixed):
    from edge_sel.edge.classifier import open_classifier

    expected = open_classifier(PACK, 1).probabilities(load_relit("test").read(np.array([5])))[0]
    raw = fixed.post("/predict", content=digit(5), headers={"content-type": "image/png"}).json()
    coded = fixed.post("/predict", json={"image": base64.b64encode(digit(5)).decode()}).json()
    assert raw == coded and raw["model"] is None
    np.testing.assert_allclose(list(raw["probabilities"].values()), expected, rtol=1e-6)
    assert raw["class"] == max(raw["probabilities"], key=raw["probabilities"].get)
    assert fixed.get("/health").json()["status"] == "ok" and fixed.get("/model").json()["image_size"] == [16, 16]


@pytest.mark.parametrize("body, kind", [
    (b"", "image/png"), (b"no image", "image/jpeg"), (digit(0)[:40], "image/png"), (b"{}", "application/json"),
    (json.dumps({"image": "%%%"}).encode(), "application/json"), (json.dumps({"image": ""}).encode(), "application/json"),
    (b'{"image": 5}', "application/json"), (b"\xff\xd8\xff" + bytes(100), "application/octet-stream"),
])  # fmt: skip
def test_what_is_no_image_is_refused_in_one_line(fixed, body, kind):
    found = fixed.post("/predict", content=body, headers={"content-type": kind})
    assert found.status_code == 400 and "\n" not in found.json()["error"]
    assert fixed.post("/predict", content=digit(0), headers={"content-type": "image/png"}).status_code == 200


def test_the_model_in_service_is_followed_and_a_bad_one_changes_nothing(home, tmp_path):
    events: list[dict] = []
    service = ModelService(home, None, 1, None, events.append)
    app = client(serve_model_app(service, TOKEN))
    assert app.get("/health").json()["model"] == 0 and app.get("/predict").status_code == 403
    pack = home.pack
    home.put_in_service(pack.weights(), pack.manifest.model.classes, None, {})
    service.follow()
    assert app.get("/health").json()["model"] == 1 and events[-1] == {"event": "model", "number": 1}
    number = home.put_in_service(pack.weights(), pack.manifest.model.classes, None, {})
    (home.model_folder(number) / "model.onnx").write_bytes(b"damaged")
    service.follow()
    assert app.get("/health").json()["model"] == 1 and events[-1]["event"] == "cannot_load"
    asked = app.post("/predict", params={"token": TOKEN}, content=digit(1), headers={"content-type": "image/png"})
    assert asked.json()["model"] == 1
