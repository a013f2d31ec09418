"""From what documents showed to a table's structure: the pure function, and the tables that come of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from cartridge_warp.config import SchemaConfig, TableConfig, UnitSettings
from cartridge_warp.connectors.protocols import PlanChange, TableState
from cartridge_warp.core.evolution import evolve
from cartridge_warp.errors import DestinationRefused
from cartridge_warp.kernel import ColumnKind, ColumnPlan, KeyKind, TablePlan
from cartridge_warp.observe.events import DeadLettered, SchemaChanged
from cartridge_warp.records import Observed
from warp_testing.replica import Replica, config_for
from warp_testing.world import columns, state, until


def unit(**settings: Any) -> UnitSettings:
    return UnitSettings.of(SchemaConfig(name="s", **settings))


def seen(*keys: str, **fields: Any) -> Observed:
    """What was seen: kinds of keys, and for each field one kind or the counts of several."""
    counts = {name: {kind: 1} if isinstance(kind, str) else kind for name, kind in fields.items()}
    return Observed(fields=counts, keys=set(keys))


def one(
    plan: TablePlan | None, observed: Observed, settings: UnitSettings | None = None, **more: Any
) -> PlanChange | None:
    """The change of the one table `t`."""
    states = {} if plan is None else {"t": TableState("t", "complete", plan=plan)}
    changes = evolve(states, {"t": observed}, settings or unit(), **more)
    assert len(changes) <= 1
    return changes[0] if changes else None


def made(observed: Observed, settings: UnitSettings | None = None, **more: Any) -> TablePlan:
    change = one(None, observed, settings, **more)
    assert change is not None
    assert change.change == "add_table"
    return change.plan


PLAN = TablePlan("t", "t", KeyKind.int, columns=(ColumnPlan("a", "a", ColumnKind.bigint),), version=3)


@pytest.mark.parametrize("kind", ["objectid", "int", "string", "uuid", "date", "hash"])
def test_one_kind_of_key(kind: str) -> None:
    """A new table's key has the type of all keys that were seen."""
    plan = made(seen(kind, a="int"))
    assert plan.key_kind == kind
    assert plan.version == 1
    assert [column.field for column in plan.columns] == ["a"]


def test_several_kinds_of_keys() -> None:
    """Keys of two kinds, and keys of several fields, need the hashed key."""
    assert made(seen("int", "string")).key_kind is KeyKind.hash
    plan = made(seen("int"), key_fields={"t": None})
    assert (plan.key_kind, plan.key_field) == (KeyKind.hash, None)
    assert made(seen("int"), key_fields={"t": "id"}).key_field == "id"


def test_deletes_alone_make_no_table() -> None:
    """Without a document there is no table: the first document decides on the key."""
    assert one(None, seen()) is None


def test_new_columns_come_behind_the_old_ones() -> None:
    """New fields become columns behind the existing ones, in the order in which they were seen; versions count on."""
    change = one(PLAN, seen("int", c="string", b="double"))
    assert change is not None
    assert (change.change, change.columns) == ("add_column", ("c", "b"))
    assert [column.field for column in change.plan.columns] == ["a", "c", "b"]
    assert change.plan.version == 4
    assert replace(change.plan, columns=PLAN.columns, version=3) == PLAN


def test_nothing_new_changes_nothing() -> None:
    """Known fields, and values that did not fit theirs, lead to no change."""
    assert one(PLAN, Observed(misfits={"a": 7}, keys={"int"})) is None
    assert one(PLAN, seen("int", a="string")) is None
    assert one(PLAN, seen("string")) is None


def test_nulls_wait_for_a_value() -> None:
    """A field that was only null gets its column with its first value, of that value's type."""
    assert one(PLAN, seen("int", b="null")) is None
    change = one(PLAN, seen("int", b={"null": 5, "boolean": 1}))
    assert change is not None
    assert change.plan.columns[1].kind is ColumnKind.boolean


@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        ({"int": 3, "double": 1}, ColumnKind.numeric),
        ({"int": 3, "string": 1}, ColumnKind.bigint),
        ({"int": 1, "string": 1}, ColumnKind.string),
        ({"document": 1, "int": 9}, ColumnKind.json),
        ({"special": 1}, ColumnKind.json),
    ],
)
def test_mixed_values_decide_together(counts: dict[str, int], kind: ColumnKind) -> None:
    """All values of the batch decide on a new column's type."""
    assert made(seen("int", b=counts)).columns[0].kind is kind


