"""What no schema says of the manifests in k8s/. Each rule yields a sentence for every breach of it.

A schema knows fields and types. It does not know whether a name resolves, a GPU is whole, a policy agrees with the
kit's exit codes, or a pod is hardened.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.kubernetes.manifests import Manifest
from tests.kubernetes.rules import exits, names, network, nodes, resources, security
from tests.kubernetes.rules.rule import Rule
from tests.kubernetes.schemas import schema_errors

RULES: dict[str, Rule] = {
    rule.__name__.replace("_", "-"): rule
    for module in (names, resources, security, network, exits, nodes)
    for rule in module.RULES
}


SCHEMA = "schema"


def breaches(manifests: Sequence[Manifest]) -> dict[str, list[str]]:
    """The rules that are broken, and how. The schema comes first: a rule may rely on fields and types."""
    errors = [error for one in manifests for error in schema_errors(one)]
    if errors:
        return {SCHEMA: errors}
    found = {name: list(rule(manifests)) for name, rule in RULES.items()}
    return {name: sentences for name, sentences in found.items() if sentences}
