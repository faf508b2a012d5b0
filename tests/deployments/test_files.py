"""The files that no machine here can run: compose, Kubernetes, Dockerfiles. Each is checked against its published schema."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.settings import Settings
from pydantic import AliasChoices, BaseModel

from deployments.bootstrap import POOL, QUEUES

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deployments" / "kubernetes"
KUBERNETES_VERSION = "1.33"
FILLED = {"name": "iter-2", "command": ["prefect", "flow-run", "execute"], "labels": {"a": "b"}, "env": [{"name": "A", "value": "b"}]}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())  # with the merge keys applied
    return found


def test_the_compose_file_keeps_to_the_compose_specification() -> None:
    """A misspelt key is otherwise found by whoever starts the stack first."""
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose())).validate()


@pytest.mark.parametrize("wrong", [{"imagee": "x"}, {"image": "x", "restart": "sometimes"}, {"healthcheck": {"tests": "x"}}])
def test_the_check_finds_mistakes(wrong: dict[str, Any]) -> None:
    content = compose()
    content["services"]["wrong"] = wrong
    with pytest.raises(ValueError, match=r"."):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(content)).validate()


def test_every_service_is_pinned_and_needs_nothing_that_is_missing() -> None:
    """A `latest` changes what runs overnight; a server without its auth string is open to the network."""
    services = compose()["services"]
    for name, service in services.items():
        assert re.search(r":\d+\.\d+", service["image"]), f"{name}: {service['image']} is not pinned"
        profiles = set(service.get("profiles", [])) or {"single", "scaled"}
        for other in service.get("depends_on", {}):
            assert set(services[other].get("profiles", profiles)) >= profiles, f"{name} needs {other} in every profile of its own"
        if "prefect server" in str(service.get("command")):
            assert "PREFECT_SERVER_API_AUTH_STRING" in service["environment"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), f"{name} listens to the network"


def setting_names(model: type[BaseModel]) -> Iterator[str]:
    """The environment variables that Prefect reads."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_names(field.annotation)
            continue
        yield f"{model.model_config.get('env_prefix', '')}{name}".upper()
        if isinstance(field.validation_alias, AliasChoices):
            yield from (choice.upper() for choice in field.validation_alias.choices if isinstance(choice, str))


def test_prefect_knows_the_settings() -> None:
    """Prefect ignores a misspelt variable without a word."""
    known = set(setting_names(Settings))
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    used = {name for service in compose()["services"].values() for name in service.get("environment", {})}
    used |= {name for deployment in deployments for name in deployment["work_pool"]["job_variables"]["env"]}
    # those of prefect-redis, which the server's image has, are its own
    assert {name for name in used if name.startswith("PREFECT_") and not name.startswith("PREFECT_REDIS_")} <= known


def test_secrets_come_from_the_environment_file() -> None:
    variables = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    example = {line.split("=")[0] for line in (ROOT / "deployments/env.example").read_text().splitlines() if re.match(r"\w+=", line)}
    assert variables <= example
    assert ".env" in (ROOT / ".gitignore").read_text().split()
    assert ".env" in (ROOT / ".dockerignore").read_text().split()


def placeholders(value: Any) -> Iterator[str]:
    yield from re.findall(r"\{\{ (\w+) \}\}", json.dumps(value))


def fill(value: Any, values: dict[str, Any]) -> Any:
    """As Prefect does: a lone placeholder takes the value with its type; one without a value is left out."""
    if isinstance(value, dict):
        return {key: found for key, entry in value.items() if (found := fill(entry, values)) is not None}
    if isinstance(value, list):
        return [fill(entry, values) for entry in value]
    if isinstance(value, str):
        whole = re.fullmatch(r"\{\{ (\w+) \}\}", value)
        return values.get(whole[1]) if whole else re.sub(r"\{\{ (\w+) \}\}", lambda m: str(values[m[1]]), value)
    return value


