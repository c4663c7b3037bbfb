"""Owns the network in the template: the VPC, the security groups, the executors' DNS name, and the load balancer."""

import math
from typing import Any

from run_gpt.config import EXECUTOR_PORT
from run_gpt.deploy.aws.cloudformation import Resources, att, ref, resource, sub, tags
from run_gpt.deploy.aws.options import Options
from run_gpt.deploy.deployment import GRPC_PORT, HTTP_PORT, Deployment

DNS_SECONDS = 5
"""Time to live of DNS answers, in seconds: the greatest age of a gateway's list of executors."""
_EXECUTORS = "executors"
_LEAST_IDLE, _MOST_IDLE = 60, 6000
"""Bounds of the load balancer's idle timeout for connections, in seconds."""


def executor_host(deployment: Deployment) -> str:
    """Return the executors' DNS name, which has an address for each."""
    return f"{_EXECUTORS}.{deployment.name}.internal"


def vpc(options: Options) -> Any:
    """Return the VPC's id."""
    return options.vpc or ref("Vpc")


def subnets(options: Options) -> list[Any]:
    """Return the ids of the subnets for containers and instances."""
    return list(options.subnets.split(",")) if options.subnets else [ref("PrivateSubnet0"), ref("PrivateSubnet1")]


def network(deployment: Deployment, options: Options) -> Resources:
    """Return all resources of the network."""
    own = {} if options.vpc else own_vpc(deployment.name)
    return own | security_groups(options) | discovery(deployment, options) | load_balancer(deployment, options)


def own_vpc(name: str) -> Resources:
    """Return two public subnets for the load balancer, and two private ones with internet access through a NAT gateway.

    A task on EC2 with an address of its own gets no public one: without the NAT it could fetch neither image nor model.
    """
    made: Resources = {
        "Vpc": resource(
            "EC2::VPC",
            {"CidrBlock": "10.0.0.0/16", "EnableDnsSupport": True, "EnableDnsHostnames": True, "Tags": tags(name)},
        ),
        "InternetGateway": resource("EC2::InternetGateway", {"Tags": tags(name)}),
        "InternetAttachment": resource(
            "EC2::VPCGatewayAttachment", {"VpcId": ref("Vpc"), "InternetGatewayId": ref("InternetGateway")}
        ),
        "PublicRoutes": resource("EC2::RouteTable", {"VpcId": ref("Vpc"), "Tags": tags(f"{name} public")}),
        "PublicRoute": resource(
            "EC2::Route",
            {
                "RouteTableId": ref("PublicRoutes"),
                "DestinationCidrBlock": "0.0.0.0/0",
                "GatewayId": ref("InternetGateway"),
            },
            DependsOn="InternetAttachment",
        ),
        "NatAddress": resource("EC2::EIP", {"Domain": "vpc", "Tags": tags(name)}, DependsOn="InternetAttachment"),
        "Nat": resource(
            "EC2::NatGateway",
            {
                "AllocationId": att("NatAddress", "AllocationId"),
                "SubnetId": ref("PublicSubnet0"),
                "Tags": tags(name),
            },
        ),
        "PrivateRoutes": resource("EC2::RouteTable", {"VpcId": ref("Vpc"), "Tags": tags(f"{name} private")}),
        "PrivateRoute": resource(
            "EC2::Route",
            {"RouteTableId": ref("PrivateRoutes"), "DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": ref("Nat")},
        ),
        # Free of charge; image layers come this way instead of through the NAT.
        "S3Endpoint": resource(
            "EC2::VPCEndpoint",
            {
                "VpcId": ref("Vpc"),
                "ServiceName": sub("com.amazonaws.${AWS::Region}.s3"),
                "VpcEndpointType": "Gateway",
                "RouteTableIds": [ref("PrivateRoutes")],
            },
        ),
    }
    for zone in (0, 1):
        made |= _subnet("Public", zone, f"10.0.{zone}.0/24", name)
        made |= _subnet("Private", zone, f"10.0.{16 * (zone + 1)}.0/20", name)
    return made


def _subnet(kind: str, zone: int, block: str, name: str) -> Resources:
    subnet = f"{kind}Subnet{zone}"
    properties = {
        "VpcId": ref("Vpc"),
        "CidrBlock": block,
        "AvailabilityZone": {"Fn::Select": [zone, {"Fn::GetAZs": ""}]},
        "Tags": tags(f"{name} {kind.lower()}"),
    }
    routes = {"SubnetId": ref(subnet), "RouteTableId": ref(f"{kind}Routes")}
    return {
        subnet: resource("EC2::Subnet", properties),
        f"{subnet}Routes": resource("EC2::SubnetRouteTableAssociation", routes),
    }


