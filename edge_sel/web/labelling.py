"""The page on which people say what images show; each label changes the candidate before the next image is shown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypedDict

from edge_sel.data.images import UnreadableImage, read_image
from edge_sel.errors import EdgeSelError, UsageError
from edge_sel.files import read_regular
from edge_sel.schema import Longest, SchemaError, Within, checked, parse_json
from edge_sel.watch.home import Home, check_class_name
from edge_sel.watch.labelling import collect_moved, settle
from edge_sel.watch.learner import Candidate, Learner, collect_labels, labels_needed
from edge_sel.watch.metrics import metrics_text, status_of
from edge_sel.watch.records import KeptImage
from edge_sel.watch.teacher import Teacher
from edge_sel.web.guard import App, Guard

WAIT_S = 1.0
"""How long an answer waits for the candidate that knows the new label."""
KINDS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".gif": "gif", ".webp": "webp"}
"""Images that a browser shows as they are."""
MOST_IMAGE_BYTES = 64 << 20
FILES = {"/label.js": "text/javascript", "/label.css": "text/css"}
_Name = Annotated[str, Longest(400)]
_Image = Annotated[int, Within(1, 1 << 53)]


class _Said(TypedDict):
    image: _Image
    name: _Name | None


class _Skipped(TypedDict):
    image: _Image


class Desk:
    """What the people at the page work with; any thread may call it.

    Args:
        learner: of the home.
        teacher: chooses images.
        wall_clock: Unix seconds.
        tell: is given every event.
    """

    def __init__(
        self, learner: Learner, teacher: Teacher, wall_clock: Callable[[], float],
        tell: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:  # fmt: skip
        self.home: Home = learner.home
        self._learner, self._teacher, self._wall_clock, self._tell = learner, teacher, wall_clock, tell
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._wanted, self._done, self._stopped = 1, 0, False
        self._candidate: Candidate | None = None
        self._verdict = "no labels yet"
        self.refit_s: list[float] = []

    def start(self) -> threading.Thread:
        """Learn in the background from now on."""
        thread = threading.Thread(target=self._work, name="learn", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Learn no more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._wanted == self._done and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                aim = self._wanted
            try:
                self.learn()
            except (EdgeSelError, OSError) as error:
                self._tell({"event": "cannot_learn", "why": str(error)})
            with self._changed:
                self._done = aim
                self._changed.notify_all()

    def learn(self) -> None:
        """Fit a candidate to the labels so far, and put it into service where it is shown to be better."""
        began_s = time.perf_counter()
        candidate = self._learner.candidate()
        with self._lock:
            self._candidate = candidate
            self._teacher.refresh(candidate)
            self._verdict = _verdict(candidate)
        self.refit_s.append(time.perf_counter() - began_s)
        look = None if candidate is None else self._learner.decide(candidate)
        if look is not None:
            self._tell({"event": "look", **look._asdict()})
            with self._lock:
                self._verdict = f"look {look.number}: {look.why}"
            if look.shipped is not None:  # what was fitted to the old model's doubts is of the new one's now
                with self._changed:
                    self._wanted += 1

    def _relearn(self, *, wait: bool) -> None:
        """Have the candidate made anew, and wait for it for a moment."""
        with self._changed:
            self._wanted += 1
            aim = self._wanted
            self._changed.notify_all()
            if wait:
                self._changed.wait_for(lambda: self._done >= aim or self._stopped, WAIT_S)

    def refresh(self) -> None:
        """Take in what was kept, moved or labelled elsewhere."""
        with self._lock:
            collect_moved(self.home, self._learner.observer, self._wall_clock)
        self._relearn(wait=True)

    def ask(self, person: str, number: int | None = None) -> dict[str, Any]:
        """What to show this person; a certain image where they name one."""
        with self._lock:
            image = self._teacher.next_image(person) if number is None else self._teacher.shown(number)
            given = collect_labels(self.home, self._learner.observer.classes)
            kept, labelled = self._teacher.left()
            answer: dict[str, Any] = {
                "classes": list(given.classes), "kept": kept, "labelled": labelled, "disputed": list(given.disputed),
                "verdict": self._verdict, "model": self.home.service(), "curve": self.home.records.fits(),
                "image": None,
            }  # fmt: skip
            if image is not None:
                guess, probability = self._teacher.guess(image.number, self._candidate)
                answer["image"] = {
                    "number": image.number, "guess": guess, "probability": probability, "novelty": image.novelty,
                }  # fmt: skip
            return answer

    def say(self, person: str, image: int, name: str | None) -> None:
        """This person says what an image shows.

        Raises:
            UsageError: there is no such image, or no class can have the name.
        """
        name = None if name is None else check_class_name(name)
        with self._lock:
            kept = self._kept(image)
            self.home.records.add_label(image, name, person, self._wall_clock())
            settle(self.home, image, kept.file)
            self._teacher.answered(image)
        self._relearn(wait=True)

    def skip(self, person: str, image: int) -> None:
        """This person does not know."""
        with self._lock:
            self._kept(image)
            self._teacher.skip(image, person)

    def undo(self, person: str) -> bool:
        """Take back this person's latest label; whether there was one."""
        with self._lock:
            image = self.home.records.undo(person)
            if image is not None:
                settle(self.home, image, self._kept(image).file)
        if image is not None:
            self._relearn(wait=True)
        return image is not None

    def picture(self, number: int) -> tuple[bytes, str]:
        """An image as a browser shows it, and its kind.

        Raises:
            UsageError: there is none, or it cannot be read.
        """
        path = self.home.image_file(self._kept(number).file)
        try:
            kind = KINDS.get(path.suffix)
            return (read_regular(path, MOST_IMAGE_BYTES, follow=False), f"image/{kind}") if kind else _as_png(path)
        except (OSError, UnreadableImage) as error:
            raise UsageError("the image cannot be read", where=number) from error

    def _kept(self, number: int) -> KeptImage:
        found = [image for image in self.home.records.kept() if image.number == number]
        if not found:
            raise UsageError("no such image", where=number)
        return found[0]


