"""A model as a service: an image in, classes out. The model is changed without a request being lost."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np

from edge_sel.data.images import UnreadableImage, decode_image
from edge_sel.edge.classifier import Classifier, open_classifier
from edge_sel.edge.outputs.openmetrics import Family, to_text
from edge_sel.errors import BadInputError, EdgeSelError
from edge_sel.pack.signatures import TrustedKeys
from edge_sel.schema import Longest, SchemaError, read_as
from edge_sel.version import __version__
from edge_sel.watch.home import Home
from edge_sel.watch.metrics import metrics_text
from edge_sel.web.guard import App, Guard

MOST_BYTES = 32 << 20
"""Of a request."""
OPEN = frozenset({"/health"})


class _Asked(TypedDict):
    image: Annotated[str, Longest(MOST_BYTES)]


class _Serving(NamedTuple):
    number: int | None
    classifier: Classifier


class ModelService:
    """Classifies one image at a time by the model in service.

    Args:
        home: of a watcher, whose model in service is followed; None for a fixed model.
        model: ``model.onnx``, a run or a pack, without a home.
        threads: 0 for all.
        trusted: public keys of which one must have signed a pack.
        tell: is given every event.

    Raises:
        BadInputError, PackError: the model cannot be used.
    """

    def __init__(
        self, home: Home | None, model: Path | None, threads: int, trusted: TrustedKeys | None = None,
        tell: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:  # fmt: skip
        self.home, self._model, self._threads, self._trusted, self._tell = home, model, threads, trusted, tell
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._serving = self._load()
        self.answered = self.refused = 0

    def _load(self) -> _Serving:
        if self.home is None:
            assert self._model is not None
            return _Serving(None, open_classifier(self._model, self._threads, self._trusted))
        number = self.home.service()
        return _Serving(number, open_classifier(self.home.model_folder(number), self._threads))

    def follow(self) -> None:
        """Load another model in service beside the one that answers, then change them; a bad one changes nothing."""
        if self.home is None or not self._loading.acquire(blocking=False):
            return
        try:
            if self.home.service() != self._serving.number:
                loaded = self._load()
                self._serving = loaded
                self._tell({"event": "model", "number": loaded.number})
        except EdgeSelError as error:
            self._tell({"event": "cannot_load", "why": str(error)})
        finally:
            self._loading.release()

    @property
    def serving(self) -> _Serving:
        """What answers now."""
        return self._serving

    def classify(self, content: bytes) -> dict[str, Any]:
        """The classes of an image file.

        Raises:
            BadInputError: it cannot be read as an image.
        """
        serving = self._serving
        try:
            pixels = decode_image(content, serving.classifier.image_size)
        except UnreadableImage as error:
            raise BadInputError(f"not an image: {error.reason}") from error
        with self._lock:
            row = serving.classifier.probabilities(pixels[None])[0]
        best = int(np.argmax(row))
        names = serving.classifier.classes
        return {
            "class": names[best], "probability": float(row[best]), "model": serving.number,
            "probabilities": dict(zip(names, row.tolist(), strict=True)),
        }  # fmt: skip

    def metrics(self) -> str:
        """OpenMetrics text of the service, and of the watcher whose model it is."""
        own = to_text([
            Family("edge_sel_serve_requests", "counter", "", "Images that were asked about.",
                   [({"status": "answered"}, self.answered), ({"status": "refused"}, self.refused)]),
            Family("edge_sel_serve_info", "gauge", "", "The version of edge-sel.", [({"version": __version__}, 1.0)]),
        ])  # fmt: skip
        return own if self.home is None else own.removesuffix("# EOF\n") + metrics_text(self.home)


def serve_model_app(service: ModelService, token: str | None) -> App:
    """``POST /predict`` with an image file, or with JSON ``{"image": BASE64}``; ``/health``; ``/metrics``."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    async def predict(request: Request) -> Response:
        try:
            body = await request.body()
            if request.headers.get("content-type", "").startswith("application/json"):
                asked: _Asked = await run_in_threadpool(read_as, _Asked, body)
                body = base64.b64decode(asked["image"], validate=True)
            answer = await run_in_threadpool(service.classify, body)
        except ClientDisconnect:
            status, why = 413, "the body is too large"
        except binascii.Error:
            status, why = 400, "image is not base64"
        except (SchemaError, BadInputError) as error:
            status, why = 400, str(error)
        else:
            service.answered += 1
            return JSONResponse(answer)
        service.refused += 1
        return JSONResponse({"error": why}, status)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": service.serving.number})

    async def model(request: Request) -> Response:
        serving = service.serving
        answer = {"classes": list(serving.classifier.classes), "model": serving.number}
        return JSONResponse({**answer, "image_size": list(serving.classifier.image_size)})

    async def metrics(request: Request) -> Response:
        text = await run_in_threadpool(service.metrics)
        return PlainTextResponse(text, media_type="application/openmetrics-text; version=1.0.0")

    app = Starlette(routes=[
        Route("/predict", predict, methods=["POST"]), Route("/health", health), Route("/model", model),
        Route("/metrics", metrics),
    ])  # fmt: skip
    return Guard(
        app, token, MOST_BYTES, OPEN, kinds=frozenset({"application/json", "application/octet-stream", "image"})
    )
