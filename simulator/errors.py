"""Every error a user can meet. The tree:

AttnplanError
├── SpecError         an input file or option is wrong: exit 2
├── InfeasibleError   the input is right but no plan fits it: exit 2
├── ProfileError      the profile lacks what a prediction needs, or is out of date: exit 2
└── ExecutionError    a run failed: names the rank and its last operation: exit 1

Messages give place, value and remedy on one line:
``cluster.yaml: nodes[1].gpu: unknown 'H10'; known: A100-SXM4-80GB, H200``.
"""

MAX_MESSAGE = 600  # characters: a terminal's screen at the most, however long the name that was refused


class AttnplanError(Exception):
    """Base of every error meant for users; ``exit_code`` is what the command line returns.

    The message is one printable line of bounded length whatever a hostile file put into it: line ends, terminal
    sequences and half surrogate pairs are shown as escapes, and the middle of an overlong one is left out.
    """

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """``text`` without anything a terminal or a log would act on."""
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE * 2 // 3]} … {text[-MAX_MESSAGE // 3 + 3 :]}"
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class SpecError(AttnplanError):
    """An input is malformed, contradictory or names something unknown."""


class InfeasibleError(AttnplanError):
    """No plan satisfies the constraints; the message names the binding one."""


class ProfileError(AttnplanError):
    """The profile holds no measurement for what was asked, or belongs to another device."""


class ExecutionError(AttnplanError):
    """A run did not finish; the message names the rank and its last operation."""

    exit_code = 1
