"""Owns the building blocks of templates: resources, roles, CloudFormation's functions as values, and the YAML text."""

from typing import Any

import yaml

Resources = dict[str, dict[str, Any]]
"""Resources of a template, by their logical names."""


def resource(kind: str, properties: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    """Return a resource of the kind `AWS::{kind}`; attributes such as `DependsOn` go beside its properties."""
    return {"Type": f"AWS::{kind}", **attributes, "Properties": properties}


def ref(name: str) -> dict[str, str]:
    """Return a reference to a resource or parameter."""
    return {"Ref": name}


def att(name: str, attribute: str) -> dict[str, list[str]]:
    """Return a reference to an attribute of a resource."""
    return {"Fn::GetAtt": [name, attribute]}


def sub(text: str) -> dict[str, str]:
    """Return a text in which CloudFormation replaces `${Name}` and `${Name.Attribute}`."""
    return {"Fn::Sub": text}


def tags(name: str) -> list[dict[str, str]]:
    """Return the `Name` tag, which the AWS console shows."""
    return [{"Key": "Name", "Value": name}]


def role(service: str, statements: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a role of an AWS service, with these statements and no others."""
    trust = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    policy = {"Version": "2012-10-17", "Statement": statements}
    return resource(
        "IAM::Role",
        {
            "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [trust]},
            "Policies": [{"PolicyName": "rungpt", "PolicyDocument": policy}],
        },
    )


def allow(actions: list[str], on: Any) -> dict[str, Any]:
    """Return a policy statement that allows these actions."""
    return {"Effect": "Allow", "Action": actions, "Resource": on}


def dump(template: dict[str, Any]) -> str:
    """Return the template as YAML, with texts of several lines as block scalars."""
    return yaml.dump(template, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # CloudFormation takes no anchors


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
