"""The manifests of `deploy/kubernetes`: valid by Kubernetes' schema, locked down, and in agreement with the code."""

import json
from typing import Any

import jsonschema_rs
import pytest
import yaml

from services.cli.main import COMMANDS
from services.settings import Settings
from tests.processes import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
DEFINITIONS: dict[str, Any] = json.loads((ROOT / "tests/unit/kubernetes/definitions.json").read_text())
KINDS = {
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Job": "io.k8s.api.batch.v1.Job",
    "PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
    "Service": "io.k8s.api.core.v1.Service",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
KEDA = {
    "ScaledObject": {
        "type": "object",
        "additionalProperties": False,
        "required": ["scaleTargetRef", "triggers"],
        "properties": {
            "scaleTargetRef": {"type": "object", "required": ["name"]},
            "pollingInterval": {"type": "integer", "minimum": 1},
            "minReplicaCount": {"type": "integer", "minimum": 0},
            "maxReplicaCount": {"type": "integer", "minimum": 1},
            "fallback": {"type": "object", "required": ["failureThreshold", "replicas"]},
            "advanced": {"type": "object"},
            "triggers": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["type", "metadata"],
                    "properties": {"type": {"const": "metrics-api"}, "metadata": _TEXTS},
                },
            },
        },
    },
    "TriggerAuthentication": {
        "type": "object",
        "additionalProperties": False,
        "required": ["secretTargetRef"],
        "properties": {
            "secretTargetRef": {
                "type": "array",
                "items": {**_TEXTS, "required": ["parameter", "name", "key"]},
            }
        },
    },
}
"""The fields of KEDA's kinds that are used here, written from its documentation."""


def manifests() -> list[dict[str, Any]]:
    return [one for file in sorted(FOLDER.glob("*.yml")) for one in yaml.safe_load_all(file.read_text())]


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in manifests() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def faults(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest, by its schema."""
    kind = manifest["kind"]
    if kind in KEDA:
        assert manifest["apiVersion"] == "keda.sh/v1alpha1"
        return [error.message for error in jsonschema_rs.validator_for(KEDA[kind]).iter_errors(manifest["spec"])]
    schema = {"$ref": f"#/$defs/{KINDS[kind]}", **DEFINITIONS}
    return [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(manifest)]


PODS = {
    one["metadata"]["name"]: one["spec"]["template"]["spec"]
    for one in manifests()
    if one["kind"] in ("Deployment", "Job")
}


@pytest.mark.parametrize("manifest", manifests(), ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_a_manifest_is_valid(manifest: dict[str, Any]) -> None:
    assert faults(manifest) == []


def test_what_is_not_valid_is_found() -> None:
    wrong = named("Deployment", "waybill-api")
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    assert faults(wrong)
    wrong = named("ScaledObject", "waybill-worker")
    wrong["spec"]["maxReplicas"] = 8
    assert faults(wrong)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_locked_down_and_limited(name: str) -> None:
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert "USER 10001" in (ROOT / "Dockerfile").read_text()
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for kind in ("requests", "limits"):
        assert container["resources"][kind].keys() == {"cpu", "memory"}
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert container["args"][0] in COMMANDS


def test_what_runs_for_long_has_probes_time_to_stop_and_a_budget() -> None:
    for name in ("waybill-api", "waybill-worker"):
        (container,) = PODS[name]["containers"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert PODS[name]["terminationGracePeriodSeconds"] > Settings.model_fields["worker_shutdown_grace"].default + 5
        labels = named("Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert named("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"] == labels
    assert (
        named("Service", "waybill-api")["spec"]["selector"]
        == named("Deployment", "waybill-api")["spec"]["template"]["metadata"]["labels"]
    )


def test_the_settings_exist_and_agree_with_the_numbers_of_pods() -> None:
    data = named("ConfigMap", "waybill")["data"]
    known = {f"WAYBILL_{name.upper()}" for name in Settings.model_fields}
    assert data.keys() <= known
    assert int(data["WAYBILL_API_PROCESSES"]) == named("Deployment", "waybill-api")["spec"]["replicas"]
    scaled = named("ScaledObject", "waybill-worker")["spec"]
    assert int(data["WAYBILL_WORKER_PROCESSES"]) == scaled["maxReplicaCount"]
    for name, setting in (("waybill-api", "API"), ("waybill-worker", "WORKER")):
        (container,) = PODS[name]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["metrics"] == int(data[f"WAYBILL_{setting}_METRICS_PORT"])


def test_the_autoscaler_asks_the_service_and_never_stops_the_last_worker() -> None:
    scaled = named("ScaledObject", "waybill-worker")["spec"]
    assert named("Deployment", scaled["scaleTargetRef"]["name"])
    assert scaled["minReplicaCount"] >= 1, "scheduled jobs run in workers"
    (trigger,) = scaled["triggers"]
    service = named("Service", "waybill-api")
    port = service["spec"]["ports"][0]["port"]
    assert trigger["metadata"]["url"] == f"http://{service['metadata']['name']}:{port}/internal/scaling"
    assert trigger["metadata"]["valueLocation"] == "total"
    secret = named("TriggerAuthentication", trigger["authenticationRef"]["name"])["spec"]["secretTargetRef"]
    assert secret == [{"parameter": "token", "name": "waybill", "key": "WAYBILL_METRICS_TOKEN"}]
    # No type is counted beyond 10,000.
    assert scaled["maxReplicaCount"] * int(trigger["metadata"]["targetValue"]) <= 10_000
