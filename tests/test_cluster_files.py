"""The cluster files: valid for the tools that read them, priced as they say, and with their doors shut."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
LAUNCHER = ["aws.yaml", "gcp.yaml", "on-premise.yaml", "one-machine.yaml"]
KUBERAY = ["kuberay-cluster.yaml", "kuberay-job.yaml"]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def manifests(name: str) -> dict[str, dict[str, Any]]:
    documents = [d for d in yaml.safe_load_all((CLUSTER / name).read_text()) if d]
    return {d["kind"]: d for d in documents}


def ray_spec(name: str) -> dict[str, Any]:
    """The RayCluster's spec, on its own or inside a RayJob."""
    found = manifests(name)
    return found["RayCluster"]["spec"] if "RayCluster" in found else found["RayJob"]["spec"]["rayClusterSpec"]


def prices(name: str) -> tuple[dict[str, tuple[int, int, float]], float, float]:
    """What the comment says: ``{type: (least, most, dollars)}``, minimum and maximum an hour."""
    text = (CLUSTER / name).read_text()
    rows = re.findall(r"^#   ([\w-]+) +(\d+)\.\.(\d+) +(\d+\.\d\d)$", text, flags=re.MULTILINE)
    total = re.search(r"^#   minimum (\d+\.\d\d), maximum (\d+\.\d\d)", text, flags=re.MULTILINE)
    assert total, "the comment names the least and the most an hour costs"
    table = {name: (int(low), int(high), float(each)) for name, low, high, each in rows}
    return table, float(total[1]), float(total[2])


def test_every_file_is_tested_here():
    assert sorted(p.name for p in CLUSTER.glob("*.yaml")) == sorted(LAUNCHER + KUBERAY)


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_fit_rays_own_schema(name):
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(load(name), schema)


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_pass_rays_own_loader(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(load(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[key] == load(name)[key] or key == "head_setup_commands", "no default command sneaks in"


@pytest.mark.parametrize("name", LAUNCHER + KUBERAY)
def test_two_lines_to_change_are_marked(name):
    text = (CLUSTER / name).read_text()
    marks = re.findall(r"# CHANGE (\d)", text)
    assert sorted(marks) == ["1", "2"]
    assert "Change two lines, both marked CHANGE" in text


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "one-machine.yaml"])
def test_launcher_costs_are_those_of_the_node_types(name):
    config, (table, least, most) = load(name), prices(name)
    types = dict(config["available_node_types"])
    types.pop(config["head_node_type"])
    stated = {kind: (low, high) for kind, (low, high, _) in table.items() if kind != "head"}
    assert stated == {kind: (t["min_workers"], t["max_workers"]) for kind, t in types.items()}
    head = table["head"][2]
    assert least == pytest.approx(head + sum(low * each for low, _, each in table.values()) - head, abs=0.005)
    dearest = sorted((each for k, (_, high, each) in table.items() if k != "head" for _ in range(high)), reverse=True)
    assert most == pytest.approx(head + sum(dearest[: config["max_workers"]]), abs=0.005)


def test_on_premise_costs_count_the_machines():
    config, (table, least, most) = load("on-premise.yaml"), prices("on-premise.yaml")
    machines = len(config["provider"]["worker_ips"])
    assert table["worker"][:2] == (machines, machines)
    assert config["max_workers"] == machines
    assert (least, most) == (0, 0)


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_costs_are_those_of_the_worker_groups(name):
    table, least, most = prices(name)
    groups = ray_spec(name)["workerGroupSpecs"]
    assert {k: v[:2] for k, v in table.items() if k != "head"} == {
        g["groupName"]: (g["minReplicas"], g["maxReplicas"]) for g in groups
    }
    assert least == table["head"][2]
    assert most == pytest.approx(sum(high * each for _, high, each in table.values()), abs=0.005)


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_spot_comes_first_and_falls_back_to_the_same_machine(name):
    types = load(name)["available_node_types"]
    config_key = "InstanceType" if name == "aws.yaml" else "machineType"
    spots = [kind for kind in types if kind.endswith("-spot")]
    assert spots == ["cpu-spot", "gpu1-spot", "gpu4-spot"]
    for kind in spots:
        spot, fixed = types[kind], types[kind.replace("spot", "on-demand")]
        assert spot["priority"] > fixed["priority"]
        assert spot["resources"] == fixed["resources"]
        assert spot["node_config"][config_key] == fixed["node_config"][config_key]
        assert _is_spot(spot["node_config"])
        assert not _is_spot(fixed["node_config"])
    assert not _is_spot(types["head"]["node_config"]), "a preempted head takes the cluster with it"


def _is_spot(node: dict[str, Any]) -> bool:
    aws = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return aws or node.get("scheduling", {}).get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_workers_hand_on_the_notice_of_their_cloud(name):
    cloud = name.removesuffix(".yaml")
    told = [c for c in load(name)["worker_start_ray_commands"] if "boom_ray.cluster.spot_notice" in c]
    assert [c.split()[:5] for c in told] == [["nohup", "python", "-m", "boom_ray.cluster.spot_notice", cloud]]
    assert told[0].endswith("&"), "the launcher would wait for it"


@pytest.mark.parametrize("name", KUBERAY)
def test_spot_pods_hand_on_their_end(name):
    for group in ray_spec(name)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        assert (hook is not None) == group["groupName"].endswith("-spot")
        if hook:
            assert hook[:-1] == ["python", "-m", "boom_ray.cluster.spot_notice", "now", "--seconds"]
            assert int(hook[-1]) < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_head_takes_no_work(name):
    config = load(name)
    if config["provider"]["type"] != "local":  # there, the command alone says it
        assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
        assert config["available_node_types"][config["head_node_type"]]["max_workers"] == 0
    for command in config["head_start_ray_commands"]:
        if "--head" in command:
            assert "--num-cpus=0" in command
            assert "--num-gpus=0" in command


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "on-premise.yaml"])
def test_launcher_doors_are_shut(name):
    config = load(name)
    heads = [c for c in config["head_start_ray_commands"] if "--head" in c]
    assert len(heads) == 1
    assert "--dashboard-host=127.0.0.1" in heads[0]
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "0.0.0.0" not in (CLUSTER / name).read_text()


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "on-premise.yaml"])
def test_storage_is_shared_and_runs_lie_on_it(name):
    config = load(name)
    assert "-v /mnt/boom_ray:/mnt/boom_ray" in config["docker"]["run_options"]
    assert "-e BOOM_RAY_HOME=/mnt/boom_ray/runs" in config["docker"]["run_options"]
    assert any("mountpoint -q /mnt/boom_ray" in command for command in config["initialization_commands"])