def test_the_cap() -> None:
    """No more typed columns than the limit, for a new table and for one that grows; a lower limit removes none."""
    settings = unit(schema_evolution={"max_columns": 2})
    assert len(made(seen("int", a="int", b="int", c="int"), settings).columns) == 2
    grown = one(PLAN, seen("int", b="int", c="int"), settings)
    assert grown is not None
    assert [column.field for column in grown.plan.columns] == ["a", "b"]
    assert one(grown.plan, seen("int", c="int"), settings) is None
    assert one(grown.plan, seen("int", c="int"), unit(schema_evolution={"max_columns": 1})) is None


def test_soft_deletion_added_later() -> None:
    """Switching soft deletion on adds its columns at the next change; switching it off keeps them."""
    soft = unit(deletion_strategy="soft", soft_delete_column="gone")
    assert made(seen("int"), soft).soft_column == "gone"
    change = one(PLAN, seen("int"), soft)
    assert change is not None
    assert (change.change, change.plan.soft_column, change.plan.version) == ("soft_delete", "gone", 4)
    both = one(PLAN, seen("int", b="int"), soft)
    assert both is not None
    assert (both.change, both.plan.soft_column) == ("add_column", "gone")
    assert one(change.plan, seen("int"), unit()) is None


def test_names_that_are_taken() -> None:
    """A column's name differs from all others and from the system's, a table's from all other tables', without regard
    to case; the same in whatever order they come."""
    plan = made(seen("int", name="int", NAME="int", _warp_version="int", is_deleted="int", deleted_at="int", _ID="int"))
    names = [column.column for column in plan.columns]
    assert len({name.casefold() for name in names} | {"_id"}) == 7
    assert names[0] == "name"
    assert not {"_warp_version", "is_deleted", "deleted_at"} & set(names)
    assert made(seen("int"), relations={"T"}).relation not in {"T", "t"}
    custom = unit(deletion_strategy="soft", soft_delete_column="gone")
    assert made(seen("int", gone="int"), custom).columns[0].column != "gone"


def test_two_new_tables_of_one_name() -> None:
    """Two collections whose names differ in case alone, new in one batch, are two tables."""
    changes = evolve({}, {"Users": seen("int"), "users": seen("int")}, unit())
    assert len({change.plan.relation.casefold() for change in changes}) == 2


def test_each_table_has_its_own_settings() -> None:
    """Limits and deletion of one table are not those of another."""
    settings = unit(tables=(TableConfig(name="t", schema_evolution={"max_columns": 1}),))
    changes = evolve({}, {"t": seen("int", a="int", b="int"), "u": seen("int", a="int", b="int")}, settings)
    assert {change.plan.table: len(change.plan.columns) for change in changes} == {"t": 1, "u": 2}


# -- the tables that come of it -------------------------------------------------------------------------------------


def replica_of(mongo: Any, postgres: str, **schema: Any) -> Replica:
    return Replica(config_for(mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, **schema}]))


async def test_more_fields_than_columns(mongo: Any, postgres: str) -> None:
    """Fields beyond the limit are whole in `_warp_extra`, in the snapshot and in the stream."""
    replica = replica_of(mongo, postgres, schema_evolution={"max_columns": 3})
    mongo.db.t.insert_one({"_id": 1} | {f"f{n}": n for n in range(8)})
    async with replica.running():
        await replica.settled()
        mongo.db.t.insert_one({"_id": 2, "f0": 0, "f7": ObjectId(), "other": {"x": 1}})
        mongo.db.t.update_one({"_id": 1}, {"$set": {"f5": "changed"}, "$unset": {"f6": 1}})
        await replica.settled()
    extra = replica.query("SELECT _warp_extra FROM t WHERE _id = 1")[0][0]
    assert list(columns(replica, "t"))[:4] == ["_id", "f0", "f1", "f2"]
    assert extra.keys() == {"f3", "f4", "f5", "f7"}


async def test_a_very_wide_document(mongo: Any, postgres: str) -> None:
    """A document of 2,000 fields arrives whole: 300 columns, the rest in `_warp_extra`."""
    replica = replica_of(mongo, postgres)
    mongo.db.t.insert_one({"_id": 1} | {f"field {n}": n for n in range(2000)})
    await replica.once()
    assert await replica.differences() == []
    assert len([name for name in columns(replica, "t") if name.startswith("field")]) == 300


