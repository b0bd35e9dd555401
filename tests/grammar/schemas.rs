//! Schemas that tests generate from: twenty, every supported keyword among them.

pub const SCHEMAS: [(&str, &str); 20] = [
    ("boolean", r#"{"type": "boolean"}"#),
    (
        "null or text",
        r#"{"type": ["null", "string"], "maxLength": 12}"#,
    ),
    (
        "integers",
        r#"{"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 5}"#,
    ),
    (
        "range",
        r#"{"type": "integer", "minimum": -37, "exclusiveMaximum": 1205}"#,
    ),
    (
        "numbers",
        r#"{"type": "array", "items": {"type": "number", "minimum": 0}, "maxItems": 4}"#,
    ),
    (
        "enum",
        r#"{"enum": ["red", "green", {"deep": [1, 2.5, null]}, "\"quoted\"\\", 17, true]}"#,
    ),
    ("const", r#"{"const": {"a": "é\n"}}"#),
    (
        "person",
        r#"{"type": "object", "additionalProperties": false, "required": ["name", "age"], "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 30}, "age": {"type": "integer", "minimum": 0,
            "maximum": 130}, "email": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.(org|net)$"}}}"#,
    ),
    (
        "all optional",
        r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"},
            "c": {"type": "boolean"}, "d": {"type": "string", "maxLength": 3}}}"#,
    ),
    (
        "nested",
        r#"{"type": "object", "required": ["point", "tags"], "properties": {"point": {"type": "object",
            "required": ["x", "y"], "properties": {"x": {"type": "number"}, "y": {"type": "number"}}},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3}}}"#,
    ),
    ("any", "{}"),
    ("free object", r#"{"type": "object"}"#),
    (
        "map",
        r#"{"type": "object", "additionalProperties": {"type": "integer", "minimum": 5}}"#,
    ),
    (
        "tree",
        r##"{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["value", "children"],
            "additionalProperties": false, "properties": {"value": {"type": "integer"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}}"##,
    ),
    (
        "list",
        r##"{"anyOf": [{"type": "null"}, {"type": "object", "required": ["head", "tail"], "properties":
            {"head": {"type": "string", "maxLength": 5}, "tail": {"$ref": "#"}}}]}"##,
    ),
    (
        "expression",
        r##"{"$ref": "#/$defs/e", "$defs": {"n": {"type": "number"}, "e": {"anyOf": [{"$ref": "#/$defs/n"},
            {"type": "array", "prefixItems": [{"enum": ["+", "*"]}, {"$ref": "#/$defs/e"}, {"$ref": "#/$defs/e"}],
            "items": false, "minItems": 3}]}}}"##,
    ),
    (
        "oneOf",
        r#"{"oneOf": [{"type": "object", "required": ["kind", "r"], "properties": {"kind": {"const": "circle"},
            "r": {"type": "number"}}}, {"type": "object", "required": ["kind", "w"], "properties":
            {"kind": {"const": "square"}, "w": {"type": "integer"}}}, {"type": "string", "maxLength": 4}]}"#,
    ),
    (
        "formats",
        r#"{"type": "object", "required": ["on", "at", "id"], "properties": {"on": {"type": "string",
            "format": "date"}, "at": {"type": "string", "format": "date-time"}, "id": {"format": "uuid"}}}"#,
    ),
    (
        "pattern of anything",
        r#"{"type": "array", "items": {"type": "string", "pattern": "\\d{2}|^\\s?[\"\\\\é]+\\S$"}, "minItems": 1,
            "maxItems": 2}"#,
    ),
    (
        "references",
        r##"{"type": "object", "required": ["from", "to"], "properties": {"from": {"$ref": "#/definitions/p"},
            "to": {"allOf": [{"$ref": "#/definitions/p"}]}}, "definitions": {"p": {"title": "a place", "type":
            "array", "prefixItems": [{"type": "integer", "maximum": 9}, {"type": "boolean"}], "minItems": 1,
            "maxItems": 4, "items": {"type": "null"}}}}"##,
    ),
];