def test_the_kubernetes_job_keeps_to_its_schema() -> None:
    template = yaml.safe_load((KUBERNETES / "base-job-template.yaml").read_text())
    variables = template["variables"]["properties"]
    jsonschema.Draft202012Validator.check_schema(template["variables"])
    assert set(placeholders(template["job_configuration"])) == set(variables)
    defaults = {name: entry["default"] for name, entry in variables.items() if "default" in entry}
    jsonschema.validate(defaults, template["variables"])
    job = fill(template["job_configuration"]["job_manifest"], defaults | FILLED)
    kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_template_has_what_prefects_worker_fills_in() -> None:
    """Prefect's Kubernetes worker writes these fields of every job; its own template is the yardstick."""
    import prefect

    path = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    theirs = json.loads(path.read_text())["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    ours = yaml.safe_load((KUBERNETES / "base-job-template.yaml").read_text())
    assert set(theirs["job_configuration"]) - {"cluster_config"} == set(ours["job_configuration"])  # in a cluster none is needed
    missing = set(theirs["variables"]["properties"]) - set(ours["variables"]["properties"])
    assert missing == {"cluster_config", "cpu_request", "cpu_limit", "memory_request", "memory_limit"}  # ours are cpu and memory


def test_the_other_kubernetes_objects_keep_to_their_schemas() -> None:
    for document in yaml.safe_load_all((KUBERNETES / "artifacts.yaml").read_text()):
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    worker = yaml.safe_load((KUBERNETES / "worker-values.yaml").read_text())["worker"]
    assert (worker["config"]["workPool"], worker["config"]["workQueues"]) == (POOL, list(QUEUES))


def test_the_ray_cluster_is_one_that_can_run_a_campaign() -> None:
    """KubeRay's own schema is 900 kB and not kept here: its fields are those that were checked by hand, the pods Kubernetes' own."""
    cluster = yaml.safe_load((KUBERNETES / "ray-cluster.yaml").read_text())
    job = yaml.safe_load((KUBERNETES / "ray-job.yaml").read_text())
    assert {cluster["apiVersion"], job["apiVersion"]} == {"ray.io/v1"}
    spec = cluster["spec"]
    assert set(spec) == {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
    assert set(spec["headGroupSpec"]) == {"rayStartParams", "template"}
    assert all(isinstance(value, str) for value in spec["headGroupSpec"]["rayStartParams"].values())
    (workers,) = spec["workerGroupSpecs"]
    assert set(workers) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    for group in (spec["headGroupSpec"], workers):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)
        (container,) = pod["spec"]["containers"]
        assert {"name": "artifacts", "mountPath": "/artifacts"} in container["volumeMounts"]
    assert f"ray[default]=={spec['rayVersion'].rpartition('.')[0]}.*" in (ROOT / "pyproject.toml").read_text()
    assert set(job["spec"]) == {"clusterSelector", "submissionMode", "entrypoint", "runtimeEnvYAML"}
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["SPINFLOW_CLUSTER"] == "auto"


def test_the_slurm_script_is_one() -> None:
    """And names the options of Ray's command as that has them."""
    script = ROOT / "deployments" / "slurm" / "campaign.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    bare = subprocess.run(["bash", str(script)], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert "set RECIPE to the recipe file" in bare.stderr
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.scripts.symmetric_run import symmetric_run

    words = re.findall(r"symmetric-run (--\S+) \S+ (--\S+)", script.read_text())[0]
    assert set(words) == {option for parameter in symmetric_run.params for option in parameter.opts if option.startswith("--")}


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_what_the_images_copy_is_there(name: str) -> None:
    text = (ROOT / "deployments" / name).read_text()
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    assert all((ROOT / path).exists() for path in copied)
    assert re.search(r"^FROM \S+:\d+\.\d+", text, re.MULTILINE), "the base image is not pinned"
    assert "USER spinflow" in text
