"""GET /openapi.json: the operator API as OpenAPI 3.1, made from the table of routes and nothing else.

What must stay true: whatever is registered is in it, and an answer that it does not describe is a defect.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from kbctl import wire
from kbctld import __version__
from kbctld.control.parameters import Choice, Flag, Moment, Parameter, Whole
from kbctld.control.routes import Ask, Reply, Route

_REF = "#/components/schemas/{name}"
_PLAIN = re.compile(r"[^A-Za-z0-9_]+")
_VARIABLE = re.compile(r"\{([a-z_]+)\}")
_SEGMENTS = {
    "key": "A key id, a unique beginning of one, or the vault key itself.",
    "name": "The name it was given.",
}
_ERRORS = {
    400: "Not understood; the message names the field.",
    401: "No operator token, or one that is not good.",
    403: "From a web page or under a foreign Host, or the token's scope is too small.",
    404: "There is nothing of that name.",
    405: "Another method.",
    409: "What is there stands against it.",
    413: "The body is larger than 1 MiB.",
    415: "The body is not JSON.",
    431: "The head is too large.",
    503: "It can't be recorded or done now.",
}
_TOKEN = {"operatorToken": list[str]()}
_DERIVING = ("/vault/keys", "/vault_keys")


class OpenApi:
    """Serves the document of the routes that ``every`` gives, itself among them."""

    def __init__(self, every: Callable[[], list[Route]], server_url: str) -> None:
        self._every = every
        self._server_url = server_url
        self._body = b""

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [Route("GET", "/openapi.json", self._show, "read", "This document", gives=dict)]

    async def _show(self, _ask: Ask) -> Reply:
        self._body = self._body or msgspec.json.encode(document(self._every(), self._server_url))
        return Reply(self._body)


def document(routes: list[Route], server_url: str) -> dict[str, Any]:
    """The whole document."""
    given = [route.gives for route in routes if route.gives not in (None, str, dict)]
    kinds = [wire.ErrorReply, wire.KeySelf, *given, *(route.takes for route in routes if route.takes)]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    of = {repr(kind): _numbers(schema) for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {"/vault/self": {"get": _SELF}}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kbctl",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": (
                "The operator API. On the UNIX socket it asks for no token; on the proxy's port it does."
                " Dollars are JSON numbers and exact decimals."
            ),
        },
        "servers": [{"url": server_url}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {name: _numbers(schema) for name, schema in sorted(components.items())},
            "responses": {
                str(status): {
                    "description": about,
                    "content": {"application/json": {"schema": {"$ref": _REF.format(name="ErrorReply")}}},
                }
                for status, about in _ERRORS.items()
            },
            "securitySchemes": {
                "operatorToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`kbctl token create`; each operation says which scope it needs.",
                },
                "vaultKey": {"type": "http", "scheme": "bearer", "description": "`kbctl issue`"},
            },
        },
    }


def _operation(route: Route, of: Mapping[str, Any]) -> dict[str, Any]:
    variables = _VARIABLE.findall(route.path)
    told: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{_PLAIN.sub('-', route.path)}".rstrip("-"),
        "summary": route.summary,
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
                "description": _SEGMENTS.get(name, "Which one."),
            }
            for name in variables
        ]
        + [_parameter(name, parameter) for name, parameter in route.query.items()],
        "responses": {str(route.status): _success(route, of)}
        | {str(status): {"$ref": f"#/components/responses/{status}"} for status in errors_of(route)},
        "security": [] if route.scope is None else [_TOKEN],
    }
    if route.scope is not None:
        told["description"] = f"Needs a token of scope `{route.scope}`."
        told["x-scope"] = route.scope
    if route.takes is not None:
        told["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": of[repr(route.takes)]}},
        }
    if route.method == "POST" and route.path in _DERIVING:
        told["description"] += (
            " Or no token and `parent_vault_key`: an agent derives a child of the key that it has."
        )
        told["security"] = [_TOKEN, {}]
    return told


def errors_of(route: Route) -> list[int]:
    """Every status of an error that this route can answer."""
    found = {400, 403, 405, 431, *route.errors}
    if route.scope is not None:
        found.add(401)
    if route.takes is not None:
        found |= {413, 415}
    return sorted(found)


def _success(route: Route, of: Mapping[str, Any]) -> dict[str, Any]:
    if route.gives is None:
        return {"description": "Done."}
    if route.gives is str:
        return {"description": "Text.", "content": {route.kind: {"schema": {"type": "string"}}}}
    schema = {"type": "object"} if route.gives is dict else of[repr(route.gives)]
    return {"description": route.summary + ".", "content": {"application/json": {"schema": schema}}}


def _parameter(name: str, parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if isinstance(parameter, Whole):
        schema = {"type": "integer", "minimum": parameter.least, "maximum": parameter.most}
    elif isinstance(parameter, Flag):
        schema = {"type": "boolean"}
    elif isinstance(parameter, Moment):
        schema = {"type": "string", "format": "date-time"}
    elif isinstance(parameter, Choice):
        schema = {"type": "string", "enum": list(parameter.words)}
    if isinstance(parameter, Whole | Choice) and parameter.default is not None:
        schema["default"] = parameter.default
    if parameter.many:
        schema = {"type": "array", "items": schema}
    told = {"name": name, "in": "query", "required": False, "description": parameter.about}
    if name.endswith("."):
        # `metadata.tenant_id=acme`: an exploded object spreads its properties over the query.
        prefix = f"^{re.escape(name)}"
        # Any value will do: whatever stands in a query is a text.
        schema = {"type": "object", "patternProperties": {prefix: {}}, "additionalProperties": False}
        told |= {"style": "form", "explode": True}
    return told | {"schema": schema}


def _numbers(schema: Any) -> Any:
    """Exact decimals stand as JSON numbers on the wire, and a whole number is one of them."""
    if isinstance(schema, list):
        return [_numbers(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "string" and schema.get("format") == "decimal":
        return {"type": "number"}
    plain = {name: _numbers(part) for name, part in schema.items()}
    choices = plain.get("anyOf")
    if isinstance(choices, list) and {"type": "number"} in choices:
        plain["anyOf"] = [choice for choice in choices if choice != {"type": "integer"}]
    return plain


_SELF: dict[str, Any] = {
    "operationId": "get-vault-self",
    "summary": "What the vault key that asks may still do",
    "description": "On the proxy's port only.",
    "responses": {
        "200": {
            "description": "What it may still do.",
            "content": {"application/json": {"schema": {"$ref": _REF.format(name="KeySelf")}}},
        }
    }
    | {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in (400, 401, 403, 405, 431, 503)
    },
    "security": [{"vaultKey": list[str]()}],
}
