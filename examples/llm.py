"""The language model: any URL that speaks OpenAI's chat completions; without one, the passages are the answer.

OPENAI_BASE_URL   for example http://localhost:11434/v1; unset: no language model
OPENAI_API_KEY    if it wants one
OPENAI_MODEL      default gpt-4o-mini
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

import httpx

PROMPT = """Answer the question from these passages only. If they do not answer it, say so.

{passages}

Question: {question}
Answer:"""


def answer(question: str, passages: Sequence[str]) -> str:
    """Answer a question from passages; without a language model return them, one a line."""
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        return "\n".join(f"{i}. {textwrap.shorten(passage, 160)}" for i, passage in enumerate(passages, 1))
    key = os.environ.get("OPENAI_API_KEY")
    prompt = PROMPT.format(passages="\n\n".join(passages), question=question)
    reply = httpx.post(
        f"{url.rstrip('/')}/chat/completions",
        headers={"Authorization": f"Bearer {key}"} if key else {},
        json={
            "model": os.environ.get("OPENAI_MODEL", "gpt-4o-mini"),
            "messages": [{"role": "user", "content": prompt}],
        },
        timeout=60,
    )
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])