def security_groups(options: Options) -> Resources:
    """Return the security groups of the load balancer, the gateways, the executors and the instances.

    Clients reach the load balancer, which reaches the gateways, which reach the executors. Nothing reaches the
    instances.
    """
    ports = (GRPC_PORT, HTTP_PORT)
    balancer = {"SourceSecurityGroupId": ref("LoadBalancerSecurity")}
    gateways = {"SourceSecurityGroupId": ref("GatewaySecurity")}
    return {
        "LoadBalancerSecurity": _security_group(
            options,
            "clients of the load balancer",
            [_from({"CidrIp": network}, port) for network in options.networks for port in ports],
        ),
        "GatewaySecurity": _security_group(
            options, "the load balancer to the gateways", [_from(balancer, port) for port in ports]
        ),
        "ExecutorSecurity": _security_group(options, "gateways to executors", [_from(gateways, EXECUTOR_PORT)]),
        "InstanceSecurity": _security_group(options, "nobody to the instances", []),
    }


def _from(source: dict[str, Any], port: int) -> dict[str, Any]:
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **source}


def _security_group(options: Options, who: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    properties: dict[str, Any] = {"GroupDescription": who, "VpcId": vpc(options)}
    return resource("EC2::SecurityGroup", properties | ({"SecurityGroupIngress": rules} if rules else {}))


def discovery(deployment: Deployment, options: Options) -> Resources:
    """Return the executors' name in a private DNS zone.

    It has no health checks: the gateways' pool checks each address.
    """
    namespace = {"Name": executor_host(deployment).removeprefix(f"{_EXECUTORS}."), "Vpc": vpc(options)}
    service = {
        "Name": _EXECUTORS,
        "NamespaceId": ref("Namespace"),
        "DnsConfig": {"RoutingPolicy": "MULTIVALUE", "DnsRecords": [{"Type": "A", "TTL": DNS_SECONDS}]},
    }
    return {
        "Namespace": resource("ServiceDiscovery::PrivateDnsNamespace", namespace),
        "ExecutorNames": resource("ServiceDiscovery::Service", service),
    }


def load_balancer(deployment: Deployment, options: Options) -> Resources:
    """Return a network load balancer: an HTTP one would carry gRPC with a certificate only."""
    if options.internal:
        where = subnets(options)
    elif options.public_subnets:
        where = list(options.public_subnets.split(","))
    else:
        where = [ref("PublicSubnet0"), ref("PublicSubnet1")]
    balancer = resource(
        "ElasticLoadBalancingV2::LoadBalancer",
        {
            "Type": "network",
            "Scheme": "internal" if options.internal else "internet-facing",
            "Subnets": where,
            "SecurityGroups": [ref("LoadBalancerSecurity")],
            # A gateway in one zone serves clients of all zones.
            "LoadBalancerAttributes": [{"Key": "load_balancing.cross_zone.enabled", "Value": "true"}],
            "Tags": tags(deployment.name),
        },
    )
    if not (options.internal or options.vpc):
        balancer["DependsOn"] = "PublicRoute"
    return (
        {"LoadBalancer": balancer}
        | _listener("Grpc", GRPC_PORT, deployment, options)
        | _listener("Http", HTTP_PORT, deployment, options)
    )


def _listener(name: str, port: int, deployment: Deployment, options: Options) -> Resources:
    """Return a listener and its targets. The targets' health check is `/health`.

    With `/ready`, ECS would end and replace gateways while a model is loading.
    """
    targets = {
        "VpcId": vpc(options),
        "TargetType": "ip",
        "Protocol": "TCP",
        "Port": port,
        "HealthCheckProtocol": "HTTP",
        "HealthCheckPort": str(HTTP_PORT),
        "HealthCheckPath": "/health",
        "HealthCheckIntervalSeconds": 10,
        "HealthyThresholdCount": 2,
        "UnhealthyThresholdCount": 3,
        "TargetGroupAttributes": [{"Key": "deregistration_delay.timeout_seconds", "Value": "30"}],
    }
    listener: dict[str, Any] = {
        "LoadBalancerArn": ref("LoadBalancer"),
        "Port": port,
        "DefaultActions": [{"Type": "forward", "TargetGroupArn": ref(f"{name}Targets")}],
    }
    if options.certificate:
        listener |= {
            "Protocol": "TLS",
            "Certificates": [{"CertificateArn": options.certificate}],
            "SslPolicy": "ELBSecurityPolicy-TLS13-1-2-2021-06",
            "AlpnPolicy": ["HTTP2Only" if port == GRPC_PORT else "HTTP1Only"],
        }
    else:
        # A request without streaming sends nothing until its answer is complete.
        idle = min(_MOST_IDLE, max(_LEAST_IDLE, math.ceil(deployment.server.request_timeout) + 10))
        listener |= {
            "Protocol": "TCP",
            "ListenerAttributes": [{"Key": "tcp.idle_timeout.seconds", "Value": str(idle)}],
        }
    return {
        f"{name}Targets": resource("ElasticLoadBalancingV2::TargetGroup", targets),
        f"{name}Listener": resource("ElasticLoadBalancingV2::Listener", listener),
    }
