"""The hot path: from documents to the bytes of PostgreSQL's binary COPY, and back.

`plan` (columns, types), `bson` (documents to values), `keys`, `columns` and `encode` (values to rows) run for
every document; `ejson` for structured values; `odd` and `rebuild` are for what is rare.
"""

from cartridge_warp.kernel.bson import (
    PoisonDocument,
    canonical,
    decode,
    from_ejson,
    identity,
    key_hash,
    key_text,
    native_key_kind,
    parse_canonical,
    relaxed_json,
    to_record,
    value_kind,
)
from cartridge_warp.kernel.encode import EncodedKeys, EncodedRows, Rejected, encode_keys, encode_rows
from cartridge_warp.kernel.plan import (
    EXTRA_COLUMN,
    KEY_COLUMN,
    KEY_TYPES,
    PG_TYPES,
    VERSION_COLUMN,
    ColumnKind,
    ColumnPlan,
    KeyKind,
    PgType,
    TablePlan,
    column_name,
    copy_columns,
    decide_kind,
    key_definition,
    relation_name,
)
from cartridge_warp.kernel.rebuild import equal, rebuild

__all__ = [
    "EXTRA_COLUMN",
    "KEY_COLUMN",
    "KEY_TYPES",
    "PG_TYPES",
    "VERSION_COLUMN",
    "ColumnKind",
    "ColumnPlan",
    "EncodedKeys",
    "EncodedRows",
    "KeyKind",
    "PgType",
    "PoisonDocument",
    "Rejected",
    "TablePlan",
    "canonical",
    "column_name",
    "copy_columns",
    "decide_kind",
    "decode",
    "encode_keys",
    "encode_rows",
    "equal",
    "from_ejson",
    "identity",
    "key_definition",
    "key_hash",
    "key_text",
    "native_key_kind",
    "parse_canonical",
    "rebuild",
    "relation_name",
    "relaxed_json",
    "to_record",
    "value_kind",
]
