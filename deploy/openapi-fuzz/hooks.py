"""What deploy/openapi-fuzz.sh teaches schemathesis: MessagePack, and the few rules that no schema can tell.

Each rule is applied to calls that are valid but for it, and keeps them from breaking it; all other calls are made as they
were made up. The rules of the cluster keep the replicas that are tested running, and their leader where it is.
"""

import json
import os
import re
import urllib.request
from urllib.parse import urlsplit
from uuid import UUID

import msgpack
import schemathesis

PACKED = ("application/vnd.msgpack", "application/msgpack")
# The ids of the replicas that are tested.
REPLICAS = (1, 2, 3)
# As the description has it.
EVENT_ID = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")


@schemathesis.serializer(*PACKED)
def pack(_context, value):
    return msgpack.packb(fitting(value))


def fitting(value):
    """The value with numbers that MessagePack has."""
    if isinstance(value, dict):
        return {fitting(name): fitting(member) for name, member in value.items()}
    if isinstance(value, list):
        return [fitting(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return float(value)
    return value


@schemathesis.deserializer(*PACKED)
def unpack(_context, response):
    return msgpack.unpackb(response.content, raw=False)


@schemathesis.hook
def before_call(_context, case, kwargs):
    rule = RULES.get((case.method.upper(), case.operation.path))
    if rule:
        rule(case)


def names_itself(case):
    """A heartbeat that names its worker again names the one in the path."""
    if isinstance(case.body, dict) and is_uuid(case.body.get("worker_id")):
        case.body["worker_id"] = case.path_parameters.get("id")


def names_nobody(case):
    """A worker that is assigned to a job is one that has registered, and none has."""
    if isinstance(case.body, dict) and is_uuid(case.body.get("assigned_worker_id")):
        del case.body["assigned_worker_id"]
        case.body.setdefault("error_message", "instead of a worker")


def one_value_each(case):
    """A tag has one value."""
    tags = case.query.get("tag") if case.query else None
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        case.query["tag"] = list({tag.split(":")[0]: tag for tag in tags}.values())


def a_whole_id(case):
    """Schemathesis sends a part of what it made up for this header in its default case; then it is left out."""
    sent = case.headers.get("Last-Event-ID") if case.headers else None
    if case.meta.generation.mode.is_positive and isinstance(sent, str) and not EVENT_ID.fullmatch(sent):
        del case.headers["Last-Event-ID"]


def nobody_leaves(case):
    """No replica that is tested is taken out."""
    if str(case.path_parameters.get("id")) in {str(id) for id in REPLICAS}:
        case.path_parameters["id"] = 4


def nobody_joins(case):
    """Nobody answers at the address of a replica that is to join, and none that is tested gets another address."""
    if isinstance(case.body, dict) and case.body.get("id") in REPLICAS:
        case.body["id"] = 4


def the_leader_stays(case):
    """The leadership is handed to the replica that has it."""
    if isinstance(case.body, dict) and case.body.get("to") in (None, *REPLICAS):
        case.body["to"] = leader_of(case)


def leader_of(case):
    base = urlsplit(case.operation.base_url)
    request = urllib.request.Request(f"{base.scheme}://{base.netloc}/api/v1/cluster")
    request.add_header("Authorization", "Bearer " + os.environ["CORTEX_TOKEN"])
    return json.load(urllib.request.urlopen(request))["leader"]


def is_uuid(value):
    try:
        return isinstance(value, str) and bool(UUID(value))
    except ValueError:
        return False


RULES = {
    ("GET", "/api/v1/events"): a_whole_id,
    ("GET", "/api/v1/jobs/{id}/events"): a_whole_id,
    ("POST", "/api/v1/workers/{id}/heartbeat"): names_itself,
    ("PATCH", "/api/v1/jobs/{id}"): names_nobody,
    ("GET", "/api/v1/jobs"): one_value_each,
    ("DELETE", "/api/v1/cluster/members/{id}"): nobody_leaves,
    ("POST", "/api/v1/cluster/members"): nobody_joins,
    ("POST", "/api/v1/cluster/transfer"): the_leader_stays,
}
