"""How a problem and a policy's prompt state become one prompt. The only place that does it; imports no torch."""

from __future__ import annotations

from loopwise.types import Message, Problem, Prompt, PromptState


def render(problem: Problem, state: PromptState) -> Prompt:
    """The prompt a policy sees: text for a text problem, messages for a chat problem.

    System prompt, remembered lessons and worked examples come first; an empty state leaves the prompt as it is.

    >>> render(Problem("1", "2+2="), PromptState(system="Add.", examples=(("1+1=", "2"),)))
    'Add.\\n\\n1+1=2\\n2+2='
    """
    head = "\n".join(part for part in (state.system, *(f"- {lesson}" for lesson in state.memory)) if part)
    if isinstance(problem.prompt, str):
        shots = "".join(f"{prompt}{completion}\n" for prompt, completion in state.examples)
        return f"{head}\n\n{shots}{problem.prompt}" if head else f"{shots}{problem.prompt}"
    messages: list[Message] = list(problem.prompt)
    own = ""
    if messages and messages[0]["role"] == "system":
        own = messages.pop(0)["content"]
    system = "\n\n".join(part for part in (head, own) if part)
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    for prompt, completion in state.examples:
        opening += [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return tuple(opening + messages)
