"""Every reason and condition that the code can write, found in the code: what documents of failures have to have.

Reasons of ends are texts of the sources; what a task's conditions say comes of asking the operator's core for each
status that there can be; those of pools are the texts of whatever makes a pool's condition. Used by the tests of
docs/cancellation.md and docs/troubleshooting.md.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from terrahalt_agent.core.classify import ROWS, Ending
from terrahalt_agent.core.stream import StreamFacts
from terrahalt_operator.core import model, status
from terrahalt_operator.core.model import CancelStatus, OutputsStatus, PlanStatus, ResultStatus, TaskStatus
from terrahalt_protocol.messages import SUPERSEDED, Action, CancelReason, Step
from tests.operator_core.builders import NOW, a_task

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "agent_image/src/terrahalt_agent"
OPERATOR = ROOT / "operator/src/terrahalt_operator"

UNDER_WAY = (
    frozenset(
        getattr(model, name.id)
        for node in ast.parse((OPERATOR / "core/model.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
        for name in node.targets[0].elts
        if isinstance(name, ast.Name)
    )
    - model.TERMINAL
)
"""Every phase but the last ones: those that the model names together."""

_SAY_ENDS = (
    *AGENT.rglob("*.py"),
    *(OPERATOR / "core" / name for name in ("decide.py", "model.py", "status.py")),
)
_NO_ENDS = {
    *("ApplyResourceChange", "NoSuchKey", "OpenTofu", "TerraformTask"),
    "AwaitingApproval",  # no end: of a run, but not of its task
    *("CancelRequested", "NotPlanned", "PlanReady", "TooLate", "OutputsPublished", "NotPublished"),  # of conditions
}
_WORD, _WORDS = r"([A-Z][a-z]+)+", r"([A-Z][a-z]+){2,}"


def _texts(tree: ast.AST, pattern: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(pattern, node.value):
            yield node.value


def of_ends() -> set[str]:
    """`status.result.reason`."""
    written = {word for path in _SAY_ENDS for word in _texts(ast.parse(path.read_text()), _WORDS)}
    endings = [
        Ending("terraform", action, step, StreamFacts(), cancel=cancel)
        for action, step, cancel in itertools.product(Action, Step, (None, *CancelReason))
    ]
    told = {row.reason(ending) for row in ROWS[1:] for ending in endings}
    return (written | told | {model.ABANDONED, SUPERSEDED}) - _NO_ENDS


def _calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


def of_cancels() -> set[str]:
    """`status.cancel.by`: who asked, or why the agent did."""
    trees = [ast.parse(path.read_text()) for path in AGENT.rglob("*.py")]
    causes = {word for tree in trees for call in _calls(tree, "Cause") for word in _texts(call, _WORDS)}
    return {reason.value for reason in CancelReason} | causes | {SUPERSEDED}


def of_task_conditions() -> Mapping[str, set[str]]:
    """By type, from every status."""
    ends = [(phase, reason) for phase in model.TERMINAL for reason in of_ends()]
    planned = PlanStatus(add=1, change=0, destroy=0)
    outputs = [None, OutputsStatus(secret_name="o"), OutputsStatus(secret_name="o", problem="it is too large")]
    found: defaultdict[str, set[str]] = defaultdict(set)
    for (phase, reason), by, plan, run_id, published in itertools.product(
        [*((phase, "") for phase in UNDER_WAY), *ends], ["", *of_cancels()], [None, planned], ["", "01J"], outputs
    ):
        shown = TaskStatus(
            phase=phase,
            run_id=run_id,
            plan=plan,
            outputs=published,
            cancel=CancelStatus(by=by, requested_at="2026-01-02T03:04:05.000006Z") if by else None,
            result=ResultStatus(reason=reason, state="Complete", lock="Released") if reason else None,
        )
        for cancel in (None, True):
            for condition in status.observed(a_task(status=shown, cancel=cancel), NOW).conditions:
                found[condition.type].add(condition.reason)
    return found


def of_pool_conditions() -> tuple[set[str], set[str]]:
    """Types and reasons: the texts of the functions that call `Problem` or `_condition`, and the constants there."""
    types: set[str] = set()
    words: set[str] = set()
    for path in OPERATOR.rglob("*.py"):
        tree = ast.parse(path.read_text())
        constants = {
            target.id: next(_texts(node.value, _WORD), "")
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if list(_calls(function, "Problem", "_condition")):
                types |= {text for call in _calls(function, "_condition") for text in _texts(call.args[1], _WORD)}
                words |= {*_texts(function, _WORD)}
                words |= {constants.get(node.id, "") for node in ast.walk(function) if isinstance(node, ast.Name)}
    return types, words - types - {""}
