"""Documents to rows: one list of encoded fields for each destination column, and what did not fit.

A batch is encoded column by column. A document that breaks it is found by halving and left out alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from bson import Int64, ObjectId

from cartridge_warp.kernel.bson import canonical, decode, key_hash, key_text, native_key_kind, value_kind
from cartridge_warp.kernel.columns import NULL, bigints, encode_column, sized
from cartridge_warp.kernel.ejson import quote
from cartridge_warp.kernel.odd import WARP_BSON, OddDocument, normalise, pairs_of, warp_bson
from cartridge_warp.kernel.plan import KEY_TYPES, ColumnKind, KeyKind, PgType, TablePlan
from cartridge_warp.records import Document, Observed

__all__ = ["EncodedKeys", "EncodedRows", "Rejected", "encode_keys", "encode_rows"]

_MISSING: Final = object()
_KEY_COLUMNS: Final = {
    KeyKind.objectid: ColumnKind.objectid,
    KeyKind.int: ColumnKind.bigint,
    KeyKind.string: ColumnKind.string,
    KeyKind.uuid: ColumnKind.uuid,
    KeyKind.date: ColumnKind.timestamp,
}
_SURE: Final[dict[KeyKind, set[type]]] = {KeyKind.objectid: {ObjectId}, KeyKind.int: {Int64, int}}


@dataclass(frozen=True, slots=True)
class Rejected:
    """A document that is in no row: its position in the input, why, and one sentence for people."""

    index: int
    reason: Literal["key_type", "poison", "conversion"]
    message: str


@dataclass(slots=True)
class EncodedRows:
    """Rows by columns: `fields` has one list for each of `plan.copy_columns`, all of the same length.

    `index` names for each row the position of its document in the input. `misfit_first` maps each field with
    misfits to the key (canonical Extended JSON) of the first document concerned; `lossy` holds the rows with
    misfits.
    """

    fields: list[list[bytes]]
    index: list[int]
    rejected: list[Rejected] = field(default_factory=list)
    observed: Observed = field(default_factory=Observed)
    misfit_first: dict[str, str] = field(default_factory=dict)
    lossy: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class EncodedKeys:
    """Encoded keys of type `pg`; `index` names the position of each in the input, `other` those that no
    row of this table can have, because its key column holds another type."""

    field: list[bytes]
    pg: PgType
    index: list[int]
    other: list[int]


@dataclass(slots=True)
class _Rows:
    """Decoded documents with their keys and their positions in the input."""

    documents: list[dict[str, Any]]
    keys: list[Any]
    index: list[int]

    def only(self, positions: Sequence[int]) -> _Rows:
        documents, keys, index = self.documents, self.keys, self.index
        return _Rows([documents[i] for i in positions], [keys[i] for i in positions], [index[i] for i in positions])


def encode_rows(
    plan: TablePlan, documents: Sequence[Document], versions: Sequence[int], keys: Sequence[Any] | None = None
) -> EncodedRows:
    """Encode documents with their versions. Every document is either in a row or in `rejected`.

    `keys` gives each document's key where the caller has it; it must when `plan.key_field` is None.
    """
    rejected: list[Rejected] = []
    rows = _decode_all(plan, documents, keys, rejected)
    fitting, other = _split(plan, rows.keys)
    seen = {native_key_kind(rows.keys[i]).value for i in other} | _kinds(plan, rows.keys, bool(fitting))
    for position in other:
        rejected.append(Rejected(rows.index[position], "key_type", _key_message(plan, rows.keys[position])))
    if other:
        rows = rows.only(fitting)
    try:
        encoded = _encode(plan, rows, versions)
    except MemoryError:
        raise
    except Exception:  # whatever it is, it must not spoil the other documents
        bad = _find_bad(plan, rows, versions, range(len(rows.index)))
        rejected += [Rejected(rows.index[position], "poison", why) for position, why in bad.items()]
        encoded = _encode(plan, rows.only([i for i in range(len(rows.index)) if i not in bad]), versions)
    encoded.rejected = sorted(rejected, key=lambda one: one.index)
    encoded.observed.keys = seen
    return encoded


def encode_keys(plan: TablePlan, keys: Sequence[Any]) -> EncodedKeys:
    """Encode keys alone, for deletes."""
    keys = [normalise(key) for key in keys]
    index, other = _split(plan, keys)
    fields = _key_fields(plan.key_kind, [keys[position] for position in index])
    return EncodedKeys(fields, KEY_TYPES[plan.key_kind], index, other)


# -- what can be in a row ----------------------------------------------------------------------------------


def _decode_all(
    plan: TablePlan, documents: Sequence[Document], keys: Sequence[Any] | None, rejected: list[Rejected]
) -> _Rows:
    rows = _Rows([], [], [])
    name = plan.key_field
    for position, raw in enumerate(documents):
        try:
            document = decode(raw)
            if keys is not None:
                key = normalise(keys[position])
            else:
                key = _MISSING if name is None else document.get(name, _MISSING)
        except MemoryError:
            raise
        except Exception as error:
            rejected.append(Rejected(position, "poison", _why(plan, error)))
            continue
        if key is _MISSING:
            message = f"a document of {plan.table} has no field {name!r}, which holds its key"
            rejected.append(Rejected(position, "poison", message))
            continue
        rows.documents.append(document)
        rows.keys.append(key)
        rows.index.append(position)
    return rows


def _split(plan: TablePlan, keys: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Positions of the keys that the key column takes, and of the others."""
    if not plan.native or set(map(type, keys)) <= _SURE.get(plan.key_kind, set()):
        return list(range(len(keys))), []
    fitting: list[int] = []
    other: list[int] = []
    for position, key in enumerate(keys):
        (fitting if native_key_kind(key) is plan.key_kind else other).append(position)
    return fitting, other


