"""Requests that convert texts and chats to token ids and back."""

from typing import Self

from pydantic import Field, model_validator

from run_gpt.api.answers import Answer
from run_gpt.api.chat import Messages, TemplateValues, Tools, check_last_message
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import CHAT_TEMPLATE, CONTINUE, GENERATION_PROMPT, TEMPLATE_VALUES, ChatTemplate
from run_gpt.api.values import NonEmpty, TokenIds
from run_gpt.errors import InvalidRequest

OF_CHATS = ("tools", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")


class TokenizeRequest(AnyRequest):
    """Return the tokens of a text or a chat: the prompt that `generate` or `chat` would run."""

    prompt: NonEmpty | None = Field(None, description="A text.")
    messages: Messages | None = Field(None, description="Or a chat.")
    tools: Tools | None = Field(None, description="Of a chat: functions that the model may call.")
    chat_template: ChatTemplate | None = Field(None, description=CHAT_TEMPLATE)
    chat_template_kwargs: TemplateValues | None = Field(None, description=TEMPLATE_VALUES)
    add_generation_prompt: bool | None = Field(None, description=GENERATION_PROMPT)
    continue_final_message: bool | None = Field(None, description=CONTINUE)
    add_special_tokens: bool | None = Field(
        None, description="Of a text: begin with what begins every text; default true. A chat's template does that."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("prompt, messages: give one of the two", param="prompt")
        for name in (*OF_CHATS, "add_special_tokens"):
            of_chat = name in OF_CHATS
            if getattr(self, name) is not None and of_chat == (self.messages is None):
                raise InvalidRequest(f"{name}: this does not go with {self._kind}", param=name)
        if self.messages is not None and self.continue_final_message:
            check_last_message(self.messages, self.add_generation_prompt)
        return self

    @property
    def _kind(self) -> str:
        return "prompt" if self.messages is None else "messages"


class Tokens(Answer):
    """Token ids of a text or a chat."""

    tokens: list[int]
    count: int
    max_model_len: int
    """Number of tokens that the model's context holds, prompt and answer together."""


class DetokenizeRequest(AnyRequest):
    """Return the text of token ids."""

    tokens: TokenIds = Field(description="The token ids.")


class DetokenizedText(Answer):
    """Text of token ids, special tokens included."""

    prompt: str