def _as_png(path: Path) -> tuple[bytes, str]:
    from io import BytesIO

    from PIL import Image

    made = BytesIO()
    Image.fromarray(read_image(path, (480, 640))).save(made, "PNG")
    return made.getvalue(), "image/png"


def _read(kind: Any, body: bytes) -> Any:
    """A body as this kind; SchemaError for a key that it does not have."""
    found = parse_json(body)
    if isinstance(found, dict) and (unknown := sorted(found.keys() - kind.__annotations__.keys())):
        raise SchemaError(f"has an unknown key, {unknown[0][:40]!r}")
    return checked(kind, found)


def _verdict(candidate: Candidate | None) -> str:
    if candidate is None or candidate.evidence is None:
        return "too few labels to say anything"
    evidence = candidate.evidence
    text = f"{candidate.given} labels: {100 * evidence.gain:+.1f} points against the model in service"
    more = labels_needed(evidence)
    return f"{text}; about {more} more would show it" if more else text


def label_app(desk: Desk, token: str | None) -> App:
    """The page and its requests, as an ASGI app."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    folder = resources.files("edge_sel.web")
    page = (folder / "label.html").read_bytes()
    files = {path: (folder / path[1:]).read_bytes() for path in FILES}

    def answer(work: Callable[[Request, str, bytes], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                body = await request.body()
                found = await run_in_threadpool(work, request, request.scope["edge_sel_person"], body)
            except (SchemaError, EdgeSelError) as error:
                return JSONResponse({"error": str(error)}, 400)
            except ClientDisconnect:
                return JSONResponse({"error": "the body is too large"}, 413)
            except OSError as error:
                return JSONResponse({"error": error.strerror or "the disk cannot be used"}, 507)
            return found if isinstance(found, Response) else JSONResponse(found)

        return endpoint

    def ask(request: Request, person: str, body: bytes) -> Any:
        number = request.query_params.get("image")
        if number is not None and not (number.isdecimal() and len(number) < 16):
            raise UsageError("an image is a number")
        return desk.ask(person, None if number is None else int(number))

    def say(request: Request, person: str, body: bytes) -> Any:
        said: _Said = _read(_Said, body)
        desk.say(person, said["image"], said["name"])
        return desk.ask(person)

    def skip(request: Request, person: str, body: bytes) -> Any:
        said: _Skipped = _read(_Skipped, body)
        desk.skip(person, said["image"])
        return desk.ask(person)

    def undo(request: Request, person: str, body: bytes) -> Any:
        undone = desk.undo(person)
        return {**desk.ask(person), "undone": undone}

    def refresh(request: Request, person: str, body: bytes) -> Any:
        desk.refresh()
        return desk.ask(person)

    def picture(request: Request, person: str, body: bytes) -> Any:
        content, kind = desk.picture(int(request.path_params["number"]))
        return Response(content, media_type=kind)

    def status(request: Request, person: str, body: bytes) -> Any:
        return status_of(desk.home)

    def metrics(request: Request, person: str, body: bytes) -> Any:
        return PlainTextResponse(metrics_text(desk.home), media_type="application/openmetrics-text; version=1.0.0")

    def asset(request: Request, person: str, body: bytes) -> Any:
        path = request.url.path
        return Response(files[path], media_type=FILES[path])

    def front(request: Request, person: str, body: bytes) -> Any:
        return Response(page, media_type="text/html; charset=utf-8")

    app = Starlette(routes=[
        Route("/", answer(front)), *(Route(path, answer(asset)) for path in FILES),
        Route("/api/next", answer(ask)), Route("/api/status", answer(status)), Route("/metrics", answer(metrics)),
        Route("/api/label", answer(say), methods=["POST"]), Route("/api/skip", answer(skip), methods=["POST"]),
        Route("/api/undo", answer(undo), methods=["POST"]), Route("/api/refresh", answer(refresh), methods=["POST"]),
        Route("/image/{number:int}", answer(picture)),
    ])  # fmt: skip
    return Guard(app, token)
