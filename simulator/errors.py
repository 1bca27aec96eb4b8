"""Every error a user can meet. The tree:

AttnplanError
├── SpecError         an input file or option is wrong: exit 2
├── InfeasibleError   the input is right but no plan fits it: exit 2
├── ProfileError      the profile lacks what a prediction needs, or is out of date: exit 2
└── ExecutionError    a run failed: names the rank and its last operation: exit 1

Messages give place, value and remedy on one line:
``cluster.yaml: nodes[1].gpu: unknown 'H10'; known: A100-SXM4-80GB, H200``.
"""


class AttnplanError(Exception):
    """Base of every error meant for users; ``exit_code`` is what the command line returns."""

    exit_code = 2


class SpecError(AttnplanError):
    """An input is malformed, contradictory or names something unknown."""


class InfeasibleError(AttnplanError):
    """No plan satisfies the constraints; the message names the binding one."""


class ProfileError(AttnplanError):
    """The profile holds no measurement for what was asked, or belongs to another device."""


class ExecutionError(AttnplanError):
    """A run did not finish; the message names the rank and its last operation."""

    exit_code = 1