async def test_names_of_every_kind(mongo: Any, postgres: str) -> None:
    """Long names, twins in case, reserved names, quotes and emoji as fields and collections: all different, all equal,
    and the same after a restart with more of them."""
    replica = replica_of(mongo, postgres)
    odd = ["n" * 80, "n" * 79 + "m", "ü" * 40, 'q"uote', "it's", "🗄️ shelf", "Name", "name", "NAME", "select", "xmin",
           "is_deleted", "_warp_version", "_warp_key", "oid", "%s", "back\\slash", "semi;--", " ", "_ID"]  # fmt: skip
    mongo.db.fields.insert_one({"_id": 1} | {name: n for n, name in enumerate(odd[:10])})
    for name in odd[:10]:
        mongo.db[name].insert_one({"_id": 1, "v": name})
    async with replica.running():
        await replica.settled()
        for name in odd[10:]:
            mongo.db[name].insert_one({"_id": 1, "v": name})
        mongo.db.fields.insert_one({"_id": 2} | {name: f"v{n}" for n, name in enumerate(odd)})
        await replica.settled()
    relations = dict(replica.query("SELECT collection, relation FROM tables"))
    before = columns(replica, "fields")
    mongo.db.fields.insert_one({"_id": 3, "nAME": 1})
    mongo.db["nAME"].insert_one({"_id": 3})
    await replica.once()
    assert await replica.differences() == []
    after = dict(replica.query("SELECT collection, relation FROM tables"))
    assert {name: after[name] for name in relations} == relations
    assert {name: columns(replica, "fields")[name] for name in before} == before
    folded = [relation.casefold() for relation in after.values()]
    assert len(folded) == len(set(folded)) == len(odd) + 2
    assert all(len(name.encode()) <= 63 for name in (*folded, *columns(replica, "fields")))


async def test_fields_that_appear_later(mongo: Any, postgres: str) -> None:
    """A new field becomes a column in the transaction of the first document that has it, in snapshot pages as well;
    each version is in the registry."""
    replica = replica_of(mongo, postgres, full_load_batch_size=10)
    mongo.db.t.insert_many([{"_id": n, f"f{n // 10}": n} for n in range(50)])
    async with replica.running():
        await replica.settled()
        for n in range(3):
            mongo.db.t.update_one({"_id": n}, {"$set": {f"late{n}": {"n": n}}})
            await replica.settled()
    changes = [e.change_type for e in replica.heard(SchemaChanged)]
    assert changes[0] == "add_table"
    assert set(changes[1:]) == {"add_column"}
    versions = replica.query("SELECT version FROM schema_registry ORDER BY version")
    assert [v for (v,) in versions] == list(range(1, len(changes) + 1))
    assert replica.query("SELECT count(*) FROM t WHERE _warp_extra IS NOT NULL") == [(0,)]


EXISTING = {
    "fits": "_id bigint PRIMARY KEY, v text, mine text",
    "fits, all types": "_id bigint PRIMARY KEY, v text, at timestamptz, n numeric, b boolean, d double precision,"
    " j jsonb, u uuid, y bytea, mine int DEFAULT 7",
}


@pytest.mark.parametrize("when", ["before the start", "while running"])
@pytest.mark.parametrize("kind", list(EXISTING))
async def test_a_table_that_was_there_before(mongo: Any, postgres: str, kind: str, when: str) -> None:
    """A table that exists with a fitting key is adopted: rows that the source lacks go, the others are replaced, and
    its own further columns stay."""
    replica = replica_of(mongo, postgres)
    replica.query(f'CREATE SCHEMA "{replica.unit.target}"')
    replica.query(f"CREATE TABLE t ({EXISTING[kind]})")
    replica.query("INSERT INTO t (_id, v, mine) VALUES (1, 'old', '1'), (2, 'gone', '2')")
    more = {"at": datetime(2026, 1, 5, tzinfo=UTC), "b": True, "d": 0.5, "j": {"x": 1}} if "types" in kind else {}

    def fill() -> None:
        mongo.db.t.insert_many([{"_id": 1, "v": "new"} | more, {"_id": 3, "v": "third", "extra": 1}])

    if when == "before the start":
        fill()
        await replica.once()
    else:
        async with replica.running():
            await until(
                lambda: replica.query("SELECT 1 FROM pg_namespace WHERE nspname = %s", "cartridge_warp_metadata")
            )
            await until(lambda: replica.query("SELECT to_regclass('sync_markers') IS NOT NULL") == [(True,)])
            await until(lambda: replica.query("SELECT 1 FROM sync_markers"))
            fill()
            await replica.settled()
            await until(lambda: state(replica, "t") == "complete")
    assert await replica.differences() == []
    assert replica.query("SELECT _id, v, mine FROM t WHERE _id = 1")[0][2] is not None
    assert replica.query("SELECT count(*) FROM t") == [(2,)]
    if "types" in kind:
        assert columns(replica, "t")["at"] == "timestamp with time zone"


