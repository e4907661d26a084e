"""A model's chat template (Jinja, in a sandbox), for the engine that does not bring its own."""

from __future__ import annotations

import importlib
from typing import Any

from outbid_capabilities.llm.request import invalid

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For a model without a template, as llama.cpp does."""

_MARK = "\u2063outbid-answer-goes-on\u2063"


class Template:
    """Renders messages to the prompt's text."""

    def __init__(self, source: str | None, begin_mark: str, end_mark: str) -> None:
        formatter: Any = importlib.import_module("llama_cpp.llama_chat_format").Jinja2ChatFormatter
        self._answer = formatter(source or CHATML, end_mark, begin_mark, add_generation_prompt=True)
        self._continue = formatter(source or CHATML, end_mark, begin_mark, add_generation_prompt=False)

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt; if the last message is the assistant's, it is left open for the model to go on.

        Raises RunError(invalid_request) where the template refuses the messages.
        """
        try:
            if messages[-1]["role"] != "assistant":
                return str(self._answer(messages=messages).prompt)
            return self._open(messages)
        except Exception as error:
            raise invalid(f"the model's chat template does not take these messages: {error}") from error

    def _open(self, messages: list[dict[str, str]]) -> str:
        """Cut the rendering behind what the assistant already said: templates close a message, and may trim it."""
        text = messages[-1]["content"]
        marked = [*messages[:-1], {"role": "assistant", "content": text + _MARK}]
        return str(self._continue(messages=marked).prompt).partition(_MARK)[0]
