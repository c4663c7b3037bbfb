"""Own message classes for a wire format: a private descriptor pool, built from a short table.

Jina's and docarray's generated messages need an import of those packages, which takes seconds, and two versions of one
message cannot share the default pool.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

_SCALARS = {"double": 1, "int32": 5, "bool": 8, "string": 9, "bytes": 12, "uint32": 13}
_MESSAGE, _SINGULAR, _REPEATED = 11, 1, 3


def message_classes(
    package: str, messages: Mapping[str, Mapping[str, tuple[int, str]]], *, unions: tuple[str, ...] = ()
) -> Any:
    """Return an object with the classes of `messages` as attributes.

    A message is {field: (number, kind)}; a kind is a scalar, another message of the table or `Struct`, after
    `repeated ` for a list. Fields that are not in the table are kept as they came. In a message that `unions` names, at
    most one field is set, and a field that is set is sent even if it is empty.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3", dependency=["google/protobuf/struct.proto"]
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        if name in unions:
            message.oneof_decl.add(name="content")
        for field_name, (number, kind) in fields.items():
            repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
            field = message.field.add(name=field_name, number=number, label=_REPEATED if repeated else _SINGULAR)
            if name in unions:
                field.oneof_index = 0
            field.type = _SCALARS.get(kind, _MESSAGE)
            if kind not in _SCALARS:
                field.type_name = ".google.protobuf.Struct" if kind == "Struct" else f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    struct = descriptor_pb2.FileDescriptorProto()
    struct_pb2.DESCRIPTOR.CopyToProto(struct)
    pool.Add(struct)
    pool.Add(file)
    return SimpleNamespace(
        **{name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}
    )