@pytest.mark.parametrize(
    ("definition", "named"),
    [
        ("_id text PRIMARY KEY", "_id bigint"),
        ("_id bigint", "primary key"),
        ("id bigint PRIMARY KEY", "_id bigint"),
        ("_id bigint, x int, PRIMARY KEY (_id, x)", "primary key"),
        ("_id bigint PRIMARY KEY, v integer", "v is integer"),
    ],
)
async def test_a_table_that_does_not_fit(mongo: Any, postgres: str, definition: str, named: str) -> None:
    """A table that exists and does not fit is left alone, and one sentence says why and what to do."""
    replica = replica_of(mongo, postgres)
    replica.query(f'CREATE SCHEMA "{replica.unit.target}"')
    replica.query(f"CREATE TABLE t ({definition})")
    mongo.db.t.insert_one({"_id": 1, "v": "text"})
    with pytest.raises(DestinationRefused, match=named) as caught:
        await replica.once()
    assert "rename or drop" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "_warp_version" not in columns(replica, "t")


async def test_a_column_of_somebody_else(mongo: Any, postgres: str) -> None:
    """A column that somebody added to a mirrored table serves a later field when it fits; else one sentence says what
    to do, and after that is done replication goes on where it was."""
    replica = replica_of(mongo, postgres)
    mongo.db.t.insert_one({"_id": 1})
    await replica.once()
    replica.query("ALTER TABLE t ADD fits text, ADD other integer")
    mongo.db.t.insert_one({"_id": 2, "fits": "text"})
    await replica.once()
    mongo.db.t.insert_one({"_id": 3, "other": "text"})
    with pytest.raises(DestinationRefused, match="column other is integer"):
        await replica.once()
    replica.query("ALTER TABLE t DROP other")
    await replica.once()
    assert await replica.differences() == []
    assert replica.query("SELECT fits, other FROM t ORDER BY _id") == [(None, None), ("text", None), (None, "text")]


async def test_a_view_of_that_name(mongo: Any, postgres: str) -> None:
    """A view that has a collection's name is not touched; the refusal names it."""
    replica = replica_of(mongo, postgres)
    replica.query(f'CREATE SCHEMA "{replica.unit.target}"')
    replica.query("CREATE VIEW t AS SELECT 1::bigint AS _id")
    mongo.db.t.insert_one({"_id": 1})
    with pytest.raises(DestinationRefused, match="exists already"):
        await replica.once()


async def test_a_constraint_of_an_adopted_table(mongo: Any, postgres: str) -> None:
    """A row that a constraint of the user's refuses is a dead letter; the others arrive; a good version settles it."""
    replica = replica_of(mongo, postgres)
    replica.query(f'CREATE SCHEMA "{replica.unit.target}"')
    replica.query("CREATE TABLE t (_id bigint PRIMARY KEY, v text NOT NULL)")
    mongo.db.t.insert_many([{"_id": 1, "v": "x"}, {"_id": 2}, {"_id": 3, "v": "y"}])
    async with replica.running():
        await until(lambda: replica.heard(DeadLettered))
        await until(lambda: state(replica, "t") == "complete")
        assert replica.query("SELECT _id FROM t ORDER BY _id") == [(1,), (3,)]
        mongo.db.t.update_one({"_id": 2}, {"$set": {"v": "z"}})
        await replica.settled()
    assert replica.query("SELECT class, state FROM dead_letters") == [("23502", "superseded")]
    await asyncio.sleep(0)


async def test_legacy_uuids_are_uuids_only_when_asked(mongo, postgres):
    """Binary subtype 3 is a uuid column with `uuid_subtype3`, else bytea; rebuilt exactly in both cases."""
    from bson.binary import Binary

    values = [Binary(bytes(range(i, i + 16)), 3) for i in range(3)] + [Binary(bytes(16), 4)]
    mongo.db.things.insert_many([{"_id": i, "u": value, "only": values[0]} for i, value in enumerate(values)])
    for asked, kind in ((False, "bytea"), (True, "uuid")):
        target = f"t_{asked}".lower()
        config = config_for(
            mongo.uri, postgres, mongo.name, source={"uuid_subtype3": asked}, destination={"schema": target}
        )
        replica = Replica(config)
        await replica.once()
        assert await replica.differences() == []
        assert replica.query('SELECT DISTINCT pg_typeof("only")::text FROM things') == [(kind,)]


async def test_rows_with_misfits_are_dead_letters_when_asked(mongo, postgres):
    """With `ignore_type_conversion_errors: false` a document whose value does not fit waits in the dead letters."""
    mongo.db.things.insert_many([{"_id": i, "n": i} for i in range(5)])
    config = config_for(mongo.uri, postgres, mongo.name, error_handling={"ignore_type_conversion_errors": False})
    replica = Replica(config)
    await replica.once()
    mongo.db.things.insert_many([{"_id": 10, "n": "no number"}, {"_id": 11, "n": 11}])
    await replica.once()
    assert replica.query("SELECT _id FROM things WHERE _id >= 10") == [(11,)]
    assert replica.query("SELECT class, state, row ->> 'n' FROM dead_letters") == [("conversion", "open", "no number")]
