"""A cluster, the worker's image in it, and two real servers outside it that its pods can reach.

KUBECONFIG names the cluster, WARP_WORKER_IMAGE an image that its nodes hold or can pull, WARP_E2E_HOST an
address of this machine that pods reach. Without KUBECONFIG a kind cluster is made where docker runs, and the
image is built and loaded into it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
from kubernetes import client, config
from psycopg import sql

from warp_e2e import Destination, Namespace
from warp_testing.servers import MongoServer, PostgresServer

ROOT = Path(__file__).parent.parent
BUILT_IMAGE = "localhost/cartridge-warp-worker:dev"
BRIDGE = "10.89.0.1"


def missing(reason: str) -> NoReturn:
    """Skip on a laptop; where everything must run, fail with the same reason."""
    if os.environ.get("WARP_REQUIRE_ALL") == "1":
        pytest.fail(f"required here: {reason}")
    pytest.skip(reason)


def docker(*arguments: str) -> str | None:
    """The output of a docker command, None where it fails or docker is not there."""
    if shutil.which("docker") is None:
        return None
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.fixture(scope="session")
def kubeconfig(request: pytest.FixtureRequest) -> str:
    if path := os.environ.get("KUBECONFIG"):
        return path
    if docker("info") is None:
        missing("KUBECONFIG is not set, and docker, which a kind cluster needs, does not answer")
    if kind := shutil.which("kind"):
        request.config.option.kind_bin = kind
    return str(request.getfixturevalue("kind_cluster").kubeconfig_path)


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest, kubeconfig: str) -> str:
    """The worker's image, present on the cluster's nodes."""
    named = os.environ.get("WARP_WORKER_IMAGE")
    if "KUBECONFIG" in os.environ:
        return named or missing("WARP_WORKER_IMAGE does not say which image the cluster's nodes hold")
    if named is None and docker("build", "-q", "-f", "Dockerfile.worker", "-t", BUILT_IMAGE, ".") is None:
        pytest.fail("docker could not build Dockerfile.worker; run `make images` to see why")
    request.getfixturevalue("kind_cluster").load_docker_image(named or BUILT_IMAGE)
    return named or BUILT_IMAGE


@pytest.fixture(scope="session")
def host(kubeconfig: str) -> str:
    """An address of this machine that pods reach."""
    gateways = docker("network", "inspect", "kind", "-f", "{{range .IPAM.Config}}{{.Gateway}} {{end}}") or ""
    for address in (os.environ.get("WARP_E2E_HOST"), BRIDGE, *gateways.split()):
        if not address or ":" in address:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                continue
        return address
    missing("no address of this machine is known that pods reach; set WARP_E2E_HOST")


@pytest.fixture
def namespace(kubeconfig: str) -> Iterator[Namespace]:
    """A fresh namespace in which the `restricted` Pod Security Standard is enforced."""
    name = f"warp-e2e-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    with config.new_client_from_config(kubeconfig) as api:
        core = client.CoreV1Api(api)
        core.create_namespace({"metadata": {"name": name, "labels": labels}})
        made = Namespace(core, name)
        try:
            made.wait_for_account()
            yield made
        finally:
            made.release()
            core.delete_namespace(name)


@pytest.fixture(scope="session")
def source(host: str) -> Iterator[MongoServer]:
    server = MongoServer(host=host).start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgres(host: str) -> Iterator[PostgresServer]:
    """PostgreSQL that other hosts reach with a password only."""
    server = PostgresServer(settings={"listen_addresses": f"127.0.0.1,{host}"}).start()
    with (server.data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        connection.execute("SELECT pg_reload_conf()")
    yield server
    server.close()


@pytest.fixture
def destination(postgres: PostgresServer, host: str) -> Iterator[Destination]:
    """An empty database with an owner that has a password and no other privilege."""
    name, password = f"t{secrets.token_hex(5)}", secrets.token_hex(16)
    role = sql.Identifier(name)
    with psycopg.connect(postgres.uri(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
        yield Destination(
            for_pods=f"postgresql://{name}:{password}@{host}:{postgres.port}/{name}",
            for_tests=postgres.uri(name),
            password=password,
        )
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))
