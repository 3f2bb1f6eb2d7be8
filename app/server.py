"""The demo's server: its models, its page, how it starts and how it ends.

Gradio and torch are imported side by side, each in a thread of its own: together they are most of the start.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.jobs import Job
from app.serve_flags import PageFlags, ServeFlags
from common.shell import say

if TYPE_CHECKING:
    from app.form import ModelFacts
    from app.page import Page
    from app.worker import Worker

STATIC = Path(__file__).with_name("static")
MAX_FILE = "20mb"
MAX_BODY = 64 * 2**20  # bytes of any one call
MOST_SESSIONS = 1000
EVERYWHERE, HERE = "0.0.0.0", "127.0.0.1"


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    worker: Worker
    page: Page


@contextmanager
def running(flags: ServeFlags) -> Iterator[Running]:
    """A server for as long as the block lasts.

    ValueError or OSError in one sentence when it cannot be: the port is taken, weights are missing.
    """
    check_page_flags(flags.page)
    with tempfile.TemporaryDirectory(prefix="featherweight-") as name, _environment(Path(name).resolve()):
        folder = Path(name).resolve()
        worker = _start_worker(flags, folder)
        try:
            page = _build(flags, worker, folder)
            url = _launch(page, flags.page, folder)
            try:
                yield Running(url, worker, page)
            finally:
                page.close(verbose=False)
        finally:
            worker.close()


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What gradio and others read from the environment, as it was before once the server has ended."""
    ours = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "KINETO_LOG_LEVEL": "99",  # torch's profiler counts memory; it need not talk
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_page_flags(flags: PageFlags) -> None:
    """ValueError or OSError in one sentence for flags that no server can have."""
    if flags.auth is not None and not all(flags.auth.partition(":")):
        raise ValueError("--auth needs a name and a password: --auth USER:PASSWORD")
    if flags.max_queue < 1:
        raise ValueError(f"--max-queue {flags.max_queue}: at least 1 request has to wait")
    if not 0 <= flags.port < 2**16:
        raise ValueError(f"--port {flags.port}: use 1 to 65535, or 0 for any that is free")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((EVERYWHERE if flags.listen else HERE, flags.port))
        except OSError as error:
            words = f"port {flags.port} cannot be used ({error.strerror.lower()})"
            raise OSError(f"{words}: choose another with --port, such as --port {flags.port + 1}") from None
    if (flags.listen or flags.share) and not flags.auth:
        say("warning: whoever reaches this machine can use it; --auth USER:PASSWORD asks them who they are")


def _start_worker(flags: ServeFlags, folder: Path) -> Worker:
    """The worker with its first model being loaded; gradio is imported meanwhile."""
    importing = threading.Thread(target=_import_gradio, daemon=True)
    importing.start()
    from app.comparing import prepare_counting
    from app.generate_request import model_provenance
    from app.models import Models, parse_model
    from app.worker import Worker

    prepare_counting()
    main = model_provenance(flags.model, flags.page.branch or ())
    others = dict(parse_model(text, main) for text in flags.page.model or ())
    worker = Worker(Models(main, others, folder), flags.page.max_queue)
    try:
        worker.add(Job(lambda job: worker.models.get(worker.models.first))).wait()
    except BaseException:
        worker.close()
        raise
    importing.join()
    return worker


def _import_gradio() -> None:
    import gradio  # noqa: F401


def _build(flags: ServeFlags, worker: Worker, folder: Path) -> Page:
    from app.page import Served
    from app.site import build
    from cldm.controls import Annotators

    loaded = worker.models.get(worker.models.first)  # it is loaded: the worker's thread is not needed
    annotators = Annotators(flags.model.annotators, loaded.pipeline.model.device)
    return build(Served(worker, facts_of(worker), folder, annotators, flags.page.lang))


def facts_of(worker: Worker) -> ModelFacts:
    """What the page must know of the first model."""
    from app.form import ModelFacts

    pipeline = worker.models.get(worker.models.first).pipeline
    wanted = {name: pipeline.defaults[name] for name in ("resolution", "scale", "guided_control")}
    count = len(pipeline.model.control_scales)
    return ModelFacts(worker.models.first, **wanted, residuals=count, branches=tuple(pipeline.branches))


def _launch(page: Page, flags: PageFlags, folder: Path) -> str:
    """Start answering; the address."""
    import gradio as gr
    from starlette.middleware import Middleware

    from app.page import BodyLimit
    from app.words import page_head, page_words

    page.queue(max_size=4 * flags.max_queue, default_concurrency_limit=8)
    options: dict[str, Any] = {
        "server_name": EVERYWHERE if flags.listen else HERE,
        "server_port": flags.port or _free_port(),
        "share": flags.share,
        "auth": tuple(flags.auth.split(":", 1)) if flags.auth else None,
        "max_threads": max(40, 2 * flags.max_queue),
        "max_file_size": MAX_FILE,
        "state_session_capacity": MOST_SESSIONS,
        "app_kwargs": {"middleware": [Middleware(BodyLimit, most=MAX_BODY)]},
        "i18n": page_words(),
        "theme": gr.themes.Default(),
        "css_paths": sorted(STATIC.glob("demo.css")),
        "head": page_head(flags.lang),
        "footer_links": ["api", "settings", "runs"],
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "inbrowser": False,
        "show_error": False,
        "quiet": True,
        "prevent_thread_lock": True,
    }
    _, local, public = page.launch(**options)
    return public or local


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return probe.getsockname()[1]
