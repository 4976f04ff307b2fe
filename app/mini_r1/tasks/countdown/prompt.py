"""The prompt, word for word as the published script and its notebook send it."""

from mini_r1.tasks.prompt_file import Prompt

SYSTEM_MESSAGE = (
    "You are a helpful assistant. You first thinks about the reasoning process in the mind "
    "and then provides the user with the answer."
)

USER_MESSAGES: dict[str, str] = {
    # The published script: its recipe made the 50 % curve.
    "script": (
        "Using the numbers {nums}, create an equation that equals {target}. "
        "You can use basic arithmetic operations (+, -, *, /) one or multiple times "
        "but each number can only be used once. Show your work in <think> </think> tags. "
        "And return the final equation in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>. "
        "Think step by step inside <think> tags."
    ),
    # The notebook: its example ends with '= 1', a form that the original's own equation function does not pay.
    "notebook": (
        "Using the numbers {nums}, create an equation that equals {target}. "
        "You can use basic arithmetic operations (+, -, *, /) "
        "and each number can only be used once. Show your work in <think> </think> tags. "
        "And return the final equation and answer in <answer> </answer> tags, "
        "for example <answer> (1 + 2) / 3 = 1 </answer>."
    ),
}
"""User messages by prompt style. Numbers show as Python prints a list, [44, 19, 35], as in the original."""

PREFILL = "Let me solve this step by step.\n<think>"
"""The start of the assistant's turn, which the model continues."""


PROMPTS = {style: Prompt(user, SYSTEM_MESSAGE, PREFILL) for style, user in USER_MESSAGES.items()}
"""The prompts of the original, by prompt style."""
