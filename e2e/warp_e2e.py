"""What the end-to-end tests do in a cluster: start a worker as a pod, wait, read, delete."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from kubernetes import client

T = TypeVar("T")
GRACE_SECONDS = 30
# Keeps a deleted pod's object until its exit code has been read.
FINALIZER = "warp.cartridge.io/e2e"


@dataclass(frozen=True)
class Destination:
    """One database, as pods and as the tests reach it."""

    for_pods: str = field(repr=False)
    for_tests: str
    password: str = field(repr=False)


def wait_until(what: str, seconds: float, probe: Callable[[], T | None], detail: Callable[[], str] = str) -> T:
    """The first true answer of `probe`; after `seconds` a failure that says what was awaited."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := probe():
            return answer
        time.sleep(0.2)
    pytest.fail(f"{what} did not happen within {seconds:.0f} s\n{detail()}")


def probe(path: str, **settings: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, **settings}


def worker_pod(name: str, image: str, arguments: list[str], secret: str) -> dict[str, Any]:
    """A pod that the `restricted` Pod Security Standard admits, with a file system that cannot be written."""
    container = {
        "name": "worker",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "envFrom": [{"secretRef": {"name": secret}}],
        "ports": [{"name": "http", "containerPort": 8080}],
        "startupProbe": probe("/startupz", periodSeconds=1, failureThreshold=60),
        "livenessProbe": probe("/healthz", periodSeconds=5),
        "readinessProbe": probe("/readyz", periodSeconds=1),
        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "dnsPolicy": "Default",  # addresses are numbers here, and not every test cluster has a DNS
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    return {"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": spec}


@dataclass
class Pod:
    """A worker that was started."""

    core: client.CoreV1Api
    namespace: str
    name: str

    def read(self) -> client.V1Pod:
        return self.core.read_namespaced_pod(self.name, self.namespace)

    def log(self) -> str:
        try:
            return str(self.core.read_namespaced_pod_log(self.name, self.namespace))
        except client.ApiException as error:
            return f"(no log: {error.reason})"

    def story(self) -> str:
        """What a person would look at first: the container's state, the last log lines, the events."""
        states = [repr(status.state) for status in self.read().status.container_statuses or []]
        events = self.core.list_namespaced_event(self.namespace, field_selector=f"involvedObject.name={self.name}")
        lines = [f"{event.reason}: {event.message}" for event in events.items]
        return "\n".join([*states, *self.log().splitlines()[-40:], *lines])

    def exit_code(self) -> int | None:
        for status in self.read().status.container_statuses or []:
            if status.state.terminated:
                return int(status.state.terminated.exit_code)
        return None

    def wait_for_end(self, seconds: float) -> int:
        """The exit code. A code of 0 is false, hence the text in between."""

        def ended() -> str | None:
            code = self.exit_code()
            return None if code is None else str(code)

        return int(wait_until(f"the end of pod {self.name}", seconds, ended, self.story))

    def wait_until_ready(self, seconds: float) -> None:
        def ready() -> bool:
            assert self.exit_code() is None, f"pod {self.name} ended before it was ready\n{self.story()}"
            conditions = self.read().status.conditions or []
            return any(each.type == "Ready" and each.status == "True" for each in conditions)

        wait_until(f"readiness of pod {self.name}", seconds, ready, self.story)

    def delete(self) -> None:
        self.core.delete_namespaced_pod(self.name, self.namespace)


@dataclass
class Namespace:
    """A namespace of one test."""

    core: client.CoreV1Api
    name: str
    pods: list[Pod] = field(default_factory=list)

    def wait_for_account(self) -> None:
        """Pods are refused until the controller has made the default service account."""

        def there() -> bool:
            return bool(self.core.list_namespaced_service_account(self.name).items)

        wait_until(f"the service account of {self.name}", 30, there)

    def start_worker(self, name: str, image: str, arguments: list[str], environment: dict[str, str]) -> Pod:
        """Start a worker whose environment comes from a Secret."""
        secret = {"metadata": {"name": name}, "stringData": environment}
        self.core.create_namespaced_secret(self.name, secret)
        self.core.create_namespaced_pod(self.name, worker_pod(name, image, arguments, name))
        pod = Pod(self.core, self.name, name)
        self.pods.append(pod)
        return pod

    def release(self) -> None:
        """Let the pods' objects go."""
        for pod in self.pods:
            self.core.patch_namespaced_pod(pod.name, self.name, {"metadata": {"finalizers": None}})
