"""Owns how templates are written: resources, roles, CloudFormation's functions as values, and its YAML as text."""

from typing import Any

import yaml

Resources = dict[str, dict[str, Any]]
"""Resources of a template, by their logical names."""


def resource(kind: str, properties: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    """A resource of the kind `AWS::{kind}`; attributes such as `DependsOn` stand beside its properties."""
    return {"Type": f"AWS::{kind}", **attributes, "Properties": properties}


def ref(name: str) -> dict[str, str]:
    """What CloudFormation knows the resource or parameter by."""
    return {"Ref": name}


def att(name: str, attribute: str) -> dict[str, list[str]]:
    """An attribute of a resource."""
    return {"Fn::GetAtt": [name, attribute]}


def sub(text: str) -> dict[str, str]:
    """A text in which `${Name}` and `${Name.Attribute}` are replaced."""
    return {"Fn::Sub": text}


def tags(name: str) -> list[dict[str, str]]:
    """The tag by which people find it in the console."""
    return [{"Key": "Name", "Value": name}]


def role(service: str, statements: list[dict[str, Any]]) -> dict[str, Any]:
    """A role of an AWS service, with these statements and no others."""
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
    """A statement of a policy."""
    return {"Effect": "Allow", "Action": actions, "Resource": on}


def dump(template: dict[str, Any]) -> str:
    """The template as YAML, texts of several lines as such."""
    return yaml.dump(template, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # CloudFormation takes no anchors


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
