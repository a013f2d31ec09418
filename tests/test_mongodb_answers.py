"""Answers of a source that does not keep MongoDB's own limit on their size."""

from __future__ import annotations

from cartridge_warp.records import Op
from warp_testing.mongodb import changes_of, follow, notes_of, open_unit, rows


async def test_an_answer_too_large_for_the_driver_is_read_without_documents(mongo):
    """A backlog whose answer is larger than a message may be arrives whole, each change with its document; a mongod
    ends an answer at 16 MB, and not every server does."""
    mongo.db.t.insert_one({"_id": -1})
    async with open_unit(mongo.uri, mongo.name) as unit:
        heard = notes_of(unit)
        start = (await unit.now()).position
        for number in range(52):
            mongo.db.t.insert_one({"_id": number, "x": "y" * 1_000_000})
        taken = []
        batches = await follow(unit, start, rows(52))
        for batch in batches:
            await unit.complete(batch)
        taken = changes_of(batches, "t")
    assert [change.key for change in taken] == list(range(52))
    assert {(change.op, len(change.image) > 1_000_000) for change in taken} == {(Op.UPSERT, True)}
    assert any("larger than a message may be" in str(note) for note in heard)
