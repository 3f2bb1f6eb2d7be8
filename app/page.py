"""The page's frame: nothing reaches a handler unchecked, and nothing but sentences comes back.

`Page` wraps the one method of Gradio through which every call goes, from the page and from `gradio_client`
alike. What a client sends is walked before any component sees it. A mistake becomes its sentence in the
reader's language, a fault of the program "something went wrong" with an id under which the log has it.
"""

from __future__ import annotations

import errno
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError
from starlette.responses import PlainTextResponse

from app.form import ModelFacts
from app.jobs import Cancelled, TooLate
from app.uploads import check_payload
from app.words import Language, language_of, say
from app.worker import Worker
from cldm.controls import Annotators
from common.shell import sentence

log = logging.getLogger(__name__)
FOREIGN = "a value is not of the form that the page sends: docs/demo.md has what each call takes"
FAILED = "This did not work"  # above every sentence about a mistake
FULL_DISK = "the server's disk is full: whoever runs it has to free some space"


@dataclass(frozen=True)
class Served:
    """What the tabs work with. folder: of uploads and results, this process's own; lang: the forced one."""

    worker: Worker
    facts: ModelFacts
    folder: Path
    annotators: Annotators
    lang: Language | None = None


class Page(gr.Blocks):
    """Blocks that check what comes in and speak in sentences. `served` must be set before any call."""

    served: Served

    async def process_api(self, block_fn: Any, *args: Any, **named: Any) -> dict[str, Any]:
        """As the base class. Every error is a `gr.Error` with one sentence."""
        try:
            return await super().process_api(block_fn, *args, **named)
        except Exception as error:
            if getattr(block_fn, "is_validator_function", False):
                return {"data": None}  # no field is to blame; the call itself will say what is wrong
            raise self.shown(error, named.get("request")) from None

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **named: Any) -> list[Any]:
        """As the base class, once `inputs` hold nothing but data and files that were uploaded here."""
        check_payload(inputs, self.served.folder)
        if len(inputs) != len(block_fn.inputs):
            raise ValueError(f"{len(inputs)} values were sent, {len(block_fn.inputs)} are taken")
        return await super().preprocess_data(block_fn, inputs, *args, **named)

    def shown(self, error: BaseException, request: gr.Request | None) -> gr.Error:
        """What whoever called is told, in their language."""
        lang = language_of(request, self.served.lang)
        return gr.Error(say(explain(error), lang), title=say(FAILED, lang), print_exception=False)


def explain(error: BaseException) -> str:
    """One sentence for `error`. A fault of the program is logged under an id, which the sentence names."""
    if isinstance(error, gr.Error):
        return str(error.message)
    if isinstance(error, ValidationError):  # pydantic's is a ValueError of many lines
        return FOREIGN
    if isinstance(error, Cancelled | TooLate):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return FULL_DISK
    if isinstance(error, ValueError) or isinstance(error, OSError) and error.errno is None:
        return sentence(error)
    number = secrets.token_hex(4)
    log.error("fault %s", number, exc_info=error)
    return f"something went wrong ({number})"


class BodyLimit:
    """Middleware: answers 413 to a call with more than `most` bytes, before anything of it is parsed."""

    def __init__(self, app: Any, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it. A body without a declared length is counted while it comes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            await PlainTextResponse("too large: send pictures of at most 20 MB", 413)(scope, receive, send)
            return
        left = self._most

        async def counted() -> Any:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise RuntimeError("a body without a declared length was too large")
            return message

        await self._app(scope, counted, send)