def test_kubernetes_manifests_hold_what_they_need_and_nothing_else():
    assert set(manifests("kuberay-cluster.yaml")) == {"PersistentVolumeClaim", "NetworkPolicy", "RayCluster"}
    assert set(manifests("kuberay-job.yaml")) == {"PersistentVolumeClaim", "NetworkPolicy", "RayJob"}
    for name in KUBERAY:
        found = manifests(name)
        assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
        ray = found.get("RayCluster") or found["RayJob"]
        assert ray["apiVersion"] == "ray.io/v1"


def test_job_ends_cleans_up_and_may_be_tried_again():
    spec = manifests("kuberay-job.yaml")["RayJob"]["spec"]
    assert set(spec) == {
        "entrypoint", "submissionMode", "backoffLimit", "submitterConfig", "activeDeadlineSeconds",
        "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "suspend", "submitterPodTemplate", "rayClusterSpec",
    }  # fmt: skip
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] >= 3600
    assert spec["backoffLimit"] >= 1
    assert spec["suspend"] is False
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["entrypoint"].split()[1].removeprefix("/home/ray/boom_ray/") == "jobs/run.py"
    submitter = spec["submitterPodTemplate"]
    assert submitter["spec"]["restartPolicy"] == "Never"
    policy = manifests("kuberay-job.yaml")["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == submitter["metadata"]["labels"]


@pytest.mark.parametrize("name", KUBERAY)
def test_ray_cluster_fields(name):
    spec = ray_spec(name)
    assert set(spec) == {
        "rayVersion", "enableInTreeAutoscaling", "authOptions", "autoscalerOptions", "headGroupSpec",
        "workerGroupSpecs",
    }  # fmt: skip
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert pinned
    assert spec["rayVersion"] == pinned[1]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2", "priorities are its doing"
    assert set(spec["autoscalerOptions"]) == {"version", "upscalingMode", "idleTimeoutSeconds", "resources"}
    assert set(spec["headGroupSpec"]) == {"rayStartParams", "template"}
    params = spec["headGroupSpec"]["rayStartParams"]
    assert (params["num-cpus"], params["num-gpus"]) == ("0", "0")
    assert all(isinstance(value, str) for value in params.values()), "the operator takes text only"


@pytest.mark.parametrize("name", KUBERAY)
def test_dashboard_is_local_or_behind_token_and_network_policy(name):
    found, spec = manifests(name), ray_spec(name)
    policy = found["NetworkPolicy"]["spec"]
    labels = spec["headGroupSpec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"][0] == {"from": [{"podSelector": {"matchLabels": labels}}]}
    if spec["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1":
        assert len(policy["ingress"]) == 1
    else:
        assert spec["authOptions"]["mode"] == "token"
        assert policy["ingress"][1]["ports"] == [{"protocol": "TCP", "port": 8265}]
        assert len(policy["ingress"]) == 2


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_are_equal_where_they_should_be(name):
    spec = ray_spec(name)
    head = spec["headGroupSpec"]["template"]["spec"]
    image = head["containers"][0]["image"]
    for group in spec["workerGroupSpecs"]:
        assert set(group) == {
            "groupName", "replicas", "minReplicas", "maxReplicas", "priority", "rayStartParams", "template",
        }  # fmt: skip
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        assert container["image"] == image
        assert pod["volumes"] == head["volumes"]
        assert container["volumeMounts"] == head["containers"][0]["volumeMounts"]
        assert container["resources"]["requests"] == container["resources"]["limits"], "Ray counts what a pod may use"
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == group["groupName"].startswith("gpu")
    for pod in [head, *(g["template"]["spec"] for g in spec["workerGroupSpecs"])]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert claims == [manifests(name)["PersistentVolumeClaim"]["metadata"]["name"]]


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_spot_comes_first_and_falls_back(name):
    groups = {g["groupName"]: g for g in ray_spec(name)["workerGroupSpecs"]}
    for kind in ("cpu", "gpu"):
        spot, fixed = groups[f"{kind}-spot"], groups[f"{kind}-on-demand"]
        assert spot["priority"] > fixed["priority"]
        assert "nodeSelector" in spot["template"]["spec"]
        assert "affinity" in fixed["template"]["spec"], "on-demand stays off spot nodes"
        same = [g["template"]["spec"]["containers"][0]["resources"] for g in (spot, fixed)]
        assert same[0] == same[1]


def test_both_manifests_describe_the_same_cluster():
    one, other = (ray_spec(name) for name in KUBERAY)
    text = json.dumps(other).replace("boom-ray-job", "boom-ray")
    same = json.loads(text)
    same["headGroupSpec"]["rayStartParams"]["dashboard-host"] = "127.0.0.1"
    assert one == same


@pytest.mark.parametrize("name", KUBERAY)
def test_manifests_fit_the_operators_definitions(name):
    """Every field against KubeRay's own definitions, which are no part of the project; unknown fields are refused."""
    folder = os.environ.get("BOOM_RAY_KUBERAY_CRDS")
    if not folder:
        pytest.skip("BOOM_RAY_KUBERAY_CRDS (folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml) is not set")
    import jsonschema

    found = manifests(name)
    document = found.get("RayCluster") or found["RayJob"]
    text = (Path(folder) / f"ray.io_{document['kind'].lower()}s.yaml").read_text()
    definition = yaml.load(text, Loader=yaml.CSafeLoader)  # a megabyte: the C loader takes a tenth of the time
    version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    jsonschema.validate(document["spec"], _strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return {**closed, **{key: _strict(value) for key, value in schema.items()}}


def test_image_copies_what_exists_runs_as_a_user_and_asks_for_a_token():
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    base = re.findall(r"^FROM (\S+)$", text, flags=re.MULTILINE)
    assert base == ["python:3.11-slim-bookworm"]
    sources = [s for line in re.findall(r"^COPY (.+)$", text, flags=re.MULTILINE) for s in line.split()[1:-1]]
    allowed = re.findall(r"^!(\S+)$", (CLUSTER / "Dockerfile.dockerignore").read_text(), flags=re.MULTILINE)
    assert sorted(sources) == sorted(allowed)
    missing = [s for s in sources if not (ROOT / s).exists()]
    assert not missing
    assert re.search(r"^USER ray$", text, flags=re.MULTILINE)
    assert "RAY_AUTH_MODE=token" in text
    assert "-c constraints.txt" in text


def test_no_secret_and_no_address_of_a_real_machine():
    for file in CLUSTER.iterdir():
        text = file.read_text()
        assert not re.search(r"AKIA|BEGIN .*PRIVATE KEY|password|hf_[A-Za-z0-9]{10}", text), file.name
        addresses = set(re.findall(r"\b(\d+\.\d+\.\d+\.\d+)\b", text))
        assert all(a.startswith(("127.", "192.0.2.", "10.128.0.0")) or a == "0.0.0.0" for a in addresses), file.name


def test_readme_names_every_file_and_says_what_has_not_run():
    text = (CLUSTER / "README.md").read_text()
    for file in [*LAUNCHER, *KUBERAY, "Dockerfile"]:
        assert f"`{file}`" in text
    assert "No real cloud or Kubernetes cluster has run these files." in text
