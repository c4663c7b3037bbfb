"""Choice of a model's chat template at its load: that of the settings, the checkpoint's own, or one for its family."""

import json
from pathlib import Path
from typing import Any

from run_gpt.errors import Forbidden, InvalidRequest, ModelLoadError
from run_gpt.models.checks import damaged, first_line
from run_gpt.models.files import ModelFiles
from run_gpt.models.rendering import compile_fault
from run_gpt.models.templates import PLAIN, TEMPLATES, ChatTemplate, find_template

DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of the templates of transformers for chats, and for chats with tools, if a checkpoint has several."""


def choose_template(files: ModelFiles, model_type: str, tokenizer: Any, wanted: str | None) -> ChatTemplate | None:
    """Set the tokenizer's template; return one of ours, and set none, if `wanted` or the lack of another asks for it.

    `wanted`: a Jinja file, the name of one of ours, or that of one of several in the checkpoint; None: the checkpoint's
    default, or its only one that is not for tools. Raises ModelLoadError if there is no such template, if it is no
    Jinja, and if several could be the default.
    """
    named = _named(files, tokenizer)
    ours = {row.name: row for row in (PLAIN, *TEMPLATES)}
    if wanted is None:
        tokenizer.chat_template = _with_default(files, named)
        return None if named else find_template(files.name, files.folder.name, model_type)
    if wanted in ours and wanted not in named:
        tokenizer.chat_template = None
        return ours[wanted]
    text = named[wanted] if wanted in named else _read(wanted, named, list(ours))
    if (fault := compile_fault(text)) is not None:
        raise ModelLoadError(f"the chat template {wanted!r} is no Jinja: {fault}: mend it, or serve another one")
    others = {name: other for name, other in named.items() if name not in (DEFAULT, TOOL_USE)}
    tokenizer.chat_template = {DEFAULT: text, **others} if others else text
    return None


def requested_template(tokenizer: Any, wanted: str, trusted: bool) -> str | None:
    """Return the text of the template that a request names or, if `trusted`, brings; None for the one of this package.

    Raises InvalidRequest for an unknown name, Forbidden for a text that is not trusted.
    """
    template = tokenizer.chat_template
    named: dict[str, str | None] = template if isinstance(template, dict) else {DEFAULT: template}
    if wanted in named:
        return named[wanted]
    if not any(mark in wanted for mark in ("{{", "{%", "{#")):
        there = ", ".join(named)
        raise InvalidRequest(
            f"chat_template = {wanted!r}: this model has no such template: there are {there}", param="chat_template"
        )
    if not trusted:
        raise Forbidden(
            "chat_template: the text of a template is taken only from a server with --trust-request-chat-template; "
            f"give a name: {', '.join(named)}",
            param="chat_template",
        )
    return wanted


def template_notes(tokenizer: Any) -> list[str]:
    """Return a note for each template of the tokenizer that is no Jinja, with which every chat is refused."""
    template = tokenizer.chat_template or {}
    named = template if isinstance(template, dict) else {DEFAULT: template}
    faults = {name: compile_fault(text) for name, text in named.items()}
    return [
        f"the chat template {name!r} is no Jinja ({fault}): chats are refused; give another with --chat-template"
        for name, fault in faults.items()
        if fault is not None
    ]


def _named(files: ModelFiles, tokenizer: Any) -> dict[str, str]:
    """Return the checkpoint's templates by name. chat_template.json, of processors, is for a tokenizer with none."""
    template = tokenizer.chat_template
    file = files.folder / "chat_template.json"
    if not template and file.is_file():
        try:
            template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(files, file, f"{type(error).__name__}: {first_line(error)}") from error
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}
    return dict(template) if isinstance(template, dict) else {DEFAULT: str(template)} if template else {}


def _with_default(files: ModelFiles, named: dict[str, str]) -> dict[str, str] | str | None:
    """Return the templates in the tokenizer's form, one of them as the default. Raises ModelLoadError."""
    if not named:
        return None
    if DEFAULT not in named:
        for_chats = [name for name in named if name != TOOL_USE] or list(named)
        if len(for_chats) > 1:
            raise ModelLoadError(
                f"{files.folder} has the chat templates {', '.join(named)} and none is called {DEFAULT}: "
                f"choose one of them, such as --chat-template {for_chats[0]}"
            )
        named = {DEFAULT: named[for_chats[0]], **named}
    return named if len(named) > 1 else named[DEFAULT]


def _read(wanted: str, named: dict[str, str], ours: list[str]) -> str:
    file = Path(wanted).expanduser()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        own = f"{', '.join(named)} (the model's), " if named else ""
        raise ModelLoadError(
            f"--chat-template {wanted}: {reason}; give a Jinja file, or one of {own}{', '.join(ours)}"
        ) from error