def _kinds(plan: TablePlan, keys: Sequence[Any], fitting: bool) -> set[str]:
    if plan.native:
        return {plan.key_kind.value} if fitting else set()
    return {native_key_kind(key).value for key in keys}


def _key_message(plan: TablePlan, key: Any) -> str:
    text = key_text(key)
    shown = text if len(text) <= 100 else f"{text[:99]}…"
    return (
        f"the key {shown} of {plan.table} does not fit its key column, which holds {plan.key_kind};"
        " the document waits until the table has a key for all types"
    )


def _why(plan: TablePlan, error: Exception) -> str:
    return f"a document of {plan.table} cannot be written ({type(error).__name__}): {error}"


def _find_bad(plan: TablePlan, rows: _Rows, versions: Sequence[int], positions: Sequence[int]) -> dict[int, str]:
    """The documents that cannot be encoded, with the reason, by halving."""
    try:
        _encode(plan, rows.only(positions), versions)
    except MemoryError:
        raise
    except Exception as error:
        if len(positions) == 1:
            return {positions[0]: _why(plan, error)}
        middle = len(positions) // 2
        return {
            **_find_bad(plan, rows, versions, positions[:middle]),
            **_find_bad(plan, rows, versions, positions[middle:]),
        }
    return {}


# -- column by column --------------------------------------------------------------------------------------


def _key_fields(kind: KeyKind, keys: Sequence[Any]) -> list[bytes]:
    if kind is KeyKind.hash:
        return sized([key_hash(key) for key in keys])
    return encode_column(_KEY_COLUMNS[kind], keys)[0]


def _encode(plan: TablePlan, rows: _Rows, versions: Sequence[int]) -> EncodedRows:
    result = EncodedRows([_key_fields(plan.key_kind, rows.keys)], rows.index)
    if plan.fills_key and plan.native:
        result.fields.append(_key_fields(KeyKind.hash, rows.keys))
    extras: dict[int, dict[str, str]] = {}
    for column in plan.columns:
        name = column.field
        values = [document.get(name) for document in rows.documents]
        fields, lossy = encode_column(column.kind, values)
        result.fields.append(fields)
        if lossy:
            result.observed.misfits[name] = len(lossy)
            result.misfit_first[name] = key_text(rows.keys[lossy[0]])
            for position in lossy:
                extras.setdefault(position, {})[name] = canonical(values[position])
    result.lossy = set(extras)
    known = plan.known
    for position, document in enumerate(rows.documents):
        if not document.keys() <= known or type(document) is not dict:
            _unplanned(known, document, extras.setdefault(position, {}), result.observed)
    result.fields.append(bigints([versions[position] for position in rows.index]))
    result.fields.append(_extra_fields(len(rows.index), extras))
    return result


def _unplanned(known: frozenset[str], document: dict[str, Any], extra: dict[str, str], observed: Observed) -> None:
    """Keep the fields without a column, and those whose name jsonb cannot hold or holds once only."""
    pairs = list(pairs_of(document))
    again = Counter(name for name, _ in pairs) if isinstance(document, OddDocument) else {}
    reserved = []
    for name, value in pairs:
        if name == WARP_BSON or again.get(name, 1) > 1 or not _in_jsonb(name):
            reserved.append((name, value))
        elif name not in known and value is not None:
            counts = observed.fields.setdefault(name, {})
            kind = value_kind(value)
            counts[kind] = counts.get(kind, 0) + 1
            extra[name] = canonical(value)
    if reserved:
        extra[WARP_BSON] = warp_bson(reserved).partition(": ")[2][:-1]


def _in_jsonb(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _extra_fields(count: int, extras: dict[int, dict[str, str]]) -> list[bytes]:
    fields = [NULL] * count
    for position, extra in extras.items():
        if extra:
            fields[position] = sized([b"\x01" + _object(extra.items())])[0]
    return fields


def _object(items: Iterable[tuple[str, str]]) -> bytes:
    return ("{" + ", ".join([f"{quote(name)}: {text}" for name, text in items]) + "}").encode()
