"""Owns the options of a deployment on AWS, and the checks for deployments that AWS could not run."""

import ipaddress
import re
from dataclasses import dataclass

from run_gpt.deploy.deployment import STOP_MARGIN, Deployment
from run_gpt.deploy.target import option
from run_gpt.errors import SetupError

MOST_REPLICAS = 8
"""Greatest number of replicas: Cloud Map's DNS answers with at most eight addresses."""
MOST_STOP_SECONDS = 120
"""Longest time, in seconds, that ECS gives a container on Fargate from SIGTERM to SIGKILL."""
EVERYWHERE = "0.0.0.0/0"

_ID = "-([0-9a-f]{8}|[0-9a-f]{17})"
_SUBNETS = (f"subnet{_ID}(,subnet{_ID})+", "two or more, such as subnet-0a1b2c3d,subnet-4e5f6a7b")
_FORMS = {
    "vpc": (f"vpc{_ID}", "such as vpc-0a1b2c3d"),
    "subnets": _SUBNETS,
    "public_subnets": _SUBNETS,
    "instance_type": (r"[a-z0-9-]+\.[a-z0-9-]+", "such as m7i.xlarge"),
    "certificate": (r"arn:aws[\w-]*:acm:[\w-]+:\d{12}:certificate/[\w-]+", "the ARN that Certificate Manager gives it"),
    "domain": (r"[a-z0-9-]+(\.[a-z0-9-]+)+", "such as llm.example.com"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `rungpt deploy --cloud aws`."""

    region: str | None = option(None, "Region; default: that of the AWS configuration.")
    instance_type: str | None = option(
        None, "EC2 instances of the replicas; default: the smallest m7i, with --gpus g6, that holds one."
    )
    disk_gib: int | None = option(None, "Disk of each instance in GiB; default: 50, and twice the memory of a replica.")
    vpc: str | None = option(None, "An existing VPC; default: a small one of its own.")
    subnets: str | None = option(None, "Its private subnets with a way out, for the containers: ID,ID.")
    public_subnets: str | None = option(None, "Its public subnets, for the load balancer: ID,ID.")
    internal: bool = option(False, "Let the load balancer be reached from within the VPC only.")
    allow_from: str = option(EVERYWHERE, "Networks that reach the load balancer: CIDR,CIDR.")
    certificate: str | None = option(None, "ARN of a certificate: both ports use TLS.")
    domain: str | None = option(None, "The name that the certificate is for.")

    def check(self, deployment: Deployment) -> None:
        """Raise SetupError for options that AWS would refuse, or that would fail minutes later."""
        self._check_forms()
        self._check_together()
        where = "the VPC" if self.internal else "the load balancer"
        deployment.check_closed(f"anyone who reaches {where}")
        _check_keys(deployment)
        _check_size(deployment)

    def _check_forms(self) -> None:
        for name, (form, such) in _FORMS.items():
            if (value := getattr(self, name)) is not None and not re.fullmatch(form, value):
                raise SetupError(f"--{name.replace('_', '-')} {value}: write {such}")
        for network in self.networks:
            try:
                ipaddress.IPv4Network(network)
            except ValueError as error:
                raise SetupError(f"--allow-from {network}: {error}; write such as 203.0.113.0/24") from None
        if self.disk_gib is not None and self.disk_gib < 30:
            raise SetupError(f"--disk-gib must be at least 30, which the machine's image takes, not {self.disk_gib}")

    def _check_together(self) -> None:
        if (self.vpc is None) != (self.subnets is None):
            raise SetupError("--vpc and --subnets: give both, or neither for a VPC of its own")
        if self.public_subnets is not None and (self.vpc is None or self.internal):
            raise SetupError("--public-subnets are for a load balancer of a --vpc that is not --internal: leave it out")
        if self.vpc is not None and self.public_subnets is None and not self.internal:
            raise SetupError("--vpc: give --public-subnets for the load balancer too, or say --internal")
        if (self.certificate is None) != (self.domain is None):
            raise SetupError("--certificate and --domain: give both, since clients check the name, or neither")

    @property
    def networks(self) -> list[str]:
        """Networks of `allow_from`."""
        return self.allow_from.split(",")

    def disk(self, deployment: Deployment) -> int:
        """Return the GiB of each instance's disk, for its system, the image, and the models with their conversions."""
        return self.disk_gib or 50 + 2 * round(deployment.memory_gib)


def _check_keys(deployment: Deployment) -> None:
    server = deployment.server
    if server.asks_for_key and server.api_key is None and server.api_key_file is None:
        raise SetupError("a key is required and there is none: give --api-key-file or $RUNGPT_API_KEY")


def _check_size(deployment: Deployment) -> None:
    most = deployment.replicas if deployment.autoscale is None else deployment.autoscale.most
    if most > MOST_REPLICAS:
        option = "--replicas" if deployment.autoscale is None else "--autoscale"
        raise SetupError(
            f"{option}: {most} replicas are more than the {MOST_REPLICAS} that the DNS of AWS returns; take "
            "larger replicas, several deployments, or --cloud kubernetes"
        )
    if deployment.stop_seconds > MOST_STOP_SECONDS:
        raise SetupError(
            f"--drain-seconds {deployment.server.drain_seconds:g}: AWS ends a container {MOST_STOP_SECONDS} s after it "
            f"gets SIGTERM, so at most {MOST_STOP_SECONDS - STOP_MARGIN} here"
        )


def check_pullable(deployment: Deployment) -> None:
    """Raise SetupError for an image that is on this machine only. `render` accepts such an image."""
    if "/" not in deployment.image:
        raise SetupError(
            f"--image {deployment.image}: AWS finds no such image; push it to a registry (docs/deploy/aws.md says how) "
            "and give its whole name"
        )
