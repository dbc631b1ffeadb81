"""How a problem and a policy's prompt state become one prompt. The only place that does it; imports no torch."""

from __future__ import annotations

from loopwise.types import Message, Problem, Prompt, PromptState


def render(problem: Problem, state: PromptState) -> Prompt:
    """The prompt a policy sees: text for a text problem, messages for a chat problem.

    System prompt, remembered lessons (of all problems, then of this one's task) and worked examples come first; an
    empty state leaves the prompt as it is. A problem with ``shown`` is shown that instead of its prompt.

    >>> render(Problem("1", "2+2="), PromptState(system="Add.", examples=(("1+1=", "2"),)))
    'Add.\\n\\n1+1=2\\n2+2='
    """
    task = task_of(problem)
    lessons = (*state.memory, *(lesson for own, lesson in state.lessons if own == task))
    head = "\n".join(part for part in (state.system, *(f"- {lesson}" for lesson in lessons)) if part)
    shown = problem.prompt if problem.shown is None else problem.shown
    if isinstance(shown, str):
        shots = "".join(f"{prompt}{completion}\n" for prompt, completion in state.examples)
        return f"{head}\n\n{shots}{shown}{state.suffix}" if head else f"{shots}{shown}{state.suffix}"
    messages: list[Message] = list(shown)
    if messages and state.suffix:
        messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}{state.suffix}"}
    own = ""
    if messages and messages[0]["role"] == "system":
        own = messages.pop(0)["content"]
    system = "\n\n".join(part for part in (head, own) if part)
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    for prompt, completion in state.examples:
        opening += [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return tuple(opening + messages)


def task_of(problem: Problem) -> str:
    """What lessons of a problem are filed under: its column ``task``, or its id."""
    return str(problem.columns.get("task", problem.id))
