"""What a strict schema says of a manifest: unknown fields, wrong types, what is missing.

Kubernetes' own kinds by its published schemas. A PyTorchJob by the classes of its SDK, because its custom resource lets
nearly everything pass; each pod template in it by Kubernetes' schema again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
from kubeflow.training import models

from tests.kubernetes.manifests import Manifest, named

VERSION = "1.32"
TYPES = {"str": str, "int": int, "bool": bool}
TEMPLATE = "V1PodTemplateSpec"
METADATA = "V1ObjectMeta"


def schema_faults(manifest: Manifest) -> Iterator[str]:
    """A sentence for each field that the schema refuses; for Kubernetes' own kinds the first one alone."""
    if manifest.get("kind") == "PyTorchJob":
        if manifest.get("apiVersion") != "kubeflow.org/v1":
            yield f"{named(manifest)}: apiVersion is {manifest.get('apiVersion')}, not kubeflow.org/v1"
        yield from _walk(manifest, "KubeflowOrgV1PyTorchJob", named(manifest))
    else:
        yield from _core_faults(manifest, named(manifest))


def _core_faults(manifest: Manifest, where: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{where}: {'.'.join(map(str, error.path))}: {error.message[:200]}"
    except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError) as error:
        yield f"{where}: Kubernetes {VERSION} knows no such kind: {error}"


def _walk(value: Any, type_name: str, where: str) -> Iterator[str]:
    """Hold a value against a type as the SDK writes it: `int`, `dict(str, Class)`, `list[Class]`, `Class`."""
    if type_name == TEMPLATE:
        yield from _core_faults({"apiVersion": "v1", "kind": "PodTemplate", "template": value}, where)
    elif type_name == METADATA:
        yield from _core_faults({"apiVersion": "v1", "kind": "PodTemplate", "metadata": value}, where)
    elif type_name in TYPES:
        if type(value) is not TYPES[type_name]:
            yield f"{where}: {value!r} is no {type_name}"
    elif of_many := re.fullmatch(r"dict\(str, (.+)\)", type_name):
        for key, item in value.items():
            yield from _walk(item, of_many[1], f"{where}.{key}")
    else:
        known = getattr(models, type_name)
        fields = {json: known.openapi_types[name] for name, json in known.attribute_map.items()}
        if not isinstance(value, dict):
            yield f"{where}: {value!r} is no {type_name}"
            return
        for key, item in value.items():
            if key in fields:
                yield from _walk(item, fields[key], f"{where}.{key}")
            else:
                yield f"{where}: unknown field {key}"
