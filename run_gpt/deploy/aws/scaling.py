"""Owns autoscaling by load in the template: from the gateways' log to the service's number of replicas."""

from dataclasses import replace

from run_gpt.deploy.aws.cloudformation import Resources, ref, resource, sub
from run_gpt.deploy.deployment import Deployment

LOG_SECONDS = 10.0
"""Seconds between two log lines of a gateway with its load; CloudWatch makes one value a minute from them."""
_METRIC = "InFlightPerReplica"


def telling_load(deployment: Deployment) -> Deployment:
    """Return the deployment; its gateways log their load if it scales by load."""
    if deployment.autoscale is None or deployment.server.log_load is not None:
        return deployment
    return replace(deployment, server=replace(deployment.server, log_load=LOG_SECONDS))


def scaling(deployment: Deployment) -> Resources:
    """Return the resources for autoscaling; none for a deployment of a fixed size.

    Each gateway logs its own requests in flight per replica. The requests of all gateways per replica are the average
    over the gateways, times their number. So the target of the average is one gateway's share.
    """
    if (autoscale := deployment.autoscale) is None:
        return {}
    namespace = f"RunGPT/{deployment.name}"
    filtered = {
        "LogGroupName": ref("GatewayLogs"),
        "FilterPattern": '{ $.event = "load" }',
        "MetricTransformations": [
            {"MetricNamespace": namespace, "MetricName": _METRIC, "MetricValue": "$.in_flight_per_replica"}
        ],
    }
    target = {
        "ServiceNamespace": "ecs",
        "ScalableDimension": "ecs:service:DesiredCount",
        "ResourceId": sub("service/${Cluster}/${ExecutorService.Name}"),
        "MinCapacity": autoscale.least,
        "MaxCapacity": autoscale.most,
    }
    policy = {
        "PolicyName": "in-flight",
        "PolicyType": "TargetTrackingScaling",
        "ScalingTargetId": ref("Scaling"),
        "TargetTrackingScalingPolicyConfiguration": {
            "CustomizedMetricSpecification": {"Namespace": namespace, "MetricName": _METRIC, "Statistic": "Average"},
            "TargetValue": autoscale.in_flight / deployment.gateways,
            "ScaleOutCooldown": 60,
            "ScaleInCooldown": 300,
        },
    }
    return {
        "Load": resource("Logs::MetricFilter", filtered),
        "Scaling": resource("ApplicationAutoScaling::ScalableTarget", target),
        "ScalingByLoad": resource("ApplicationAutoScaling::ScalingPolicy", policy),
    }
